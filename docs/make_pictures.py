"""Draws docs/speed.png, the picture at the top of README.md: validation loss over training time.

    python docs/make_pictures.py --nanogpt nanogpt.log "make train=out/shakespeare"

The curve of a run comes from its metrics.jsonl. `RUN@SECONDS` moves it to end at that time, for a
model whose teachers were trained first. nanoGPT's curve comes from what its train.py prints:

    python train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 \\
        --log_interval=10 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 \\
        --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0 > nanogpt.log

Train one after the other, on the same text and the same idle machine, with --eval_interval=50 here.
Neither time includes evaluations.
"""

import argparse
import re
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nanogpt.run import metrics

Curve = list[tuple[float, float]]  # (seconds of training, validation loss)

ON_AN_A100 = 1.4697  # nanoGPT's README: its GPU settings, about three minutes
TICKS = {5: "5 s", 10: "10 s", 20: "20 s", 30: "30 s", 60: "1 min", 120: "2 min"}
TICKS |= {300: "5 min", 900: "15 min", 1800: "30 min", 3600: "1 h"}


def run_curve(run: Path, end: float | None = None) -> Curve:
    """The validation losses of a run after step 0, moved to end after `end` seconds.

    Raises ValueError if there are none.
    """
    lines = metrics.read(run / metrics.METRICS)
    curve = [(line["train_seconds"], line["val_loss"]) for line in lines if "val_loss" in line]
    if not curve:
        raise ValueError(f"{run} has no evaluations")
    shift = 0 if end is None else end - curve[-1][0]
    return [(seconds + shift, loss) for seconds, loss in curve if seconds > 0]


def nanogpt_curve(log: str) -> Curve:
    """The validation losses after step 0 that nanoGPT's train.py printed, or a ValueError.

    Its time of an iteration includes the evaluation before it. Such iterations, and those that were
    not logged, get the interpolated time of their neighbors.
    """
    evaluations = re.findall(r"^step (\d+): .*val loss ([\d.]+)", log, re.MULTILINE)
    losses = {int(step): float(loss) for step, loss in evaluations}
    logged = re.findall(r"^iter (\d+): .*time ([\d.]+)ms", log, re.MULTILINE)
    times = {int(number): float(ms) for number, ms in logged if int(number) not in losses}
    if not losses or not times:
        raise ValueError("nanoGPT's log has no lines such as 'step 250: …' and 'iter 240: …'")
    seconds = np.interp(np.arange(max(losses) + 1), list(times), list(times.values())) / 1000
    return [(float(seconds[:step].sum()), loss) for step, loss in losses.items() if step > 0]


def draw(curves: dict[str, Curve], out: Path) -> None:
    """Draws the curves by their labels; the suffix of `out` selects the format."""
    figure = Figure(figsize=(8, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    for number, (label, curve) in enumerate(curves.items()):
        color = "gray" if label == "nanoGPT" else f"C{number}"
        seconds, loss = curve[-1]
        style = "o" if len(curve) == 1 else "-"
        axes.plot(*zip(*curve, strict=True), style, color=color, linewidth=2, label=label)
        axes.plot(seconds, loss, "o", color=color, markersize=6)
        # beside the dashed line, not on it
        offset = (6, 4) if loss > ON_AN_A100 else (-10, -14)
        axes.annotate(
            f"{loss:.2f}", (seconds, loss), offset, textcoords="offset points", color=color
        )

    points = [point for curve in curves.values() for point in curve]
    first = 0.8 * min(seconds for seconds, _ in points)
    last = 1.5 * max(seconds for seconds, _ in points)
    axes.axhline(ON_AN_A100, color="black", linestyle="--", linewidth=1)
    axes.annotate(
        f"nanoGPT on an A100 GPU: {ON_AN_A100}",
        (1.05 * first, ON_AN_A100),
        (0, 4),
        textcoords="offset points",
    )
    axes.set_xscale("log")
    ticks = [seconds for seconds in TICKS if first < seconds < last]
    axes.set_xticks(ticks, [TICKS[seconds] for seconds in ticks])
    axes.minorticks_off()
    axes.set_xlim(first, last)
    axes.set_ylim(min(ON_AN_A100, *(loss for _, loss in points)) - 0.1, 2.6)
    axes.set_xlabel("training time")
    axes.set_ylabel("validation loss, nats per character")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(out)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="[LABEL=]RUN[@SECONDS]", help="out directories")
    parser.add_argument("--nanogpt", metavar="LOG", help="what nanoGPT's train.py printed")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("speed.png"))
    args = parser.parse_args(argv)
    curves = {}
    if args.nanogpt:
        curves["nanoGPT"] = nanogpt_curve(Path(args.nanogpt).read_text())
    for run in args.runs:
        label, _, directory = run.rpartition("=")
        directory, _, end = directory.partition("@")
        curve = run_curve(Path(directory), float(end) if end else None)
        curves[label or Path(directory).name] = curve
    draw(curves, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
