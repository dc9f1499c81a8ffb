"""`kill -9`, fifty times: each kill costs only the steps since the last checkpoint."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import writer
from nanogpt import checkpoint
from nanogpt.run import metrics


@pytest.mark.slow
def test_a_run_killed_fifty_times_ends_as_the_one_that_was_left_alone(tmp_path, text):
    writer.write(tmp_path / "data", text, "char", 0.1, "made up")
    command = [sys.executable, Path(__file__).with_name("lives.py"), "50", "1"]
    done = subprocess.run(map(str, command), cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    hits, steps = map(int, re.search(r"kills 50, (\d+) of them in a save; steps (\d+)", done.stdout).groups())
    assert hits >= 15
    assert steps > 50
    assert "is damaged" not in done.stdout
    killed, calm = tmp_path / "out" / "killed", tmp_path / "out" / "calm"
    for file in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        ends = [(out / "last" / file).read_bytes() for out in (killed, calm)]
        assert ends[0] == ends[1]
    curves = [
        {line["step"]: line["train_loss"] for line in metrics.read(out / "metrics.jsonl") if "lr" in line}
        for out in (killed, calm)
    ]
    assert len(curves[0]) == steps and curves[0] == curves[1]
    evaluations = [line["step"] for line in metrics.read(killed / "metrics.jsonl") if "val_loss" in line]
    assert len(evaluations) == len(set(evaluations))
    assert {path.name for path in killed.glob(".*")} <= {".run", ".lock", ".lock.json"}
