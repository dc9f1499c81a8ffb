"""Loss against compute: trains a ladder of small models, fits a law to their losses, and predicts larger ones.

    python recipes/scaling.py            # writes out/scaling/scaling.json and out/scaling/scaling.png
    python recipes/scaling.py --check    # then trains a run with four times the compute of the last rung, and compares

A rung is one or more runs of recipes/pretrain.py, in out/scaling/depth-N-seed…: the rules of that recipe give the size,
the batch, the rates, and 20 tokens per parameter. Only the context is the same for all, because the loss depends on it.
Runs that differ in their seed alone have losses up to 1 % apart (LOG.md), so the law is fitted to means: the last rung
has --seeds runs (default 1), the others as many as its compute allows, at most 3 x --seeds. On a CPU as many train at a
time as it has cores. What they print is in out/scaling/*.log. A complete run is reused, an interrupted one resumes.
Other flags go to every run, such as --data, or --aspect_ratio=64 on a GPU.

The text is Python's standard library by bytes: small models need a small vocabulary, and no rung may read more than
four epochs, up to which repeated text is nearly as good as new (Muennighoff et al. 2023).

The law is L(C) = E + A C^-alpha with an irreducible loss E (Hoffmann et al. 2022). Three rungs do not determine E, so
it is 0 for them: the pure power law of Kaplan et al. (2020). The band spans the laws that leave one rung out. LOG.md
has what was measured.
"""

import os
import subprocess
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pretrain

from data_prep import python_stdlib
from nanogpt import GPTConfig, TrainConfig, checkpoint
from nanogpt.config import ignored_by
from nanogpt.data.files import read_json
from nanogpt.run import metrics
from nanogpt.run.device import gpu_gib
from nanogpt.run.errors import user_errors
from nanogpt.run.flags import parse, recorded, settings_parser

DATA, OUT_DIR, DEPTHS, ASPECT_RATIO, CONTEXT = (
    "data/python_bytes",
    "out/scaling",
    "2,3,4,5",
    12,
    128,
)  # for a CPU
EPOCHS, FACTOR, SEEDS = 4, 4, 1


class Planned(NamedTuple):
    depth: int
    seed: int
    out_dir: Path
    compute: float  # floating-point operations in all
    epochs: float
    settings: dict  # of the model and the training
    command: list[str]


def power_law(compute: np.ndarray, losses: np.ndarray, floor: float) -> tuple[float, float, float]:
    """(E, A, alpha) with E = `floor`: a straight line through the logarithms, by least squares."""
    slope, intercept = np.polyfit(np.log(compute), np.log(losses - floor), 1)
    return floor, float(np.exp(intercept)), float(-slope)


def predict(law: tuple[float, float, float], compute):
    return law[0] + law[1] * np.asarray(compute, float) ** -law[2]


def fit(compute: np.ndarray, losses: np.ndarray, with_floor: bool) -> tuple[float, float, float]:
    """The law with the least squares of relative errors, over a grid of E that is refined around the best."""

    def error(floor: float) -> float:
        return float(
            np.square(np.log(predict(power_law(compute, losses, floor), compute) / losses)).sum()
        )

    best, width, most = 0.0, float(losses.min()), 0.999 * float(losses.min())
    for _ in range(5 if with_floor else 0):
        grid = np.linspace(max(0.0, best - width), min(most, best + width), 61)
        best, width = float(min(grid, key=error)), grid[1] - grid[0]
    return power_law(compute, losses, best)


def laws(compute: np.ndarray, losses: np.ndarray) -> list[tuple[float, float, float]]:
    """The law of three rungs or more, then those with one left out."""
    with_floor = len(compute) > 3
    without = [np.arange(len(compute)) != i for i in range(len(compute))]
    return [
        fit(compute, losses, with_floor),
        *(fit(compute[rest], losses[rest], with_floor) for rest in without),
    ]


