"""Estimated and measured memory of a step in bytes: `step_memory.py "GPTConfig(…)" "TrainConfig(…)"`."""

import resource
import sys

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


if __name__ == "__main__":
    config, train = map(eval, sys.argv[1:])
    estimated = sum(plan.memory(config, train, "fp32").values())
    keep_freed_memory()
    steps(GPTConfig(vocab_size=64, block_size=8, n_layer=1, n_head=1, n_embd=8), train, 1)  # what torch itself takes
    base = psutil.Process().memory_info().rss
    steps(config, train, 3)
    print(estimated, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)
