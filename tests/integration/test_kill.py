"""`kill -9`, again and again: each kill costs only the steps since the last checkpoint."""

import json
import random
import signal
import time
from pathlib import Path

import pytest
from test_processes import RUNS, curve
from zygote import PATIENCE

from nanogpt import checkpoint

SETTINGS = {"lr_decay_iters": 10_000, "resume": "auto", "optimizer": "muon", "eval_iters": 1}
SETTINGS |= {"gradient_accumulation_steps": 1}


def wait_for(condition, pause: float = 0.001) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(pause)


def kill(run, out: Path, rng: random.Random, in_a_save: bool, after_a_save: bool) -> bool:
    """Kills a run at a random moment after its first new step; returns whether a save was under way.

    Half of the kills wait for a save to begin and strike within it, a quarter wait until one is done, so that a slow
    machine gets on as well.
    """
    file, last = out / "metrics.jsonl", checkpoint.list_checkpoints(out)[-1:]
    saving = lambda: any(out.glob(".tmp-*-step-*"))  # noqa: E731
    wait_for(file.exists)
    inode, size = file.stat().st_ino, file.stat().st_size
    wait_for(lambda: file.stat().st_ino != inode or file.stat().st_size > size)
    if in_a_save:
        wait_for(saving, pause=0)
        time.sleep(rng.random() * 0.015)
    else:
        wait_for(lambda: not after_a_save or checkpoint.list_checkpoints(out)[-1:] != last)
        time.sleep(rng.random() * 0.3)
    hit = saving()
    run.send_signal(signal.SIGKILL)
    run.wait()
    return hit


@pytest.mark.parametrize("kills, seed", [(20, 1), *(pytest.param(50, n, marks=pytest.mark.nightly) for n in (2, 3, 4))])
def test_a_run_killed_many_times_ends_as_the_one_that_was_left_alone(zygote, tmp_path, data, kills, seed):
    rng, step, hits = random.Random(seed), 0, 0
    killed, calm = tmp_path / "out" / "killed", tmp_path / "out" / "calm"

    def live(out: Path, **settings):
        return zygote.start(RUNS, json.dumps([{"out_dir": str(out), **SETTINGS, **settings}]), cwd=tmp_path)

    for i in range(kills):
        run = live(killed, max_iters=10_000, eval_interval=2)
        hits += kill(run, killed, rng, in_a_save=i % 2 == 0, after_a_save=i % 4 == 1)
        for path in checkpoint.list_checkpoints(killed):
            assert checkpoint.find_damage(path) is None
        if checkpoint.list_checkpoints(killed):
            now = int(checkpoint.find(killed, ("last",)).name[5:])
            assert now >= step, f"step {step} is lost: the last whole one is {now}"
            step = now
    assert hits >= kills // 10 and step >= kills // 4  # else nothing was tried
    for out, interval in ((killed, 2), (calm, 10_000)):
        done = live(out, max_iters=step + 10, eval_interval=interval).wait()
        assert done.returncode == 0, done.stderr
    for file in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        assert (killed / "last" / file).read_bytes() == (calm / "last" / file).read_bytes()
    curves = [curve(tmp_path, out.name, "train_loss") for out in (killed, calm)]
    assert len(curves[0]) == step + 10 and curves[0] == curves[1]
    assert {path.name for path in killed.glob(".*")} <= {".run", ".lock", ".lock.json"}