def plan(
    depth: int,
    given: Namespace,
    flags: list[str],
    name: str = "",
    number: int = 0,
    compute: float = 0,
) -> Planned:
    """Run `number` of so many layers, by the rules; with `compute`, as many tokens as these operations allow."""
    dials, (vocab_size, available) = (
        Namespace(**vars(given) | {"depth": depth}),
        pretrain.measure(given.data),
    )
    for last in (not compute, True):
        model, train, _ = parse(*pretrain.derive(dials, flags, vocab_size), flags, "")
        model.vocab_size = vocab_size
        tokens = (
            train.max_iters
            * train.batch_size
            * train.gradient_accumulation_steps
            * model.block_size
        )
        total = float(tokens * pretrain.on_meta(model).flops_per_token())
        if last:
            break
        dials.tokens_per_parameter *= compute / total
    train.seed += number
    words = [
        f"--{dial}={getattr(dials, dial)}"
        for dial in ("depth", "aspect_ratio", "tokens_per_parameter")
    ]
    out_dir = Path(given.out_dir, f"{name or f'depth-{depth}'}-seed{train.seed}")
    words += [f"--seed={train.seed}", f"--out_dir={out_dir}", "--resume=auto"]
    command = [sys.executable, pretrain.__file__, *flags, *words]
    return Planned(
        depth, train.seed, out_dir, total, tokens / available, vars(model) | vars(train), command
    )


def complete(run: Planned) -> bool:
    """Whether the run has been trained to its end. Raises ValueError if its directory holds another run."""
    there = recorded(run.out_dir) if (run.out_dir / "config.json").exists() else {}
    divided = {
        "batch_size",
        "gradient_accumulation_steps",
    }  # a run may divide its steps into other micro-batches
    for name in sorted(
        there.keys() & run.settings.keys() - ignored_by("compare", "card") - divided
    ):
        if there[name] != (asked := run.settings[name]):
            raise ValueError(
                f"{run.out_dir} holds a run with {name}={there[name]}, not {asked}: change --out_dir"
            )
    result = run.out_dir / "result.json"
    return result.exists() and read_json(result)["reason"] == "finished"


def loss(run: Planned) -> float:
    """The validation loss at the end of a complete run."""
    return [
        line["val_loss"]
        for line in metrics.read(run.out_dir / metrics.METRICS)
        if "val_loss" in line
    ][-1]


def train(runs: list[Planned], at_once: int) -> None:
    """Trains the runs that are not complete, `at_once` at a time, the longest first.

    Each is a process of its own, which saves at Ctrl-C. If one fails, no other is begun, and this process ends with
    its last line and its exit code.
    """
    missing = sorted((run for run in runs if not complete(run)), key=lambda run: -run.compute)
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for code, run in zip(pool.map(process, missing), missing, strict=True):
                if code:
                    print(
                        run.out_dir.with_suffix(".log").read_text().strip().split("\n")[-1],
                        file=sys.stderr,
                    )
                    sys.exit(code)
        finally:
            pool.shutdown(cancel_futures=True)


def process(run: Planned) -> int:
    """Trains a run in a process of its own; returns its exit code."""
    run.out_dir.parent.mkdir(parents=True, exist_ok=True)
    with open(run.out_dir.with_suffix(".log"), "w") as log:
        code = subprocess.run(run.command, stdout=log, stderr=subprocess.STDOUT).returncode
    if not code:
        print(
            f"depth {run.depth}, {run.compute:.3g} operations, seed {run.seed}: {loss(run):.4f}",
            flush=True,
        )
    return code


