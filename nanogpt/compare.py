"""Runs beside each other, honestly: what was set differently, and the loss at equal steps, tokens and time.

    nanogpt compare out/a out/b
    accelerate launch recipes/shakespeare.py --seeds=3 --out_dir=out/a     # out/a-seed1337, -seed1338, -seed1339

Runs that differ in nothing but their seed are one row, with the mean and the spread (the standard deviation between
seeds): a difference smaller than that says nothing.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanogpt import checkpoint, tracking

# where and when a run was made, not what it is
CIRCUMSTANCES = "out_dir seed seeds resume report_to log_interval eval_interval eval_iters keep_checkpoints".split()
CIRCUMSTANCES += (
    "always_save_checkpoint threads profile data exportable push_to_hub max_minutes sample_tokens timeout".split()
)
AXES = {"steps": "step", "tokens": "tokens", "seconds of training": "train_seconds"}
POINTS = 8  # at most, at which curves are compared


@dataclass
class Curve:
    name: str
    settings: dict
    points: np.ndarray  # (N, 4) step, tokens, seconds, validation loss


def read(run: Path) -> Curve:
    """A run's settings and validation losses. Raises ValueError if it is none, or has not been evaluated yet."""
    if not (run / "metrics.jsonl").is_file():
        raise ValueError(f"{run} is no out directory: it has no metrics.jsonl")
    config = checkpoint.read_json(run / checkpoint.CONFIG)
    lines = [line for line in tracking.read(run / "metrics.jsonl") if "val_loss" in line]
    if not lines:
        raise ValueError(f"{run} has no validation loss yet")
    points = np.array([[line[key] for key in ("step", "tokens", "train_seconds", "val_loss")] for line in lines])
    return Curve(run.name, config["model"] | config["train"], points)


def group(curves: list[Curve]) -> dict[str, list[Curve]]:
    """The curves by what they are, apart from seed and circumstances; each group named by its first run."""
    kinds, named = [], {}
    for curve in curves:
        kind = {k: v for k, v in curve.settings.items() if k not in CIRCUMSTANCES}
        if kind in kinds:
            list(named.values())[kinds.index(kind)].append(curve)
        else:
            kinds.append(kind)
            named[curve.name] = [curve]
    return named


def differences(groups: dict[str, list[Curve]]) -> dict[str, list]:
    """The settings that are not the same in all groups, with each group's value."""
    first = [curves[0].settings for curves in groups.values()]
    names = dict.fromkeys(name for settings in first for name in settings if name not in CIRCUMSTANCES)
    values = {name: [settings.get(name) for settings in first] for name in names}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


def loss_by(curve: Curve, axis: int, x: float) -> float:
    """The last validation loss measured at or before `x` on an axis: nothing is made up between evaluations."""
    return float(curve.points[curve.points[:, axis] <= x][-1, 3])


def meeting_points(curves: list[Curve], axis: int) -> np.ndarray:
    """Where to compare: at evaluations of any of the curves, as far as all of them reach."""
    start, end = (pick(curve.points[i, axis] for curve in curves) for pick, i in ((max, 0), (min, -1)))
    at = np.unique(np.concatenate([curve.points[:, axis] for curve in curves]))
    at = at[(at >= start) & (at <= end)]
    return at[np.unique(np.linspace(0, len(at) - 1, POINTS).round().astype(int))]


def spread(values: list[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.4f}" + (f" ±{statistics.stdev(values):.4f}" if len(values) > 1 else "")


def compare(runs: list[Path]) -> str:
    """The comparison as text. Raises ValueError if one of them is no run."""
    groups = group([read(Path(run)) for run in runs])
    width = max(16, *(len(name) for name in groups)) + 2

    def row(first: str, cells) -> str:
        return f"{first:<28}" + "".join(f"{cell:>{width}}" for cell in cells)

    lines = [row("", groups), row("seeds", [len(curves) for curves in groups.values()])]
    lines += [row(name, [str(value) for value in values]) for name, values in differences(groups).items()]
    every = [curve for curves in groups.values() for curve in curves]
    for axis, title in enumerate(AXES):
        lines += ["", f"validation loss by equal {title}"]
        for x in meeting_points(every, axis):
            cells = [spread([loss_by(c, axis, x) for c in curves]) for curves in groups.values()]
            lines.append(row(f"{x:,.1f}" if axis == 2 else f"{x:,.0f}", cells))
    lines += ["", row("lowest", [spread([c.points[:, 3].min() for c in curves]) for curves in groups.values()])]
    return "\n".join(lines)
