"""`kill -9`, again and again: each kill costs only the steps since the last checkpoint."""

import json
import random
import signal
import time
from pathlib import Path

import pytest
from helpers import curve
from test_interruptions import wait_for
from test_processes import BOTH, RUNS

from nanogpt import checkpoint

SETTINGS = {"lr_decay_iters": 10_000, "resume": "auto", "optimizer": "muon", "eval_iters": 1}
SETTINGS |= {"gradient_accumulation_steps": 1}


def kill(program, out: Path, rng: random.Random, when: str) -> bool:
    """Kills a run at a random moment after its first new step: within a save, after one, or at any time.

    Returns whether a save was under way.
    """
    file, last = out / "metrics.jsonl", checkpoint.list_checkpoints(out)[-1:]
    saving = lambda: any(out.glob(".tmp-step-*"))  # noqa: E731
    wait_for(file.exists)
    before = file.stat()
    wait_for(lambda: file.stat().st_ino != before.st_ino or file.stat().st_size > before.st_size, pause=0.001)
    if when == "save":
        wait_for(saving, pause=0)
        time.sleep(rng.random() * 0.015)
    elif when == "after":
        wait_for(lambda: checkpoint.list_checkpoints(out)[-1:] != last)
    if when != "save":
        time.sleep(rng.random() * 0.3)
    hit = saving()
    program.send_signal(signal.SIGKILL)
    program.wait()
    return hit


@pytest.mark.parametrize("kills, seed", [(20, 1), pytest.param(150, 2, marks=pytest.mark.nightly)])
def test_a_run_killed_many_times_ends_as_the_one_that_was_left_alone(zygote, tmp_path, data, kills, seed):
    rng, step, hits = random.Random(seed), 0, 0
    killed, calm = tmp_path / "killed", tmp_path / "calm"

    def live(out: Path, **settings):
        return zygote.start(RUNS, json.dumps([{"out_dir": str(out), **SETTINGS, **settings}]), cwd=tmp_path)

    for i in range(kills):
        program = live(killed, max_iters=10_000, eval_interval=2)
        hits += kill(program, killed, rng, ("save", "after", "save", "any")[i % 4])
        assert all(checkpoint.find_damage(path) is None for path in checkpoint.list_checkpoints(killed))
        if checkpoint.list_checkpoints(killed):
            now = int(checkpoint.find(killed, "last").name[5:])
            assert now >= step, f"step {step} is lost: the last whole one is {now}"
            step = now
    assert hits >= kills // 10 and step >= kills // 4  # else nothing was tried
    for out, interval in ((killed, 2), (calm, 10_000)):
        done = live(out, max_iters=step + 10, eval_interval=interval).wait()
        assert done.returncode == 0, done.stderr
    for file in BOTH:
        assert (killed / "last" / file).read_bytes() == (calm / "last" / file).read_bytes()
    curves = [curve(out, "train_loss") for out in (killed, calm)]
    assert len(curves[0]) == step + 10 and curves[0] == curves[1]
    assert {path.name for path in killed.glob(".*")} <= {".run", ".lock"}
