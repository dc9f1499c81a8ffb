"""Measures the share of a training step that its matmuls and attention take on a CPU.

    python benchmarks/step_share.py                 # the laptop model, in the precision of training
    python benchmarks/step_share.py --model classic --precision fp32

The step, the matmuls of its Linear layers (forward, and two backward), its attention and Muon's
Newton-Schulz iterations take turns in one process, on the same shapes and threads. The share is the
sum of the last three over the step, as median and quartiles. LOG.md has results.
"""

import argparse
import os
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from nanogpt.config import TrainConfig
from nanogpt.extras.bench import interleave, start
from nanogpt.model import Linear
from nanogpt.ops.sharded import DTYPES
from nanogpt.optim import Muon, orthogonalize
from nanogpt.train import Parts, step


def matmuls(config: TrainConfig, parts: Parts, dtype: torch.dtype) -> Callable[[], None]:
    """Every Linear's matmuls: y = x W^T, and the gradients of x and W."""
    rows = config.batch_size * parts.gpt.config.block_size
    tensors = []
    for module in parts.gpt.modules():
        if isinstance(module, Linear):
            V, C = module.weight.shape
            shapes = ((rows, C), (V, C), (rows, V))
            tensors.append([torch.randn(shape, dtype=dtype) for shape in shapes])

    def run() -> None:
        for x, weight, grad in tensors:
            x @ weight.mT, grad @ weight, grad.mT @ x

    return run


def attention(config: TrainConfig, parts: Parts, dtype: torch.dtype) -> Callable[[], None]:
    """Causal attention of every block, forward and backward."""
    c, op = parts.gpt.config, parts.gpt.ops.attention
    shape = (config.batch_size, c.n_head, c.block_size, c.head_size)
    q, k, v, grad = (torch.randn(shape, dtype=dtype, requires_grad=i < 3) for i in range(4))
    forward = torch.compile(op, dynamic=False) if parts.compiled else op

    def run() -> None:
        for _ in range(c.n_layer):
            forward(q, k, v, causal=True).backward(grad)

    return run


def newton_schulz(parts: Parts) -> Callable[[], None]:
    """Muon's iterations: the matrices of one shape are one batch."""
    shapes: Counter[tuple] = Counter()
    dtype = torch.float32
    for optimizer in parts.optimizers:
        if isinstance(optimizer, Muon):
            dtype = optimizer.dtype
            (group,) = optimizer.param_groups
            for p, rows in zip(group["params"], group["rows"], strict=True):
                shapes.update((height, p.size(1)) for height in rows or [p.size(0)])
    batches = [torch.randn(count, *shape, dtype=dtype) for shape, count in shapes.items()]

    def run() -> None:
        for batch in batches:
            orthogonalize(batch)

    return run


def measure(args: argparse.Namespace) -> str:
    """One line: milliseconds of a step and of its parts, and their share."""
    with TemporaryDirectory() as directory:
        config, parts, state = start(Path(directory), args)
        dtype = DTYPES.get(parts.accelerator.mixed_precision, torch.float32)
        contenders = {
            "step": lambda: step(config, parts, state),
            "matmuls": matmuls(config, parts, dtype),
            "attention": attention(config, parts, dtype),
            "Newton-Schulz": newton_schulz(parts),
        }
        seconds = interleave(contenders, args.rounds, parts.device)
    times = ", ".join(f"{k} {1e3 * statistics.median(v):.1f} ms" for k, v in seconds.items())
    rounds = zip(*seconds.values(), strict=True)
    low, median, high = statistics.quantiles([sum(inner) / whole for whole, *inner in rounds], n=4)
    how = f"{args.model}, {dtype}{', compiled' if parts.compiled else ''}"
    return f"{how}: {times}; share {median:.0%} ({low:.0%} to {high:.0%})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("classic", "laptop"), default="laptop")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--rounds", type=int, default=25, help="default: 25")
    args = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    print(measure(argparse.Namespace(**vars(args), device="cpu", batch_size=None)))


if __name__ == "__main__":
    main()
