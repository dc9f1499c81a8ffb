"""The commands that have no other file here, in this process: each prints what the run, the data or torch says."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import TINY

from data_prep import writer
from nanogpt import GPT, GPTConfig, __version__, checkpoint
from nanogpt.cli import COMMANDS, GROUPS, main
from nanogpt.data.tokens import TokenDataset
from nanogpt.extras import eval_tasks
from nanogpt.ops import loss
from nanogpt.run import metrics

RECIPE = Path(__file__).parents[2] / "recipes" / "shakespeare_nanogpt.py"
SMALL = "--device=cpu --n_layer=1 --n_head=2 --n_embd=16 --block_size=16".split()
ESCAPES = "\x1b[2J\x1b]0;title\x07 \n" * 200


def test_eval_prints_the_loss_of_the_best_checkpoint(run_dir, command):
    shown, path = command("eval", run_dir), checkpoint.find(run_dir)
    model, trained = checkpoint.load_model(path), checkpoint.load_configs(path)[1]
    tokens = torch.from_numpy(TokenDataset(trained.data, "val", 16).tokens[:].astype("int64"))
    n = (len(tokens) - 1) // 16
    with torch.no_grad():
        loss = model(tokens[: n * 16].view(n, 16), tokens[1 : n * 16 + 1].view(n, 16)).item()
    printed = float(shown.split("loss ")[1].split(" ")[0])
    assert printed == pytest.approx(loss, abs=2e-3)  # a last, partial window is left out here
    assert path.name in shown and "bits per byte" in shown


def test_eval_takes_the_loss_of_large_vocabularies_and_a_precision(run_dir, command, monkeypatch):
    """On a GPU: here chunks of a few logits take the place of those, and the CPU computes in bf16."""
    whole = float(command("eval", run_dir, "--json").split('"val_loss": ')[1].split(",")[0])
    asked = []
    chunks = partial(loss.chunked_loss, chunk=10_000)
    monkeypatch.setattr(loss, "loss_for", lambda *args: asked.append(args) or chunks)
    for precision, most in (("auto", 1e-6), ("bf16", 1e-2)):
        [result] = json.loads(command("eval", run_dir, "--json", "--batch_size=300", f"--precision={precision}"))
        assert result["val_loss"] == pytest.approx(whole, abs=most)
    assert result["val_loss"] != whole
    assert [(device.type, tokens) for device, _, tokens in asked] == [("cpu", 300 * 16)] * 2


def test_eval_of_several_runs_is_a_table_and_kept_beside_them(run_dir, command):
    first, last = checkpoint.list_checkpoints(run_dir)
    table = command("eval", first, last).split("\n\n")[1].splitlines()
    assert table[0].split() == ["loss", "perplexity", "bits", "per", "byte"]
    kept = [json.loads((run_dir / f"{step.name}.eval.json").read_text())["val"] for step in (first, last)]
    rows = [[str(step), f"{values['val_loss']:.4f}"] for step, values in zip((first, last), kept, strict=True)]
    assert [line.split()[:2] for line in table[1:]] == rows and rows[0][1] != rows[1][1]
    command("eval", last, "--split", "train")
    kept = json.loads((run_dir / f"{last.name}.eval.json").read_text())
    assert kept.keys() == {"val", "train"} and kept["val"]["val_loss"] != kept["train"]["val_loss"]


def test_eval_keeps_results_of_other_data_and_of_some_examples_apart(run_dir, text, tmp_path, monkeypatch, command):
    other = tmp_path / "other"
    writer.write(other, text, "char", 0.5, "made up")
    command("eval", run_dir)
    command("eval", run_dir, "--data", other)
    monkeypatch.setattr(eval_tasks, "evaluate", lambda *args: {"piqa": {"acc": 0.25 if args[4] else 0.5}})
    command("eval", run_dir, "--tasks", "piqa")
    command("eval", run_dir, "--tasks", "piqa", "--limit", "10")
    kept = json.loads((run_dir / f"{checkpoint.find(run_dir).name}.eval.json").read_text())
    assert kept["val"]["data"] == checkpoint.load_configs(run_dir)[1].data
    assert kept[f"val of {other}"]["data"] == str(other)
    assert kept["val"]["val_loss"] != kept[f"val of {other}"]["val_loss"]
    assert kept["piqa"] == {"piqa": {"acc": 0.5}, "limit": None}
    assert kept["piqa, 10 examples"] == {"piqa": {"acc": 0.25}, "limit": 10}


def test_show_batch_prints_what_a_step_trains_on(make_run, tmp_path, command):
    run = make_run(gradient_accumulation_steps=2)
    run.train()
    run.state.step = 2
    expected = [
        run.tokenizer.decode([*x, y[-1]]) + "\n"
        for index in range(2)
        for x, y in zip(*(batch.tolist() for batch in run.micro_batch(index)), strict=True)
    ]
    shown = command("show-batch", run.out_dir, "--step", "3", "--sequences=8")
    assert shown.count("step 3, micro-batch 1, sequence ") == 4
    blocks = re.split(r"step 3, micro-batch \d, sequence \d: tokens [\d,]+ to [\d,]+ of .*, epoch 1\n", shown)
    assert blocks == ["", *expected]
    assert shown.startswith(command("show-batch", run.out_dir, "--step", "3", "--sequences=5"))
    moved = Path(run.config.data).rename(tmp_path / "moved")
    assert f"of {moved}, epoch 1" in command("show-batch", run.out_dir / "last", "--step", "3", "--data", moved)


def test_launch_check_names_the_device_of_one_process(command):
    shown = command("launch-check", "--device", "cpu", "--precision", "fp32")
    assert shown.startswith(f"one process, no communication; fp32, torch {torch.__version__}, accelerate ")
    assert "process 0: cpu (cpu) on " in shown


def test_escape_sequences_are_visible_unless_raw_is_asked_for(tmp_path, make_run, monkeypatch, capsys, command):
    writer.write(tmp_path / "data", ESCAPES, "char", 0.1, "from \x1b[31mred")
    monkeypatch.setattr("nanogpt.run.console.SAMPLE_TOKENS", 100)
    run = make_run()
    run.train()
    shown = [capsys.readouterr().out]  # its last sample
    named = run.out_dir.rename(tmp_path / "a\x1b[31mb")
    sample = ("sample", named, "--prompt", "\x1b[", "--max_new_tokens=20")
    shown += [command(*sample), command(*sample, "--num_samples=2"), command("check-data", tmp_path / "data")]
    shown += [command("show-batch", named, "--step=1"), command("compare", named)]
    for text in shown:
        assert "\\x1b" in text and not any(ord(c) < 32 and c not in "\n\t" for c in text)
    assert command(*sample, "--raw").startswith("\x1b[")


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_the_command_alone_tells_its_version_and_its_commands(flag, capsys):
    with pytest.raises(SystemExit) as exit:
        main([flag])
    shown = capsys.readouterr().out
    assert exit.value.code == 0
    if flag == "--version":
        assert shown == f"nanogpt {__version__}\n"
    else:
        assert all(f"\n{group}:\n" in shown for group in GROUPS)
        assert all(re.search(rf"\n  {name} +\S", shown) for name in COMMANDS)


def test_a_plan_counts_parameters_and_tokens_and_leaves_nothing(trained_dir, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nanogpt"])
    data = checkpoint.load_configs(trained_dir)[1].data
    flags = [*SMALL, "--batch_size=4", "--max-iters=50", f"--data={data}"]
    shown, found = command("plan", RECIPE, *flags), json.loads(command("plan", RECIPE, *flags, "--json"))
    size = checkpoint.load_model(checkpoint.find(trained_dir)).config.vocab_size
    parameters = GPT(GPTConfig(TINY.block_size, size, 1, 2, n_embd=16)).get_num_params()
    assert f"{parameters:,}" in shown and "3,200: 50 steps of 64" in shown
    assert found["parameters"] == parameters
    assert (found["tokens_per_step"], found["tokens"], found["fits"]) == (64, 3200, True)
    assert found["train_seconds"] == pytest.approx(50 * found["seconds_per_step"])
    assert json.loads(command("plan", "--json", RECIPE, *flags))["tokens"] == 3200
    assert not list(tmp_path.iterdir())


def recipe(monkeypatch, *flags) -> None:
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *SMALL, *flags])
    runpy.run_path(str(RECIPE), run_name="__main__")


def test_seeds_are_trained_one_after_the_other_and_compared(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = "--batch_size=4 --max_iters=4 --eval_interval=2 --out_dir=out/a --seeds=2 --seed=5".split()
    recipe(monkeypatch, *flags, f"--data={data}")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-seed5", "a-seed6"]
    losses = [metrics.read(tmp_path / "out" / f"a-seed{s}" / "metrics.jsonl")[-1]["val_loss"] for s in (5, 6)]
    assert losses[0] != losses[1]
    table = capsys.readouterr().out.split("at 4 steps")[1]
    assert f"{sum(losses) / 2:.4f} ±{abs(losses[0] - losses[1]) / 2**0.5:.4f}" in table


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
