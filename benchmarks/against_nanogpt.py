"""Compares a training step of recipes/shakespeare_nanogpt.py with one of nanoGPT's, in turns.

    python benchmarks/against_nanogpt.py nanoGPT    # a clone of github.com/karpathy/nanoGPT
    python benchmarks/against_nanogpt.py nanoGPT --precision fp32 --rounds 201

Both train the model of nanoGPT's README for the CPU (4 layers, 128 channels, 12 x 64 tokens,
804,096 parameters) on random tokens, in one process, a few steps each in turn: batches, forward,
backward, clipping, update. nanoGPT computes in fp32 on a CPU. The last line is how many times
faster a step is here: the median over the rounds, and its quartiles.

`--losses 200` checks that both are the same training: from the same weights, on the same batches of
a text, in fp32 and with nanoGPT's learning rates, it prints the largest difference between their
losses in 200 steps.
"""

import argparse
import inspect
import math
import os
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch

from data_prep.text import prepare as prepare_text
from nanogpt import GPTConfig, TrainConfig, train
from nanogpt.hub.nanogpt import write_checkpoint
from nanogpt.run.guard import rehearse
from nanogpt.run.prepare import prepare
from nanogpt.train import Parts, State

SIZES = {"block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}
VOCAB, BATCH, WARMUP, STEPS, RATES = 65, 12, 100, 2000, (1e-3, 1e-4)


def make_run(directory: Path, text: str, precision: str) -> tuple[TrainConfig, Parts, State]:
    """A run of this package that has not taken a step; its data are in `directory`."""
    source = directory / "input.txt"
    source.write_text(text)
    prepare_text([str(source)], directory, say=lambda line: None)
    config = TrainConfig(
        out_dir=str(directory / "out"),
        data=str(directory),
        batch_size=BATCH,
        learning_rate=RATES[0],
        min_lr=RATES[1],
        warmup_iters=WARMUP,
        max_iters=STEPS,
        beta2=0.99,
        precision=precision,
        device="cpu",
        compile="false",
    )
    config, parts, state = prepare(GPTConfig(**SIZES, dropout=0.0), config, quiet=True)
    return rehearse(config, parts, state), parts, state


def make_nanogpt(folder: Path, vocab_size: int) -> tuple:
    """nanoGPT's model and optimizer."""
    sys.path.insert(0, str(folder))
    import model as nanogpt

    model = nanogpt.GPT(nanogpt.GPTConfig(**SIZES, vocab_size=vocab_size, dropout=0.0, bias=False))
    return model, model.configure_optimizers(0.1, RATES[0], (0.9, 0.99), "cpu")


def update(
    model, optimizer, x: torch.Tensor, y: torch.Tensor, between=lambda: None
) -> torch.Tensor:
    """A step in nanoGPT's train.py, which assembles the next batch `between` the passes."""
    _, loss = model(x, y)
    between()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def nanogpts_step(folder: Path, directory: Path):
    """A step of nanoGPT with its own batches."""
    model, optimizer = make_nanogpt(folder, VOCAB)

    def get_batch():
        data = np.memmap(directory / "train.bin", dtype=np.uint16, mode="r")
        starts = torch.randint(len(data) - SIZES["block_size"], (BATCH,))
        rows = [
            torch.from_numpy(data[i : i + SIZES["block_size"] + 1].astype(np.int64)) for i in starts
        ]
        return torch.stack([row[:-1] for row in rows]), torch.stack([row[1:] for row in rows])

    batches = [get_batch()]
    return lambda: update(model, optimizer, *batches.pop(), lambda: batches.append(get_batch()))


def learning_rate(step: int) -> float:
    """nanoGPT's schedule: linear warm-up, then a cosine to the smallest rate."""
    if step < WARMUP:
        return RATES[0] * (step + 1) / (WARMUP + 1)
    return RATES[1] + (RATES[0] - RATES[1]) * 0.5 * (
        1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))
    )


def largest_difference(folder: Path, directory: Path, steps: int) -> float:
    """Between the losses of both on the same batches, from the same weights."""
    text = "".join(inspect.getsource(module) for module in (argparse, statistics, inspect))
    config, parts, state = make_run(directory, text.encode("ascii", "ignore").decode(), "fp32")
    write_checkpoint(parts.gpt, directory / "ckpt.pt", 0, 0.0)
    model, optimizer = make_nanogpt(folder, parts.gpt.config.vocab_size)
    model.load_state_dict(torch.load(directory / "ckpt.pt", weights_only=True)["model"])
    differences = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        theirs = update(model, optimizer, *train.micro_batch(config, parts, state, 0))
        parts.tally.restart(state)
        train.step(config, parts, state)
        differences.append(abs(theirs.item() - parts.tally.loss.item()))
        if step % 50 == 49:
            here = parts.tally.loss.item()
            print(f"step {step + 1}: nanoGPT {theirs.item():.6f}, here {here:.6f}")
    return max(differences)


def seconds(step, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="NANOGPT", help="a clone of nanoGPT")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--losses", type=int, metavar="STEPS", help="compare losses, not times")
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--repeats", type=int, default=5, help="steps in a row")
    args = parser.parse_args()
    alphabet = np.array([chr(48 + i) for i in range(VOCAB)])
    random_text = "".join(alphabet[np.random.default_rng(0).integers(VOCAB, size=1_000_000)])
    with TemporaryDirectory() as name:
        directory = Path(name)
        if args.losses:
            largest = largest_difference(args.folder, directory, args.losses)
            print(f"largest difference: {largest:.1e}")
            return
        run = make_run(directory, random_text, args.precision)
        steps = nanogpts_step(args.folder, directory), lambda: train.step(*run)
        for step in steps:
            seconds(step, args.repeats)  # warms up
        times = [[seconds(step, args.repeats) for step in steps] for _ in range(args.rounds)]
    ratios = statistics.quantiles([nanogpt / here for nanogpt, here in times], n=4)
    medians = [1000 * statistics.median(column) for column in zip(*times, strict=True)]
    clock = psutil.cpu_freq()
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    print(f"torch {torch.__version__}, {threads} threads, load {load:.2f}, {clock}")
    print(f"nanoGPT {medians[0]:.1f} ms a step, here ({args.precision}) {medians[1]:.1f} ms")
    print(f"{ratios[1]:.2f} times faster ({ratios[0]:.2f} to {ratios[2]:.2f})")


if __name__ == "__main__":
    main()
