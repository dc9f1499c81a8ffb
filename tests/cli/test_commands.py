"""The `nanogpt` command, in this process, on a run made here."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import TINY

from data_prep import writer
from nanogpt import GPT, GPTConfig, __version__, checkpoint
from nanogpt.cli import COMMANDS, GROUPS, main
from nanogpt.data.tokenizer import load_tokenizer
from nanogpt.data.tokens import TokenDataset
from nanogpt.extras import eval_tasks
from nanogpt.hub import export
from nanogpt.run import metrics, plan


def test_sample_continues_the_prompt_with_as_many_tokens_as_asked_for(run_dir, capsys):
    main(["sample", str(run_dir), "--prompt", "FIRST:", "--max_new_tokens", "40", "--seed", "1"])
    shown = capsys.readouterr().out
    assert shown.startswith("FIRST:") and len(shown) == len("FIRST:") + 40 + 1
    main(["sample", str(run_dir), "--prompt", "FIRST:", "--max_new_tokens", "40", "--seed", "1"])
    assert capsys.readouterr().out == shown


def test_temperature_0_is_greedy(run_dir, capsys):
    texts = []
    for seed in ("1", "2"):
        main(
            [
                "sample",
                str(run_dir),
                "--prompt",
                "FIRST:",
                "--max_new_tokens",
                "9",
                "--temperature",
                "0",
                "--seed",
                seed,
            ]
        )
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_several_samples_and_a_prompt_from_a_file(run_dir, tmp_path, capsys):
    (tmp_path / "prompt.txt").write_text("SECOND:\n")
    main(
        [
            "sample",
            str(run_dir),
            "--prompt",
            f"FILE:{tmp_path}/prompt.txt",
            "--num_samples",
            "3",
            "--max_new_tokens",
            "5",
        ]
    )
    assert capsys.readouterr().out.count("SECOND:\n") == 3


def test_stats_count_the_tokens(run_dir, capsys):
    main(["sample", str(run_dir), "--num_samples", "3", "--max_new_tokens", "7", "--dtype", "bfloat16", "--stats"])
    assert "21 tokens in " in capsys.readouterr().err


def test_eval_prints_the_loss_of_the_best_checkpoint(run_dir, capsys):
    main(["eval", str(run_dir)])
    shown = capsys.readouterr().out
    path = checkpoint.find(run_dir)
    model, trained = checkpoint.load_model(path), checkpoint.load_configs(path)[1]
    tokens = torch.from_numpy(TokenDataset(trained.data, "val", 16).tokens[:].astype("int64"))
    n = (len(tokens) - 1) // 16
    with torch.no_grad():
        loss = model(tokens[: n * 16].view(n, 16), tokens[1 : n * 16 + 1].view(n, 16)).item()
    printed = float(shown.split("loss ")[1].split(" ")[0])
    assert printed == pytest.approx(loss, abs=2e-3)  # a last, partial window is left out here
    assert path.name in shown and "bits per byte" in shown


@pytest.mark.parametrize(
    "argv, message",
    [
        (["sample", "RUN", "--prompt", "ÄFFIN"], "character 'Ä' (position 0) is not among the"),
        (["sample", "RUN", "--prompt", ""], "the prompt is empty"),
        (["sample", "RUN", "--prompt", "FILE:nowhere.txt"], "nowhere.txt: No such file or directory"),
        (["sample", "RUN", "--temperature", "-1"], "--temperature=-1: must be from 0 to 1000"),
        (["sample", "RUN", "--num_samples", "0"], "--num_samples=0: must be from 1 to 10000"),
        (["sample", "RUN", "--max_tokens", "9"], "unknown flag --max_tokens"),
        (["sample", "/nowhere"], "'/nowhere' is not a directory"),
        (["sample", "RUN", "--device", "abacus"], "device='abacus' is not one of"),
        (["eval", "RUN", "--data", "nowhere"], "data directory 'nowhere' does not exist"),
        (["eval", "RUN", "--batch_size", "0"], "--batch_size=0: must be from 1 to 4096"),
        (["eval", "RUN", "--batch_size", "9" * 11], "--batch_size=99999999999: must be from 1 to 4096"),
        (["sample", "RUN", "--temperature", "nan"], "--temperature=nan: must be from 0 to 1000"),
        (["sample", "RUN", "--num_samples", "10000000000"], "--num_samples=10000000000: must be from 1 to 10000"),
        (["show-batch", "RUN", "--step", "9" * 20], "--step=99999999999999999999: must be from 1 to"),
        (["bench", "--batch_size", "0"], "--batch_size=0: must be from 1 to 4096"),
        (["plan", "/etc/passwd"], "/etc/passwd is not a Python file"),
        (["plot", "RUN", "--out", "out"], "out='out' must end in .png, .svg, .pdf"),
        (["sample", "RUN", "--max-new-token", "9"], "unknown flag --max_new_token: did you mean --max_new_tokens?"),
        (["export", "RUN", "--to", "LINK"], "is a symbolic link"),
        (["smaple"], "unknown command smaple: did you mean sample?"),
        (["fly"], "fly"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run_dir, argv, message, capsys):
    (run_dir.parent / "link").symlink_to(run_dir.parent / "elsewhere")
    names = {"RUN": str(run_dir), "LINK": str(run_dir.parent / "link")}
    with pytest.raises(SystemExit) as exit:
        main([names.get(a, a) for a in argv])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ") and error.count("\n") == 1


def test_a_damaged_best_checkpoint_is_replaced_by_a_whole_one(run_dir, capsys):
    best = (run_dir / "best").resolve()
    (best / "model.safetensors").write_bytes(b"damaged")
    main(["sample", str(run_dir), "--prompt", "FIRST:", "--max_new_tokens", "3"])
    captured = capsys.readouterr()
    assert "FIRST:" in captured.out
    assert f"{best.name} is damaged: model.safetensors has 7 bytes" in captured.err


def test_batch_prints_what_a_step_trains_on(make_run, capsys):
    run = make_run(gradient_accumulation_steps=2)
    run.train()
    run.state["step"] = 2
    expected = [
        run.tokenizer.decode([*x, y[-1]])
        for index in range(2)
        for x, y in zip(*(batch.tolist() for batch in run.micro_batch(index)), strict=True)
    ]
    capsys.readouterr()
    main(["show-batch", str(run.out_dir), "--step", "3"])
    shown = capsys.readouterr().out
    assert shown.count("step 3, micro-batch 1, sequence ") == 4
    blocks = re.split(r"step 3, micro-batch \d, sequence \d: tokens [\d,]+ to [\d,]+ of .*, epoch 1\n", shown)
    assert blocks == ["", *(text + "\n" for text in expected)]
    main(["show-batch", str(run.out_dir / "last"), "--step", "3"])
    assert capsys.readouterr().out == shown


def test_batch_of_a_mixture_names_no_epoch(make_run, data, text, tmp_path, capsys):
    writer.write(tmp_path / "other", text, "char", 0.1, "made up")
    run = make_run(data=f"{data}:0.5,{tmp_path / 'other'}:0.5")
    run.train()
    capsys.readouterr()
    main(["show-batch", str(run.out_dir), "--step", "1"])
    shown = capsys.readouterr().out
    assert shown.count("step 1, micro-batch 0") == 4 and "epoch" not in shown


def test_batch_of_a_step_before_the_first(run_dir, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["show-batch", str(run_dir), "--step", "0"])
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: --step=0: must be from 1 to 1000000000\n"


def test_launch_check_of_one_process(capsys):
    main(["launch-check", "--device", "cpu", "--precision", "fp32"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"one process, no communication; fp32, torch {torch.__version__}, accelerate ")
    assert "process 0: cpu (cpu) on " in shown


def test_launch_check_uses_the_group_on_the_cpu_as_a_run_does(monkeypatch, capsys):
    def unreachable(accelerator, timeout):
        raise ValueError(f"no route within {timeout:g} s")

    monkeypatch.setattr("nanogpt.run.agree.Peers", unreachable)
    with pytest.raises(SystemExit) as exit:
        main(["launch-check", "--device", "cpu", "--timeout", "7"])
    assert exit.value.code == 2 and capsys.readouterr().err == "error: no route within 7 s\n"


def test_several_runs_are_a_table_and_results_are_kept_beside_the_checkpoint(run_dir, capsys):
    first, last = sorted(run_dir.glob("step-*"))
    main(["eval", str(first), str(last)])
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert table[0].split() == ["loss", "perplexity", "bits", "per", "byte"]
    assert [line.split()[0] for line in table[1:]] == [str(first), str(last)]
    kept = [json.loads((run_dir / f"{step.name}.eval.json").read_text())["val"] for step in (first, last)]
    assert [line.split()[1] for line in table[1:]] == [f"{values['val_loss']:.4f}" for values in kept]
    assert kept[0]["val_loss"] != kept[1]["val_loss"]
    main(["eval", str(last), "--split", "train"])
    kept = json.loads((run_dir / f"{last.name}.eval.json").read_text())
    assert kept.keys() == {"val", "train"} and kept["val"]["val_loss"] != kept["train"]["val_loss"]


def test_data_of_another_tokenizer_are_not_evaluated(run_dir, capsys):
    other = run_dir.parent / "other"
    writer.write(other, "abcdefghijklmnop " * 200, "char", 0.1, "made up")
    with pytest.raises(SystemExit) as exit:
        main(["eval", str(run_dir), "--data", str(other)])
    assert exit.value.code == 2 and f"and {other} have different tokenizers" in capsys.readouterr().err


def test_results_on_other_data_or_of_some_examples_do_not_take_the_place_of_the_runs_own(run_dir, text, monkeypatch):
    other = run_dir.parent / "other"
    writer.write(other, text, "char", 0.5, "made up")
    main(["eval", str(run_dir)])
    main(["eval", str(run_dir), "--data", str(other)])
    file = run_dir / f"{checkpoint.find(run_dir).name}.eval.json"
    kept = json.loads(file.read_text())
    assert kept["val"]["data"] == checkpoint.load_configs(run_dir)[1].data
    assert kept[f"val of {other}"]["data"] == str(other)
    assert kept["val"]["val_loss"] != kept[f"val of {other}"]["val_loss"]
    monkeypatch.setattr(eval_tasks, "evaluate", lambda *args: {"piqa": {"acc": 0.25 if args[4] else 0.5}})
    main(["eval", str(run_dir), "--tasks", "piqa"])
    main(["eval", str(run_dir), "--tasks", "piqa", "--limit", "10"])
    kept = json.loads(file.read_text())
    assert kept["piqa"] == {"piqa": {"acc": 0.5}, "limit": None}
    assert kept["piqa, 10 examples"] == {"piqa": {"acc": 0.25}, "limit": 10}


def test_escape_sequences_are_visible_unless_raw_is_asked_for(tmp_path, make_run, capsys):
    writer.write(tmp_path / "escapes", "\x1b[2J\x1b]0;title\x07 \n" * 200, "char", 0.1, "from \x1b[31mred")
    run = make_run(data=str(tmp_path / "escapes"))
    run.train()
    sample = ["sample", str(run.out_dir), "--prompt", "\x1b[", "--max_new_tokens=20"]
    data = str(tmp_path / "escapes")
    for argv in (
        sample,
        [*sample, "--num_samples=2"],
        ["check-data", data],
        ["show-batch", str(run.out_dir), "--step=1"],
    ):
        capsys.readouterr()
        main(argv)
        shown = capsys.readouterr().out
        assert "\\x1b[" in shown and not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    main([*sample, "--raw"])
    assert capsys.readouterr().out.startswith("\x1b[")


def test_the_texts_of_a_run_reach_the_terminal_visibly(tmp_path, make_run, capsys):
    writer.write(tmp_path / "escapes", "\x1b[2J\x1b]0;title\x07 \n" * 200, "char", 0.1, "made up")
    make_run(data=str(tmp_path / "escapes")).train()
    shown = capsys.readouterr().out
    assert "\\x1b" in shown and "\x1b" not in shown


def test_names_in_a_comparison_are_visible(run_dir, tmp_path, capsys):
    other = run_dir.rename(tmp_path / "a\x1b[31mb")
    main(["compare", str(other)])
    shown = capsys.readouterr().out
    assert "a\\x1b[31mb" in shown and "\x1b" not in shown


def test_the_version_and_the_groups_of_commands(capsys):
    for flag in ("--version", "--help"):
        with pytest.raises(SystemExit) as exit:
            main([flag])
        assert exit.value.code == 0
    version, _, help = capsys.readouterr().out.partition("\n")
    assert version == f"nanogpt {__version__}"
    for group, commands in GROUPS.items():
        assert f"\n{group}:\n" in help
        assert all(re.search(rf"\n  {name} +\S", help) for name in commands)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_says_a_default_once(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    for option in capsys.readouterr().out.split("\n  -"):
        assert "None" not in option and option.count("default:") <= 1


def test_compare_puts_runs_side_by_side(run_dir, capsys):
    other = shutil.copytree(run_dir, run_dir.with_name("other"), symlinks=True)
    config = json.loads((other / "config.json").read_text())
    config["train"]["seed"] += 1
    (other / "config.json").write_text(json.dumps(config))
    main(["compare", str(run_dir), str(other)])
    shown = capsys.readouterr().out
    assert "seeds" in shown and "±0.0000" in shown


def test_a_plan_names_the_size_and_leaves_nothing_behind(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    recipe = Path(__file__).parents[2] / "recipes" / "shakespeare_nanogpt.py"
    flags = "--device=cpu --n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4 --max_iters=50".split()
    main(["plan", str(recipe), *flags, f"--data={data}"])
    shown = capsys.readouterr().out
    parameters = GPT(GPTConfig(TINY.block_size, load_tokenizer(data).vocab_size, 1, 2, n_embd=16)).get_num_params()
    assert f"parameters    {parameters:,}: " in shown
    assert "64 a step, 3,200 in 50 steps" in shown and "50 steps of" in shown and "fits into" in shown
    assert [path for path in sorted(tmp_path.rglob("*")) if ".scan" not in path.name] == before
    with pytest.raises(SystemExit):
        main(["plan", str(recipe), "--n_leyer=3"])
    assert "did you mean --n_layer?" in capsys.readouterr().err


def test_a_plan_of_a_recipe_that_does_not_exist_changes_nothing(capsys):
    before = list(sys.argv), list(sys.path)
    with pytest.raises(SystemExit):
        main(["plan", "nowhere/mine.py"])
    assert capsys.readouterr().err.startswith("error: nowhere/mine.py is not a Python file")
    assert (sys.argv, sys.path) == before


def test_the_largest_batch_is_looked_for(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "available", lambda device: 40e6)  # as much as a very small machine has free
    recipe = Path(__file__).parents[2] / "recipes" / "shakespeare_nanogpt.py"
    flags = "--device=cpu --n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --find_batch_size".split()
    monkeypatch.setattr(sys, "argv", [str(recipe), *flags, f"--data={data}"])
    runpy.run_path(str(recipe), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert "does not fit" in lines[-2]
    refused, largest = int(lines[-2].split()[0]), int(lines[-1].split("--batch_size=")[1].split(";")[0])
    assert refused == 2 * largest


def test_seeds_are_trained_one_after_the_other_and_compared(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = Path(__file__).parents[2] / "recipes" / "shakespeare_nanogpt.py"
    flags = "--device=cpu --n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4 --max_iters=4".split()
    flags += ["--eval_interval=2", f"--data={data}", "--out_dir=out/a", "--seeds=2", "--seed=5"]
    monkeypatch.setattr(sys, "argv", [str(recipe), *flags])
    runpy.run_path(str(recipe), run_name="__main__")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-seed5", "a-seed6"]
    losses = [metrics.read(tmp_path / "out" / f"a-seed{s}" / "metrics.jsonl")[-1]["val_loss"] for s in (5, 6)]
    assert losses[0] != losses[1]
    table = capsys.readouterr().out.split("validation loss by equal steps")[1]
    assert f"{sum(losses) / 2:.4f} ±{abs(losses[0] - losses[1]) / 2**0.5:.4f}" in table


def test_push_takes_its_options_along(run_dir, monkeypatch):
    asked = []

    def upload(folder, repo, message, revision):
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        asked.append((repo, revision, next(iter(weights.values())).dtype))
        assert "license: mit" in (folder / "README.md").read_text()
        return "address"

    monkeypatch.setattr(export.client, "make_repository", lambda *args, **kwargs: asked.append((args, kwargs)))
    monkeypatch.setattr(export.client, "upload", upload)
    options = ["--private", "--revision", "trial", "--license", "mit", "--dtype", "bfloat16"]
    main(["push", str(run_dir), "me/model", *options])
    assert asked == [(("me/model", True, "trial"), {}), ("me/model", "trial", torch.bfloat16)]


def test_top_k_1_is_greedy(run_dir, capsys):
    texts = set()
    for options in (["--temperature", "0"], ["--top_k", "1", "--temperature", "2"]):
        main(["sample", str(run_dir), "--prompt", "FIRST:", "--max_new_tokens", "30", *options])
        texts.add(capsys.readouterr().out)
    assert len(texts) == 1


def test_batch_can_be_shown_where_the_data_lies_now(run_dir, text, tmp_path, capsys):
    writer.write(tmp_path / "moved", text, "char", 0.1, "made up")
    main(["show-batch", str(run_dir), "--step", "1", "--data", str(tmp_path / "moved")])
    assert f"of {tmp_path / 'moved'}, epoch 1" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    "words, completed",
    [(["sam"], ["sample"]), (["sample", "--temp"], ["--temperature"]), (["export", "out/tin"], ["out/tiny"])],
)
def test_bash_completes_commands_flags_and_files(tmp_path, capsys, words, completed):
    (tmp_path / "out" / "tiny").mkdir(parents=True)
    with pytest.raises(SystemExit):
        main(["--completion", "bash"])
    script = capsys.readouterr().out
    script += """
        COMP_WORDS=(nanogpt "$@"); COMP_CWORD=$#
        $(complete -p nanogpt | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(["bash", "-c", script, "bash", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == completed
