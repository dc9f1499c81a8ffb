"""Estimated and measured memory of a step in bytes: `step_memory.py "GPTConfig(…)" "TrainConfig(…)"`."""

import sys
import threading
import time

import psutil
import torch

from nanogpt import GPT, GPTConfig, TrainConfig
from nanogpt.ops.cpu import CPU, keep_freed_memory
from nanogpt.optim import make_optimizers
from nanogpt.run import plan


def steps(config: GPTConfig, train: TrainConfig, number: int) -> None:
    model = GPT(config, CPU)
    optimizers = make_optimizers(model, train)
    idx = torch.zeros(train.batch_size, config.block_size, dtype=torch.long)
    for _ in range(number):
        model(idx, idx).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def watch(process: psutil.Process, found: list[int], done: threading.Event) -> None:
    while not done.is_set():
        found.append(process.memory_info().rss)
        time.sleep(0.002)


if __name__ == "__main__":
    config, train = map(eval, sys.argv[1:])
    estimated = sum(plan.memory(config, train, "fp32").values())
    keep_freed_memory()
    steps(GPTConfig(vocab_size=64, block_size=8, n_layer=1, n_head=1, n_embd=8), train, 1)  # what torch itself takes
    process, found, done = psutil.Process(), [], threading.Event()
    base = process.memory_info().rss
    thread = threading.Thread(target=watch, args=(process, found, done))
    thread.start()
    steps(config, train, 3)
    done.set()
    thread.join()
    print(estimated, max(found) - base)
