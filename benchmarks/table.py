"""The speed of this package on this machine, as one table of ratios; `make bench`, half an hour.

    python benchmarks/table.py                   # against nanoGPT's settings, trained here in fp32
    python benchmarks/table.py --nanogpt FOLDER  # against a clone of github.com/karpathy/nanoGPT
    python benchmarks/table.py --rows step       # one of learning, best, step, ten

Each row says how busy the machine was (load) and how fast its clock ran, because both change the
figures: the ratios are repeatable below a load of about 0.5 before the start. Seconds are those of
training, without evaluations. Losses are over the whole validation split of tiny Shakespeare, in
nats per character. LOG.md has results and machines.
"""

import argparse
import json
import os
import pickle
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch

from data_prep import shakespeare
from nanogpt import GPT
from nanogpt.extras.bench import MODELS, interleave
from nanogpt.ops.decode import compile_decoding
from nanogpt.run import metrics
from nanogpt.run.device import default_threads

ROOT = Path(__file__).parents[1]
DATA = Path("data/shakespeare_char")
# nanoGPT's settings for a CPU, from its README, without its evaluations, and half of its steps
NANOGPT = (
    "--device=cpu --compile=False --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 "
    "--n_embd=128 --dropout=0.0 --max_iters=1000 --lr_decay_iters=2000 --eval_interval=2000 "
    "--eval_iters=1"
)
NANOGPTS_LOSS = 1.898  # after its 2,000 steps, over the whole split
ON_A_GPU = 1.4697  # of nanoGPT's settings for a GPU, by its README
SHORT = (
    "--block_size=64 --max_iters=150 --batch_size=16 --muon_momentum=0.8 --train_temperature=1 "
    "--eval_interval=1000"
)
FEWER = (
    "--max_iters=790 --short_block_iters=316 --weight_decay=0.1 --train_temperature=0.9 "
    "--eval_interval=10000"
)
SEEDS = (1, 2, 3)


def call(*command: object, cwd: Path | None = None) -> str:
    """The output of a command, which is shown if it fails."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def train(recipe: str, flags: str, out_dir: Path) -> list[dict]:
    """The evaluations of a run: lines of its metrics.jsonl."""
    command = [sys.executable, ROOT / "recipes" / recipe, *flags.split(), "--sample_tokens=0"]
    call(*command, f"--out_dir={out_dir}")
    return [line for line in metrics.read(out_dir / metrics.METRICS) if "val_loss" in line]


def nanogpts_seconds(clone: Path | None, scratch: Path) -> float:
    """Seconds of the 2,000 steps of nanoGPT's settings, by its train.py or by this package."""
    if clone is None:
        flags = f"{NANOGPT} --precision=fp32"
        end = train("shakespeare_nanogpt.py", flags, scratch / "nanogpt")[-1]
        return 2 * end["train_seconds"]
    directory = scratch / "data" / "shakespeare_char"
    directory.mkdir(parents=True)
    for split in ("train.bin", "val.bin"):
        (directory / split).symlink_to((DATA / split).absolute())
    vocab_size = json.loads((DATA / "meta.json").read_text())["vocab_size"]
    (directory / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocab_size}))
    # train.py looks its data up in the current directory
    for name in ("train.py", "model.py", "configurator.py", "config"):
        (scratch / name).symlink_to((clone / name).absolute())
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *NANOGPT.split()]
    output = call(*command, "--log_interval=1", f"--out_dir={scratch / 'out'}", cwd=scratch)
    times = re.findall(r"^iter \d+: .* time ([\d.]+)ms", output, re.MULTILINE)
    # without the first step, which contains an evaluation
    return 2000 * statistics.fmean(float(ms) / 1000 for ms in times[1:])


def learning(clone: Path | None, scratch: Path) -> Iterator[tuple[str, str, str]]:
    """Time to nanoGPT's losses, and the loss after its time."""
    theirs = nanogpts_seconds(clone, scratch)
    who = "nanoGPT" if clone else "its settings, this loop, fp32"
    ends = []
    for seed in SEEDS:
        flags = f"{SHORT} --seed={seed}"
        ends.append(train("shakespeare.py", flags, scratch / f"short{seed}")[-1])
    losses = sorted(end["val_loss"] for end in ends)
    times = sorted(theirs / end["train_seconds"] for end in ends)
    passed = "passed" if losses[1] <= NANOGPTS_LOSS else "not reached"
    yield (
        f"time to {NANOGPTS_LOSS}, {passed}: {losses[1]:.3f} ({losses[0]:.3f} to {losses[-1]:.3f})",
        f"{theirs / times[1]:.1f} s, {who} {theirs:.1f} s",
        f"1/{times[1]:.1f} (1/{times[0]:.1f} to 1/{times[-1]:.1f})",
    )
    flags = f"--train_minutes={theirs / 60} --eval_interval=100000 --seed={SEEDS[0]}"
    loss = train("shakespeare.py", flags, scratch / "same")[-1]["val_loss"]
    yield f"loss of recipes/shakespeare.py after these {theirs:.1f} s", f"{loss:.4f}", "one seed"


