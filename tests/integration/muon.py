"""Muon on several processes against Muon on one: `muon.py DIRECTORY` prints the largest differences as JSON.

Every process gives the same gradients to a model of its own and to one that it shares with the others, as copies or as
shards, and compares the weights after each step. No dimension divides by 2 or 3. A
checkpoint in DIRECTORY is read first if there is one, of whatever number of processes; one is written at the end.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard

from nanogpt import GPT, GPTConfig, TrainConfig, checkpoint, optim

# 9 matrices of 35 x 25 (three in a parameter), 6 of 67 x 25 (two in one), 3 of 25 x 35, 3 of 25 x 67
MODEL = GPTConfig(
    **{"vocab_size": 65, "block_size": 8, "n_layer": 3, "n_embd": 25, "n_head": 5, "head_dim": 7, "n_inner": 67},
    **{"norm": "rmsnorm", "mlp": "swiglu", "dropout": 0.0},
)
SETTINGS = TrainConfig(optimizer="muon", learning_rate=0.01, weight_decay=0.1)


def make(kind: str) -> tuple[GPT, list[torch.optim.Optimizer]]:
    torch.manual_seed(0)
    model = GPT(MODEL)
    if kind == "shards":
        for module in (*model.h, model):
            fully_shard(module)
    optimizers = optim.make_optimizers(model, SETTINGS)
    optimizers[0].copies = dist.get_world_size() if kind == "copies" else 1
    return model, optimizers


def step(model: GPT, optimizers: list[torch.optim.Optimizer], number: int) -> None:
    random = torch.Generator().manual_seed(number)
    for p in model.parameters():
        p.grad = checkpoint.like(torch.randn(p.shape, generator=random), p)
    optim.update(optimizers, torch.tensor(float(number == 2)))  # the gradient of step 2 counts as not finite


def difference(found: tuple[dict, dict], expected: tuple[dict, dict]) -> float:
    """The largest one between weights and optimizer states, as `checkpoint.collect` returns them."""
    pairs = [(a[name], b[name]) for a, b in zip(found, expected, strict=True) for name in a.keys() | b.keys()]
    return max((a - b).abs().max().item() for a, b in pairs)


def compare(directory: Path) -> dict:
    found, products = {}, torch.baddbmm
    for kind in ("copies", "shards"):
        (alone, its), (shared, ours) = make("alone"), make(kind)
        start, numbers = directory / kind, range(5)
        if start.exists():
            checkpoint.restore(start, shared, ours)
            checkpoint.restore(start, alone, its)
            numbers = range(5, 8)
        worst, matrices = 0.0, []
        for number in numbers:
            step(alone, its, number)
            torch.baddbmm = lambda x, *a, **k: (matrices.append(len(x)), products(x, *a, **k))[1]  # noqa: B023
            step(shared, ours, number)
            torch.baddbmm = products
            now = checkpoint.collect(shared, ours)
            worst = max(worst, difference(now, checkpoint.collect(alone, its)))
        steps = len(numbers) - (2 in numbers)
        found[kind] = {"difference": worst, "matrices": sum(matrices) / 10 / steps}  # 2 products, 5 iterations
        dist.barrier()  # all have read the earlier one
        if dist.get_rank() == 0:
            start.mkdir(exist_ok=True)
            for tensors, name in zip(now, (checkpoint.MODEL, checkpoint.OPTIMIZER), strict=True):
                save_file(tensors, start / name)
        dist.barrier()
    return found


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("gloo", **alone)
    optim.SHARED_FROM = 25
    print(json.dumps(compare(directory)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
