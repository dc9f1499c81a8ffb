"""Throughput of training on this machine, compared with that of a large matmul in the same run.

    nanogpt bench               # the classic small model: 4 layers, 128 channels, 12 x 64 tokens
    nanogpt bench --model gpt2 --batch_size 12  # a GPU
    nanogpt bench --profile     # the operators that take the time of a training step

Training and matmul take turns for several rounds, and the median is shown with its spread: machines
are noisy, and ratios of interleaved measurements mean more than absolute figures.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from nanogpt.config import TrainConfig
from nanogpt.model import GPTConfig
from nanogpt.ops.sharded import DTYPES
from nanogpt.run.device import gpu_gib
from nanogpt.run.guard import rehearse
from nanogpt.run.prepare import prepare
from nanogpt.text.tokenizer import char_tokenizer
from nanogpt.train import Parts, State, step, synchronize, tokens_per_step

SMALL = {"vocab_size": 65, "block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}
LAPTOP = SMALL | {"block_size": 256, "n_inner": 320, "tie_embeddings": False}
BABY = {"vocab_size": 65, "block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384}
MODELS = {  # configuration and sequences in a batch
    "classic": (GPTConfig(**SMALL), 12),
    "laptop": (GPTConfig.modern(**LAPTOP), 8),  # recipes/shakespeare.py
    "baby": (GPTConfig.modern(**BABY), 64),
    "gpt2": (GPTConfig(vocab_size=50257, bias=True, mlp="gelu_tanh"), 1),
}
STEPS = 4  # training steps in a call that is timed


def interleave(
    contenders: dict[str, Callable], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every call. Contenders take turns; a first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round in range(rounds + 1):
        for name, run in contenders.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if round:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def start(directory: Path, args) -> tuple[TrainConfig, Parts, State]:
    """A run that has not taken a step, on random tokens in `directory`."""
    config, usual_batch_size = MODELS[args.model]
    if args.model == "gpt2" and gpu_gib(args.device):
        usual_batch_size = 12  # a single sequence would keep a GPU waiting for the host
    batch_size, vocab_size = args.batch_size or usual_batch_size, config.vocab_size
    tokens = max(200_000, 4 * batch_size * config.block_size)
    ids = np.random.default_rng(0).integers(vocab_size, size=tokens, dtype="<u2")
    for split in ("train", "val"):
        ids.tofile(directory / f"{split}.bin")
    counts = {"tokens": tokens, "bytes": tokens}
    meta = {"vocab_size": vocab_size, "dtype": "uint16", "splits": {"train": counts, "val": counts}}
    (directory / "meta.json").write_text(json.dumps(meta))
    char_tokenizer(chr(256 + i) for i in range(vocab_size)).save(directory)
    train_config = TrainConfig(
        out_dir=str(directory / "out"),
        data=str(directory),
        batch_size=batch_size,
        precision=args.precision,
        device=args.device,
        optimizer="muon" if config.norm == "rmsnorm" else "adamw",
    )
    train_config, parts, state = prepare(config, train_config, quiet=True)
    return rehearse(train_config, parts, state), parts, state


def measure(config: TrainConfig, parts: Parts, state: State, rounds: int) -> dict:
    """Figures of a training step; `of_limit` is its share of a matmul's operations per second."""
    size = 1024 if parts.device.type == "cpu" else 8192
    dtype = DTYPES.get(parts.accelerator.mixed_precision, torch.float32)
    matrix = torch.randn(size, size, device=parts.device, dtype=dtype)

    def train() -> None:
        for _ in range(STEPS):
            step(config, parts, state)

    contenders = {"train": train, "matmul": lambda: matrix @ matrix}
    seconds = interleave(contenders, rounds, parts.device)
    median = statistics.median(seconds["train"])
    tokens = STEPS * tokens_per_step(config, parts.gpt.config)
    flops = tokens / median * parts.gpt.flops_per_token()
    return {
        "ms": median * 1e3,
        "rate": tokens / median,
        "spread": (max(seconds["train"]) - min(seconds["train"])) / median,
        "of_limit": flops / (2 * size**3 / statistics.median(seconds["matmul"])),
        "mfu": flops / parts.peak_flops if parts.peak_flops else None,
    }


def run(args) -> None:
    """Prints the figures in three lines, or as one JSON object."""
    with tempfile.TemporaryDirectory(prefix="nanogpt-bench-") as directory:
        config, parts, state = start(Path(directory), args)
        if args.profile:
            step(config, parts, state)
            with torch.profiler.profile() as profiler:
                for _ in range(10):
                    step(config, parts, state)
            order = f"self_{'cuda' if parts.device.type == 'cuda' else 'cpu'}_time_total"
            averages = profiler.key_averages()
            print(averages.table(sort_by=order, row_limit=20, max_name_column_width=50))
            return
        found = measure(config, parts, state, args.rounds)
    env = parts.settings["environment"]
    if args.json:
        print(json.dumps({"model": args.model, "environment": env, **found}))
        return
    print(
        f"{parts.gpt.get_num_params():,} parameters, batches of {config.batch_size} x "
        f"{parts.gpt.config.block_size}; {env['device']}, {env['threads']} threads, "
        f"{env['precision']}{', compiled' if parts.compiled else ''}; "
        f"median of {args.rounds} rounds"
    )
    print(f"{found['rate']:,.0f} tokens/s, spread {found['spread']:.0%}")
    mfu = f", MFU {found['mfu']:.1%}" if found["mfu"] else ""
    print(f"{found['of_limit']:.0%} of the operations per second of a large matmul{mfu}")