def best(scratch: Path) -> Iterator[tuple[str, str, str]]:
    """recipes/shakespeare_best.py: fewer steps, which reach nanoGPT's loss, then as it is."""
    end = train("shakespeare_best.py", FEWER, scratch / "fewer")[-1]
    passed = "passed" if end["val_loss"] <= ON_A_GPU else "not reached"
    yield (
        f"time to {ON_A_GPU}, nanoGPT's loss on a GPU, {passed}: {end['val_loss']:.4f}",
        f"{end['train_seconds']:.0f} s",
        f"{end['tokens'] / 1e6:.2f} million tokens",
    )
    end = train("shakespeare_best.py", "--eval_interval=10000", scratch / "best")[-1]
    seconds = f"{end['train_seconds']:.0f} s"
    yield "loss of recipes/shakespeare_best.py", f"{end['val_loss']:.4f}", seconds


def bench(model: str) -> Iterator[tuple[str, str, str]]:
    """The share of what the machine allows that a training step reaches, by `nanogpt bench`."""
    output = call(sys.executable, *f"-m nanogpt bench --json --model {model}".split())
    row = json.loads(output.splitlines()[-1])
    share = f"{row['of_limit']:.0%} (spread {row['spread']:.0%})"
    yield f"training step, {model}, share of its limit", f"{row['rate']:.1f} tokens/s", share


def batch_of_ten(rounds: int = 7, tokens: int = 300) -> Iterator[tuple[str, str, str]]:
    """Ten samples of the laptop model, against nanoGPT's loop, which has no cache.

    They are compiled as well, once before the time is taken.
    """
    torch.set_num_threads(default_threads(1))
    model, compiled = (GPT(MODELS["laptop"][0]).eval() for _ in range(2))
    compile_decoding(compiled)
    idx = torch.zeros(10, 1, dtype=torch.long)

    @torch.no_grad()
    def nanogpts() -> None:
        x = idx
        for _ in range(tokens):
            logits = model(x[:, -model.config.block_size :])[:, -1] / 0.8
            x = torch.cat((x, torch.multinomial(logits.softmax(-1), 1)), dim=1)

    contenders = {
        "": lambda: model.generate(idx, tokens, temperature=0.8),
        ", compiled": lambda: compiled.generate(idx, tokens, temperature=0.8),
        "nanogpt": nanogpts,
    }
    seconds = interleave(contenders, rounds, torch.device("cpu"))
    theirs = seconds.pop("nanogpt")
    for how, times in seconds.items():
        ratios = statistics.quantiles([b / a for a, b in zip(times, theirs, strict=True)], n=4)
        rate = 10 * tokens / statistics.median(times)
        name = f"sampling, laptop, ten at once{how}, against nanoGPT's loop"
        ratio = f"{ratios[1]:.1f} times ({ratios[0]:.1f} to {ratios[2]:.1f})"
        yield name, f"{rate:.0f} tokens/s", ratio


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, metavar="FOLDER", help="a clone of nanoGPT")
    rows = "learning, best, step, ten; default: all"
    parser.add_argument("--rows", default="", help=rows)
    args = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "true"  # all rows are a CPU's
    file = Path("/proc/cpuinfo")  # only Linux has it
    cpuinfo = file.read_text() if file.is_file() else ""
    found = re.search(r"model name\s*: (.*)", cpuinfo)
    name = found[1] if found else platform.machine()
    features = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    present = [feature for feature in features if f" {feature} " in cpuinfo]
    about = [name, f"{os.cpu_count()} cores", *present, f"torch {torch.__version__}"]
    print(time.strftime("%Y-%m-%d"), *about, sep=", ")
    if not (DATA / "meta.json").exists():  # the text alone may be there
        shakespeare.prepare(DATA)
    with TemporaryDirectory() as name:
        scratch = Path(name)
        parts = {
            "learning": lambda: learning(args.nanogpt and args.nanogpt.absolute(), scratch),
            "best": lambda: best(scratch),
            "step": lambda: chain(bench("classic"), bench("laptop")),
            "ten": batch_of_ten,
        }
        for part, rows in parts.items():
            if args.rows in part:
                before = os.getloadavg()[0]
                for what, figure, ratio in rows():
                    clock = psutil.cpu_freq()
                    state = f"load {before:.1f}" + (f", {clock.current:.0f} MHz" if clock else "")
                    print(f"| {what} | {figure} | {ratio} | {state} |", flush=True)


if __name__ == "__main__":
    main()
