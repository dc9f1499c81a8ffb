"""Options that several commands share: --json and --checkpoint."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from data_prep.text import prepare
from nanogpt import checkpoint
from nanogpt.cli import main
from nanogpt.cli.use import load_for_sampling
from nanogpt.data.files import plain

RECIPE = Path(__file__).parents[2] / "recipes" / "shakespeare_nanogpt.py"


def printed(capsys, *argv) -> object:
    """The one line of JSON that a command prints."""
    capsys.readouterr()
    main([str(word) for word in argv])
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def test_eval_compare_and_check_data_print_their_figures_as_json(run_dir, data, capsys):
    first, last = checkpoint.steps(run_dir)
    results = printed(capsys, "eval", first, last, "--json")
    kept = [json.loads((run_dir / f"{step.name}.eval.json").read_text())["val"] for step in (first, last)]
    assert [r["val_loss"] for r in results] == [k["val_loss"] for k in kept]
    assert (results[0]["checkpoint"], results[0]["data"], results[0]["split"]) == (str(first), str(data), "val")
    verdict = printed(capsys, "compare", run_dir, "--json")
    assert verdict["better"] is None and verdict["runs"][0]["runs"] == [str(run_dir)]
    report = printed(capsys, "check-data", data, "--json", "--block_size=16")
    assert report["splits"]["val"]["tokens"] == results[0]["tokens"] + 1
    assert any("parameters" in warning or "repeat" in warning for warning in report["warnings"])


def test_samples_as_json_are_those_that_are_printed(run_dir, capsys):
    argv = ["sample", run_dir, "--prompt=FIRST:", "--max_new_tokens=9", "--seed=3"]
    main([str(word) for word in argv])
    shown = capsys.readouterr().out
    found = printed(capsys, *argv, "--json")
    assert [s["text"] + "\n" for s in found["samples"]] == [shown]
    assert (found["samples"][0]["tokens"], found["samples"][0]["ended"]) == (9, False)
    assert len(printed(capsys, *argv, "--json", "--num_samples=3")["samples"]) == 3


@pytest.mark.parametrize(
    "dtype, expected", [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("int8", torch.float32)]
)
def test_weights_have_the_dtype_that_was_asked_for(run_dir, dtype, expected):
    model, _ = load_for_sampling(Namespace(RUN=str(run_dir), dtype=dtype, device="cpu", checkpoint=None))
    assert model.wte.weight.dtype == expected  # int8 is how matrices are packed; all else stays in fp32


def test_checkpoint_names_one_of_a_run_for_every_command_that_reads_one(run_dir, tmp_path, capsys):
    first = checkpoint.steps(run_dir)[0]
    assert printed(capsys, "eval", run_dir, "--checkpoint=step-5", "--json")[0]["checkpoint"] == str(first)
    by_name, by_path = (
        printed(capsys, "sample", *which, "--seed=1", "--json")["samples"]
        for which in ((run_dir, "--checkpoint=step-5"), (first,))
    )
    assert by_name == by_path
    main(["show-batch", str(run_dir), "--checkpoint=last", "--step=1"])
    main(["export", str(run_dir), "--checkpoint=last", "--out", str(tmp_path / "export")])
    assert (tmp_path / "export" / "model.safetensors").is_file()
    for which, message in (("newest", "is not one of best, last, step-N"), ("step-7", "has no checkpoint step-7")):
        for command in (["eval"], ["sample"], ["show-batch", "--step=1"]):
            with pytest.raises(SystemExit) as exit:
                main([*command, str(run_dir), f"--checkpoint={which}"])
            error = capsys.readouterr().err
            assert exit.value.code == 2 and error.count("\n") == 1
            assert message in error or "step-000007" in error


def test_a_text_ends_where_it_ends_unless_the_end_of_text_token_is_to_be_ignored(make_run, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{i:03}a"}}\n' for i in range(200)))
    prepare([str(tmp_path / "a.jsonl")], tmp_path / "letters", "bytes", say=lambda text: None)
    run = make_run(data=str(tmp_path / "letters"), max_iters=60, eval_interval=60, optimizer="muon")
    run.train()
    argv = ["sample", run.out_dir, "--prompt=a", "--temperature=0", "--max_new_tokens=6"]
    main([str(word) for word in argv])
    assert capsys.readouterr().out.endswith("\na\n")
    found = printed(capsys, *argv, "--num_samples=2", "--json")["samples"]
    assert found == [{"text": "a", "tokens": 0, "ended": True}] * 2
    (going_on,) = printed(capsys, *argv, "--ignore_eos", "--json")["samples"]
    assert going_on["text"].startswith("a<|endoftext|>") and (going_on["tokens"], going_on["ended"]) == (6, False)
    main([str(word) for word in [*argv, "--ignore_eos", "--stats"]])
    captured = capsys.readouterr()
    assert captured.out == going_on["text"] + "\n" and "6 tokens in" in captured.err


def test_what_is_not_finite_is_null_in_json():
    assert plain({"a": [1.0, float("nan")], "b": (float("inf"), "x", None, True)}) == {
        "a": [1.0, None],
        "b": [None, "x", None, True],
    }


def test_nanogpts_start_is_the_prompt_of_sample(capsys):
    with pytest.raises(SystemExit):
        main(["sample", "out/x", "--start=y"])
    assert "did you mean --prompt?" in capsys.readouterr().err


def test_a_plan_as_json_has_the_figures_of_the_text(data, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nanogpt"])
    flags = (
        f"--data={data} --device=cpu --n-layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4 --max-iters=50"
    )
    for argv in (["--json", RECIPE, *flags.split()], [RECIPE, *flags.split(), "--json"]):
        found = printed(capsys, "plan", *argv)
        assert (found["tokens_per_step"], found["tokens"], found["fits"]) == (64, 3200, True)
        assert found["parameters"] == sum(found["parameters_by_part"].values())
        assert found["train_seconds"] == pytest.approx(50 * found["seconds_per_step"])
