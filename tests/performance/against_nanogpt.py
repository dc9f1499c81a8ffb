"""Compares a training step of recipes/shakespeare_nanogpt.py with one of nanoGPT's train.py, in turns. A script.

    python tests/performance/against_nanogpt.py nanoGPT              # a clone of github.com/karpathy/nanoGPT
    python tests/performance/against_nanogpt.py nanoGPT --precision fp32 --rounds 201

Both train the model of nanoGPT's README for the CPU (4 layers, 128 channels, 12 x 64 tokens, 804,096 parameters) on
random tokens, in one process, a few steps each in turn: batches, forward, backward, clipping, update. nanoGPT computes
in fp32 on a CPU. The last line is how many times faster a step is here: the median over the rounds, and its quartiles.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch

from data_prep import writer
from nanogpt import GPTConfig, TrainConfig
from nanogpt.train import Run

SIZES = {"block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}
VOCAB, BATCH = 65, 12


def write_data(directory: Path) -> None:
    """Random characters as a data directory."""
    alphabet = np.array([chr(48 + i) for i in range(VOCAB)])
    text = "".join(alphabet[np.random.default_rng(0).integers(VOCAB, size=1_000_000)])
    writer.write(directory, text, "char", 0.1, "random characters")


def ours(directory: Path, precision: str):
    """A step of this package."""
    config = TrainConfig(
        out_dir=str(directory / "out"),
        data=str(directory),
        batch_size=BATCH,
        precision=precision,
        device="cpu",
        compile="false",
        beta2=0.99,
    )
    run = Run(GPTConfig(**SIZES, dropout=0.0), config, quiet=True)
    run.begin()
    return run.step


def theirs(folder: Path, directory: Path):
    """The statements of a step in nanoGPT's train.py, with its model and its optimizer."""
    sys.path.insert(0, str(folder))
    import model as nanogpt

    model = nanogpt.GPT(nanogpt.GPTConfig(**SIZES, vocab_size=VOCAB, dropout=0.0, bias=False))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")

    def get_batch():
        data = np.memmap(directory / "train.bin", dtype=np.uint16, mode="r")
        starts = torch.randint(len(data) - SIZES["block_size"], (BATCH,))
        rows = [torch.from_numpy(data[i : i + SIZES["block_size"] + 1].astype(np.int64)) for i in starts]
        return torch.stack([row[:-1] for row in rows]), torch.stack([row[1:] for row in rows])

    batch = get_batch()

    def step() -> None:
        nonlocal batch
        _, loss = model(*batch)
        batch = get_batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def seconds(step, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="NANOGPT", help="a clone of nanoGPT")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"], help="of this package")
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--repeats", type=int, default=5, help="steps in a row")
    args = parser.parse_args()
    with TemporaryDirectory() as directory:
        write_data(Path(directory))
        steps = theirs(args.folder, Path(directory)), ours(Path(directory), args.precision)
        for step in steps:
            seconds(step, args.repeats)  # warms up
        times = [[seconds(step, args.repeats) for step in steps] for _ in range(args.rounds)]
    ratios = statistics.quantiles([theirs / ours for theirs, ours in times], n=4)
    medians = [1000 * statistics.median(column) for column in zip(*times, strict=True)]
    clock = psutil.cpu_freq()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.2f}, {clock}")
    print(f"nanoGPT {medians[0]:.1f} ms a step, here ({args.precision}) {medians[1]:.1f} ms")
    print(f"{ratios[1]:.2f} times faster ({ratios[0]:.2f} to {ratios[2]:.2f})")


if __name__ == "__main__":
    main()