def draw(found: dict, path: Path) -> None:
    """Losses over operations, with the law and its band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes, (floor, factor, alpha) = figure.subplots(), found["laws"][0]
    compute = np.geomspace(
        found["rungs"][0]["compute"], max(run["compute"] for run in found["predictions"]), 200
    )
    curves = [predict(law, compute) for law in found["laws"]]
    axes.fill_between(
        compute,
        np.min(curves, axis=0),
        np.max(curves, axis=0),
        alpha=0.2,
        label="one rung left out",
    )
    axes.plot(compute, curves[0], label=f"{floor:.3f} + {factor:.3g} C^-{alpha:.4f}")
    for key, mark, label in (("rungs", "o", "trained"), ("check", "s", "trained to check the law")):
        if runs := found.get(key):
            axes.plot(
                [run["compute"] for run in runs],
                [run["val_loss"] for run in runs],
                mark,
                label=label,
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="floating-point operations",
        ylabel="validation loss, nats per token",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    figure.savefig(path)


def describe(runs: list[Planned], found: dict, losses: list[float] | None = None) -> list[dict]:
    """What was trained and what the laws say, for JSON; printed as well."""
    lines = []
    for i, run in enumerate(runs):
        law, *others = (float(predict(each, run.compute)) for each in found["laws"])
        line = {"depth": run.depth, "compute": run.compute, "epochs": run.epochs, "law": law}
        line |= {"low": min(others), "high": max(others)}
        text = f"depth {run.depth:2}, {run.compute:.3g} operations: law {law:.4f} ({min(others):.4f} to {max(others):.4f})"
        if losses:
            line |= {"val_loss": losses[i], "off": losses[i] / law - 1}
            text += f", loss {losses[i]:.4f}, {line['off']:+.2%}"
        print(text)
        lines.append(line)
    return lines


def run() -> None:
    """Reads the command line, trains, fits, writes."""
    parser = settings_parser(
        pretrain.shape(2, ASPECT_RATIO), TrainConfig(data=DATA, out_dir=OUT_DIR), __doc__
    )
    parser.add_argument(
        "--depths", default=DEPTHS, metavar="N,N,N", help="of the rungs, three or more"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"train with {FACTOR} times the compute of the last rung",
    )
    given, flags = pretrain.read_flags(parser, ASPECT_RATIO)
    given.data, given.out_dir = given.data or DATA, given.out_dir or OUT_DIR
    flags = [flag for flag in flags if flag.split("=")[0] not in ("--depths", "--check", "--seeds")]
    at_once = 1 if gpu_gib(given.device or "auto") else os.cpu_count() or 1
    threads = ["--threads=1"] * (at_once > 1)
    # without evaluations in between, which would take longer than the smallest runs
    flags = [
        f"--block_size={CONTEXT}",
        f"--data={given.data}",
        f"--eval_interval={10**6}",
        *threads,
        *flags,
    ]
    with user_errors():
        depths = [
            int(word)
            for word in given.depths.split(",")
            if word.isdecimal() and 1 <= int(word) <= 60
        ]
        if (
            len(depths) < 3
            or len(depths) < len(given.depths.split(","))
            or depths != sorted({*depths})
        ):
            raise ValueError(
                f"--depths={given.depths} must be three or more, rising, from 1 to 60, such as {DEPTHS}"
            )
        seeds = parse(GPTConfig(), TrainConfig(), [f"--seeds={given.seeds or SEEDS}"], "")[2].seeds
        if given.data == DATA and not Path(DATA).exists():
            python_stdlib.prepare(DATA, tokenizer="bytes")
        firsts = [plan(depth, given, flags) for depth in depths]
        counts = [
            min(3 * seeds, round(seeds * firsts[-1].compute / first.compute)) for first in firsts
        ]
        rungs = [
            [first, *(plan(first.depth, given, flags, number=number) for number in range(1, count))]
            for first, count in zip(firsts, counts, strict=True)
        ]
        ahead = [plan(depth, given, flags) for depth in range(depths[-1] + 1, depths[-1] + 4)]
        most = FACTOR * firsts[-1].compute
        nearest = min(ahead, key=lambda run: abs(np.log(run.compute / most)))
        check = plan(nearest.depth, given, flags, "check", compute=most)
        for each in [*firsts, check] if given.check else firsts:
            if each.epochs > EPOCHS:
                raise ValueError(
                    f"depth {each.depth} would read {given.data} {each.epochs:.1f} times, more than {EPOCHS}: "
                    "name more text with --data, or smaller models with --depths or --aspect_ratio"
                )
        if given.dry_run:
            for rung in firsts:
                process(rung)
                print(rung.out_dir.with_suffix(".log").read_text())
            return
        train([each for rung in rungs for each in rung], at_once)
        losses = [float(np.mean([loss(each) for each in rung])) for rung in rungs]
        found: dict = {"laws": laws(np.array([rung.compute for rung in firsts]), np.array(losses))}
        print(
            "L(C) = {:.4f} + {:.4g} C^-{:.4f}; in brackets with one rung left out".format(
                *found["laws"][0]
            )
        )
        found["rungs"], found["predictions"] = (
            describe(firsts, found, losses),
            describe([*ahead, check], found),
        )
        if given.check:
            train([check], 1)
            found["check"] = describe([check], found, [loss(check)])
        checkpoint.write_json(Path(given.out_dir, "scaling.json"), found)
        draw(found, Path(given.out_dir, "scaling.png"))


if __name__ == "__main__":
    run()
