"""Options that several commands share: --json, --checkpoint and --dtype."""

import json
from argparse import Namespace

import pytest
import torch

from nanogpt import checkpoint
from nanogpt.cli.use import load_for_sampling
from nanogpt.data.files import plain


def test_json_of_eval_compare_and_check_data_has_their_figures(run_dir, command):
    first, last = checkpoint.list_checkpoints(run_dir)
    data = checkpoint.load_configs(first)[1].data
    results = json.loads(command("eval", first, last, "--stride=4", "--json"))
    assert all(0 < abs(r["sliding_loss"] - r["val_loss"]) < 0.5 for r in results)
    kept = [json.loads((run_dir / f"{step.name}.eval.json").read_text())["val"] for step in (first, last)]
    assert [r["val_loss"] for r in results] == [k["val_loss"] for k in kept]
    assert (results[0]["checkpoint"], results[0]["data"], results[0]["split"]) == (str(first), data, "val")
    verdict = json.loads(command("compare", run_dir, "--json"))
    assert verdict["better"] is None and verdict["runs"][0]["runs"] == [str(run_dir)]
    report = json.loads(command("check-data", data, "--json", "--block_size=16"))
    assert report["splits"]["val"]["tokens"] == results[0]["tokens"] + 1
    assert any("parameters" in warning or "repeat" in warning for warning in report["warnings"])


def test_json_has_null_for_what_is_not_finite():
    assert plain({"a": [1.0, float("nan")], "b": (float("inf"), "x")}) == {"a": [1.0, None], "b": [None, "x"]}


@pytest.mark.parametrize(
    "dtype, expected", [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("int8", torch.float32)]
)
def test_weights_have_the_dtype_that_was_asked_for(trained_dir, dtype, expected):
    options = {"device": "cpu", "checkpoint": None, "trust_recipe": None}
    model, _ = load_for_sampling(Namespace(RUN=str(trained_dir), dtype=dtype, **options))
    assert model.wte.weight.dtype == expected  # int8 is how matrices are packed; all else stays in fp32


def test_checkpoint_names_one_of_a_run_for_every_command(run_dir, tmp_path, command):
    first = checkpoint.list_checkpoints(run_dir)[0]
    assert json.loads(command("eval", run_dir, "--checkpoint=step-5", "--json"))[0]["checkpoint"] == str(first)
    named = ((run_dir, "--checkpoint=step-5"), (first,))
    by_name, by_path = (json.loads(command("sample", *which, "--seed=1", "--json"))["samples"] for which in named)
    assert by_name == by_path
    assert command("show-batch", run_dir, "--checkpoint=last", "--step=1")
    command("export", run_dir, "--checkpoint=last", "--out", tmp_path / "export")
    assert (tmp_path / "export" / "model.safetensors").is_file()


def test_a_damaged_checkpoint_is_noted_and_another_taken(run_dir, cli):
    best = (run_dir / "best").resolve()
    (best / "model.safetensors").write_bytes(b"damaged")
    done = cli("sample", run_dir, "--prompt", "FIRST:", "--max_new_tokens", "3")
    assert done.stdout.startswith("FIRST:") and best.name in done.stderr and "7 bytes" in done.stderr
