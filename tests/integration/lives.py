"""A run that is killed again and again, for test_kill.py: `python lives.py KILLS SEED`, in a directory with `data/`.

Each life is a fork of this process, which has everything imported and has not computed anything: a life starts in a
tenth of a second. Half of the kills wait for a save to begin and strike within it, a quarter wait until one is done, so
that a slow machine gets on as well. After each, what has a checkpoint's name must be whole.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch._dynamo  # noqa: F401 (which making an optimizer imports: a second that each life would spend again)

from nanogpt import GPTConfig, TrainConfig, checkpoint
from nanogpt.run.main import train_to_the_end
from nanogpt.run.prepare import prepare

MODEL = GPTConfig(block_size=16, n_layer=2, n_head=2, n_embd=32, dropout=0.1)
OUT = Path("out/killed")


def live(**settings) -> int:
    """Starts a life of the run; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        fields = {"data": "data", "precision": "fp32", "device": "cpu", "threads": 1, "batch_size": 4, "eval_iters": 1}
        fields |= {"lr_decay_iters": 10_000, "log_interval": 1, "resume": "auto", "optimizer": "muon"}
        train_to_the_end(*prepare(MODEL, TrainConfig(**fields | settings)))
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def saving() -> bool:
    return any(OUT.glob(".tmp-*-step-*"))


def kill(pid: int, chance: random.Random, in_a_save: bool, after_a_save: bool) -> bool:
    """Kills a life at a random moment after its first new step; returns whether a save was under way."""
    metrics = OUT / "metrics.jsonl"
    began, last = time.monotonic(), checkpoint.steps(OUT)[-1:]
    before = None
    while time.monotonic() < began + 30:
        size = metrics.stat().st_size if metrics.exists() else 0
        if before is not None and size > before:
            break
        before = size if before is None or size < before else before
        time.sleep(0.001)
    if in_a_save:
        while not saving() and time.monotonic() < began + 30:
            pass
        time.sleep(chance.random() * 0.015)
    else:
        while after_a_save and checkpoint.steps(OUT)[-1:] == last and time.monotonic() < began + 30:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.3)
    hit = saving()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return hit


def main(kills: int, seed: int) -> None:
    chance = random.Random(seed)
    hits, step = 0, 0
    for i in range(kills):
        pid = live(out_dir=str(OUT), max_iters=10_000, eval_interval=2)
        hits += kill(pid, chance, in_a_save=i % 2 == 0, after_a_save=i % 4 == 1)
        for there in checkpoint.steps(OUT):
            assert checkpoint.check(there) is None, f"{there}: {checkpoint.check(there)}"
        if checkpoint.steps(OUT):
            now = int(checkpoint.find(OUT, ("last",)).name[5:])
            assert now >= step, f"step {step} is lost: the last whole one is {now}"
            step = now
    for settings in ({"out_dir": str(OUT), "eval_interval": 2}, {"out_dir": "out/calm", "eval_interval": 10_000}):
        _, status = os.waitpid(live(**settings, max_iters=step + 10), 0)
        assert status == 0
    print(f"kills {kills}, {hits} of them in a save; steps {step + 10}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
