"""The commands that have no other file here, in this process: each prints what the run, the data or torch says."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY
from texts import write_data

from nanogpt import GPT, GPTConfig, checkpoint
from nanogpt.data.tokens import TokenDataset
from nanogpt.hub.load import load_checkpoint
from nanogpt.ops import loss
from nanogpt.run import metrics

RECIPE = Path(__file__).parents[2] / "recipes" / "shakespeare_nanogpt.py"
SMALL = "--device=cpu --n_layer=1 --n_head=2 --n_embd=16 --block_size=16".split()
ESCAPES = "\x1b[2J\x1b]0;title\x07 \n" * 200


def test_eval_prints_the_loss_of_the_best_checkpoint(run_dir, command):
    shown, path = command("eval", run_dir), checkpoint.find(run_dir)
    model, trained = load_checkpoint(path), checkpoint.load_configs(path)[1]
    tokens = torch.from_numpy(TokenDataset(trained.data, "val", 16).tokens[:].astype("int64"))
    n = (len(tokens) - 1) // 16
    with torch.no_grad():
        loss = model(tokens[: n * 16].view(n, 16), tokens[1 : n * 16 + 1].view(n, 16)).item()
    printed = float(shown.split("loss ")[1].split(" ")[0])
    assert printed == pytest.approx(loss, abs=2e-3)  # a last, partial window is left out here
    assert path.name in shown and "bits per byte" in shown


def test_eval_takes_the_loss_of_large_vocabularies_and_a_precision(run_dir, command, monkeypatch):
    whole = float(command("eval", run_dir, "--json").split('"val_loss": ')[1].split(",")[0])
    chunks, apply = [], loss.ChunkedLoss.apply
    monkeypatch.setattr(loss, "CHUNK", 10_000)
    monkeypatch.setattr(loss.ChunkedLoss, "apply", lambda *args: chunks.append(args[-1]) or apply(*args))
    for precision, most in (("auto", 1e-6), ("bf16", 1e-2)):
        [result] = json.loads(command("eval", run_dir, "--json", "--batch_size=300", f"--precision={precision}"))
        assert result["val_loss"] == pytest.approx(whole, abs=most)
    assert result["val_loss"] != whole
    assert set(chunks) == {10_000}


def test_json_of_eval_compare_and_check_data_has_their_figures(run_dir, command):
    first, last = checkpoint.list_checkpoints(run_dir)
    data = checkpoint.load_configs(first)[1].data
    lines = command("eval", first, last).splitlines()
    results = json.loads(command("eval", first, last, "--stride=4", "--json"))
    assert all(0 < abs(r["sliding_loss"] - r["val_loss"]) < 0.5 for r in results)
    for line, path, result in zip(lines, (first, last), results, strict=True):
        assert line.startswith(f"{path}: loss {result['val_loss']:.4f} nats per token")
    assert (results[0]["checkpoint"], results[0]["data"], results[0]["split"]) == (str(first), data, "val")
    verdict = json.loads(command("compare", run_dir, "--json"))
    assert verdict["better"] is None and verdict["runs"][0]["runs"] == [str(run_dir)]
    report = json.loads(command("check-data", data, "--json", "--block_size=16"))
    assert report["splits"]["val"]["tokens"] == results[0]["tokens"] + 1
    assert any("parameters" in warning or "repeat" in warning for warning in report["warnings"])


def test_escape_sequences_are_visible(tmp_path, make_run, monkeypatch, capsys, command):
    write_data(tmp_path / "data", ESCAPES, source="from \x1b[31mred")
    monkeypatch.setattr("nanogpt.run.console.SAMPLE_TOKENS", 100)
    run = make_run()
    run.train()
    shown = [capsys.readouterr().out]  # its last sample
    named = run.out_dir.rename(tmp_path / "a\x1b[31mb")
    sample = ("sample", named, "--prompt", "\x1b[", "--max_new_tokens=20")
    shown += [command(*sample), command(*sample, "--num_samples=2"), command("check-data", tmp_path / "data")]
    shown.append(command("compare", named))
    for text in shown:
        assert "\\x1b" in text and not any(ord(c) < 32 and c not in "\n\t" for c in text)


def test_a_plan_counts_parameters_and_tokens_and_leaves_nothing(trained_dir, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nanogpt"])
    data = checkpoint.load_configs(trained_dir)[1].data
    flags = [*SMALL, "--batch_size=4", "--max-iters=50", f"--data={data}"]
    shown, found = command("plan", RECIPE, *flags), json.loads(command("plan", RECIPE, *flags, "--json"))
    size = load_checkpoint(checkpoint.find(trained_dir)).config.vocab_size
    parameters = GPT(GPTConfig(TINY.block_size, size, 1, 2, n_embd=16)).get_num_params()
    assert f"{parameters:,}" in shown and "3,200" in shown
    assert (found["parameters"], found["tokens"]) == (parameters, 3200)
    assert json.loads(command("plan", "--json", RECIPE, *flags))["tokens"] == 3200
    assert not list(tmp_path.iterdir())


def test_seeds_are_trained_one_after_the_other_and_compared(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = "--batch_size=4 --max_iters=4 --eval_interval=2 --out_dir=out/a --seeds=2 --seed=5 --time_limit=60".split()
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *SMALL, *flags, f"--data={data}"])
    runpy.run_path(str(RECIPE), run_name="__main__")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-seed5", "a-seed6"]
    losses = [metrics.read(tmp_path / "out" / f"a-seed{s}" / "metrics.jsonl")[-1]["val_loss"] for s in (5, 6)]
    assert losses[0] != losses[1]
    limits = [checkpoint.load_configs(Path("out", f"a-seed{s}"))[1].time_limit for s in (5, 6)]
    assert limits[0] == 60 and 50 < limits[1] < 60  # what is left of it
    table = capsys.readouterr().out.split("at 4 steps")[1]
    assert f"{sum(losses) / 2:.4f} ±{abs(losses[0] - losses[1]) / 2**0.5:.4f}" in table
