"""Measures what each part of nanogpt/ops/ gains on a CPU, for a training step and for sampling.

    python benchmarks/cpu_parts.py
    python benchmarks/cpu_parts.py --parts rms_norm attention --rounds 15

A part is compared with its absence while all other parts but `compile` are in use. Both take turns
in one process (`memory`, a setting of the whole process, takes two), and a round compares neighbors
in time. A gain of 1.05 means that the same work takes 5 % longer without the part. Rounds are
short, because virtual machines change their speed within seconds. Run it on an idle machine; the
median counts.
"""

import argparse
import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable

import psutil
import torch
from torch import nn

from nanogpt import GPT, GPTConfig, TrainConfig
from nanogpt.ops import cpu
from nanogpt.ops.decode import compile_decoding
from nanogpt.optim import make_optimizers
from nanogpt.run.device import compile_model, default_threads

PARTS = {
    "rms_norm": lambda model: model.use(model.ops._replace(rms_norm=cpu.fused_rms_norm)),
    "attention": lambda model: model.use(model.ops._replace(attention=cpu.fast_attention)),
    "dropout": lambda model: model.use(model.ops._replace(dropout=cpu.fast_dropout)),
    "memory": lambda model: cpu.keep_freed_memory(),
    "compile": lambda model: compile_model(model, whole=False),
    "decode": compile_decoding,
}
CLASSIC = GPTConfig(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128)
UNTIED = {"vocab_size": 65, "tie_embeddings": False}
LAPTOP = GPTConfig.modern(**UNTIED, block_size=256, n_layer=4, n_head=4, n_embd=128, n_inner=320)
DROPOUT = GPTConfig.modern(
    **UNTIED, block_size=256, n_layer=5, n_head=5, n_embd=160, n_inner=416, dropout=0.05
)
GPT2 = GPTConfig(vocab_size=50257, bias=True, mlp="gelu_tanh")
TRAINING = {  # configuration, sequences in a batch, optimizer, autocast
    "classic-fp32": (CLASSIC, 12, "adamw", None),
    "classic-bf16": (CLASSIC, 12, "adamw", torch.bfloat16),
    "laptop-fp32": (LAPTOP, 8, "muon", None),
    "laptop-bf16": (LAPTOP, 8, "muon", torch.bfloat16),
    "dropout-fp32": (DROPOUT, 12, "muon", None),
}
SAMPLING = {"sample-gpt2-fp32": (GPT2, torch.float32), "sample-gpt2-bf16": (GPT2, torch.bfloat16)}
Work = Callable[[], None]


def make_work(setup: str, parts: list[str], repeats: int) -> Work:
    """A function that takes `repeats` training steps, or samples as many tokens."""
    torch.manual_seed(0)
    return (make_training if setup in TRAINING else make_sampling)(setup, parts, repeats)


def make_training(setup: str, parts: list[str], steps: int) -> Work:
    config, batch_size, optimizer, dtype = TRAINING[setup]
    model = GPT(config)
    for part in parts:
        PARTS[part](model)
    train_config = TrainConfig(optimizer=optimizer, batch_size=batch_size)
    optimizers = make_optimizers(model, train_config, dtype or torch.float32)
    tokens = torch.randint(config.vocab_size, (batch_size, config.block_size + 1))

    def work() -> None:
        for _ in range(steps):
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                loss = model(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for each in optimizers:
                each.step()
                each.zero_grad()

    return work


def make_sampling(setup: str, parts: list[str], tokens: int) -> Work:
    config, dtype = SAMPLING[setup]
    model = GPT(config).to(dtype).eval()
    for part in parts:
        PARTS[part](model)
    prompt = torch.zeros(1, 8, dtype=torch.long)

    def work() -> None:
        model.generate(prompt, tokens, temperature=0)

    return work


def timed(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def serve(pipe, threads: int, *what) -> None:
    """Runs the work in a process of its own, and sends its seconds, at each request."""
    torch.set_num_threads(threads)
    work = make_work(*what)
    while pipe.recv():
        pipe.send(timed(work))


@contextlib.contextmanager
def in_a_process(*what):
    """A function that returns the seconds of the work, carried out in a new process."""
    context = multiprocessing.get_context("spawn")
    parent_end, child_end = context.Pipe()
    process = context.Process(
        target=serve, args=(child_end, torch.get_num_threads(), *what), daemon=True
    )
    process.start()
    yield lambda: parent_end.send(True) or parent_end.recv()
    parent_end.send(False)
    process.join()


@contextlib.contextmanager
def in_this_process(*what):
    work = make_work(*what)
    yield lambda: timed(work)


def compare(setup: str, part: str, rounds: int, repeats: int) -> None:
    """Prints the milliseconds of a step or token with the part and without, and the gain."""
    others = [name for name in PARTS if name not in (part, "compile", "decode")]
    if setup in SAMPLING:
        others = []
    place = in_a_process if part == "memory" else in_this_process
    with (
        place(setup, [*others, part], repeats) as with_part,
        place(setup, others, repeats) as without,
    ):
        with_part(), without()  # warms up
        seconds = [
            (with_part(), without()) if i % 2 else (without(), with_part())[::-1]
            for i in range(rounds)
        ]
    gains = [slow / fast for fast, slow in seconds]
    columns = zip(*seconds, strict=True)
    fast, slow = (1e3 * statistics.median(column) / repeats for column in columns)
    gain = f"{statistics.median(gains):5.3f} ({min(gains):.3f} to {max(gains):.3f})"
    print(f"{setup:<18}{part:<11}{fast:>9.2f}{slow:>10.2f}   {gain:<24}{conditions()}", flush=True)


def conditions() -> str:
    clock = psutil.cpu_freq()
    speed = f"{clock.current:.0f} MHz" if clock else "clock unknown"
    return f"load {os.getloadavg()[0]:.2f}, {speed}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    setups = [*TRAINING, *SAMPLING]
    parser.add_argument("--setups", nargs="+", choices=setups, default=setups, metavar="SETUP")
    parser.add_argument("--rounds", type=int, default=61)
    parser.add_argument("--repeats", type=int, default=4, help="steps or tokens in a round")
    args = parser.parse_args()
    threads = default_threads(1)
    torch.set_num_threads(threads)
    now = time.strftime("%Y-%m-%d %H:%M")
    print(f"{now}, {threads} threads, torch {torch.__version__}, {conditions()}")
    print(f"{'setup':<18}{'part':<11}{'ms with':>9}{'without':>10}   gain, median (spread)")
    for setup in args.setups:
        for part in args.parts:
            if (part == "decode") == (setup in SAMPLING):
                compare(setup, part, args.rounds, args.repeats)


if __name__ == "__main__":
    main()
