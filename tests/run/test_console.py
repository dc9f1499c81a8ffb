"""What a run says while it trains, and at its end."""

import json
import os
import signal
import sys
import time

import pytest
import torch

from nanogpt import __version__
from nanogpt.run import console, metrics


def test_a_run_ends_with_its_result_as_json(make_run):
    run = make_run(max_iters=8, eval_interval=4, log_interval=2)
    run.train()
    result = json.loads((run.out_dir / "result.json").read_text())
    lines = metrics.read(run.out_dir / "metrics.jsonl")
    best = min((line for line in lines if "val_loss" in line), key=lambda line: line["val_loss"])
    assert result["val_loss"] == best["val_loss"]
    assert (result["best_step"], result["reason"], result["version"]) == (best["step"], "finished", __version__)
    assert (result["step"], result["tokens"]) == (8, 8 * 4 * 16)
    assert result["tokens_per_second"] == pytest.approx(8 * 4 * 16 / run.state.train_seconds, abs=1)


@pytest.mark.parametrize("how, reason", [("signal", "interrupted"), ("time", "time limit"), ("nan", "failed")])
def test_the_result_says_why_a_run_ended_early(make_run, how, reason):
    run = make_run(max_iters=50, log_interval=1, time_limit=60)
    assert run.interrupts.end < time.monotonic() + 3600
    step = run.step

    def troubled():
        step()
        if run.state.step == 3:
            if how == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            elif how == "time":
                run.interrupts.end = 0.0
            else:
                run.tally.bad_in_a_row += 5
                run.interrupts.save_error = "an earlier save failed"  # which is not what ended the run

    run.step = troubled
    with pytest.raises(SystemExit):
        run.train()
    result = json.loads((run.out_dir / "result.json").read_text())
    assert (result["reason"], result["step"]) == (reason, 3) and "step 3" in result["message"]
    make_run(max_iters=50, resume="auto")
    assert not (run.out_dir / "result.json").exists()  # the run goes on


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])  # of a GPU, a CPU, Python
def test_a_sample_that_does_not_fit_is_a_warning_and_the_run_is_complete(make_run, monkeypatch, capsys, error):
    def full(*args):
        raise error("out of memory")

    monkeypatch.setattr(console, "sample_text", full)
    make_run(sample_tokens=0).train()
    shown = capsys.readouterr().out
    assert "warning: no sample: out of memory" in shown and "next:  nanogpt sample" in shown


def test_a_terminal_that_is_closed_does_not_end_a_run(make_run, monkeypatch):
    run = make_run()

    def write(text):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys.stdout, "write", write)
    run.train()
    assert json.loads((run.out_dir / "result.json").read_text())["reason"] == "finished"
