"""Compares runs: settings that differ, and losses at equal steps, tokens and training time.

    nanogpt compare out/a out/b
    accelerate launch recipes/shakespeare.py --seeds=3 --out_dir=out/a     # out/a-seed1337, -seed1338, -seed1339

Runs that differ only in their seed share a column, with mean and spread (standard deviation between seeds). Ignore
differences smaller than the spread.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanogpt import checkpoint
from nanogpt.config import ignored_by
from nanogpt.run import metrics

AXES = {"steps": "step", "tokens": "tokens", "seconds of training": "train_seconds"}
POINTS = 8  # at which curves are compared, at most


@dataclass
class Curve:
    run: Path
    settings: dict
    kind: dict  # the settings that are equal for runs that differ only in their seed
    points: np.ndarray  # (N, 4) step, tokens, seconds, validation loss


def read(run: Path) -> Curve:
    """A run's settings and validation losses. Raises ValueError if it is not a run, or has not been evaluated yet."""
    if not (run / "metrics.jsonl").is_file():
        raise ValueError(f"{run} is not an out directory: it has no metrics.jsonl")
    config = checkpoint.read_json(run / checkpoint.CONFIG)
    keys = ("step", "tokens", "train_seconds", "val_loss")
    lines = [line for line in metrics.read(run / "metrics.jsonl") if line.keys() >= set(keys)]
    if not lines:
        raise ValueError(f"{run} has no validation loss yet")
    points = np.array([[line[key] for key in keys] for line in lines])
    try:
        settings = {**config["model"], **config["train"]}
        digests = [split.get("sha256") for split in config.get("data", {}).values()]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{run / checkpoint.CONFIG} is not a run's configuration ({error})") from None
    kind = {name: value for name, value in settings.items() if name not in ignored_by("compare")}
    if digests and all(digests):
        kind["data"] = digests  # the same tokens in any directory
    return Curve(run, settings, kind, points)


def group(curves: list[Curve]) -> dict[str, list[Curve]]:
    """Groups curves that differ only in their seed; a group has the name, or the path, of its first run."""
    groups: list[list[Curve]] = []
    for curve in curves:
        same = next((group for group in groups if group[0].kind == curve.kind), None)
        if same:
            same.append(curve)
        else:
            groups.append([curve])
    names = [group[0].run.name for group in groups]
    return {name if names.count(name) == 1 else str(g[0].run): g for name, g in zip(names, groups, strict=True)}


def differences(groups: dict[str, list[Curve]]) -> dict[str, list]:
    """The settings that differ between groups, with each group's value."""
    first = [curves[0] for curves in groups.values()]
    names = dict.fromkeys(name for curve in first for name in curve.kind)
    differing = [name for name in names if any(c.kind.get(name) != first[0].kind.get(name) for c in first)]
    return {name: [curve.settings.get(name) for curve in first] for name in differing}


def loss_by(curve: Curve, axis: int, x: float) -> float:
    """The last validation loss measured at or before `x` on an axis, without interpolation."""
    return float(curve.points[curve.points[:, axis] <= x][-1, 3])


def meeting_points(curves: list[Curve], axis: int) -> np.ndarray:
    """Where to compare: at evaluations of any curve, within the range that all curves cover.

    Raises ValueError if a curve starts after the end of another.
    """
    late, short = max(curves, key=lambda c: c.points[0, axis]), min(curves, key=lambda c: c.points[-1, axis])
    start, end = late.points[0, axis], short.points[-1, axis]
    if start > end:
        raise ValueError(
            f"{late.run} starts after {start:,.0f} {list(AXES)[axis]}, but {short.run} ends at {end:,.0f}: "
            "there is nothing to compare"
        )
    at = np.unique(np.concatenate([curve.points[:, axis] for curve in curves]))
    at = at[(at >= start) & (at <= end)]
    return at[np.unique(np.linspace(0, len(at) - 1, POINTS).round().astype(int))]


def deviation(values: list[float]) -> float | None:
    """The standard deviation between seeds; None for a single one."""
    with np.errstate(all="ignore"):  # a loss may be infinite, or NaN
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f}" + (f" ±{deviation(values):.4f}" if len(values) > 1 else "")


def compare(runs: list[Path]) -> str:
    """The comparison as text. Raises ValueError if one of `runs` is not a run."""
    groups = group([read(Path(run)) for run in runs])
    settings = {name: [str(value) for value in values] for name, values in differences(groups).items()}
    width = max(16, *(len(cell) for cells in (groups, *settings.values()) for cell in cells)) + 2

    def row(first: str, cells) -> str:
        return f"{first:<28}" + "".join(f"{cell:>{width}}" for cell in cells)

    lines = [row("", groups), row("seeds", [len(curves) for curves in groups.values()])]
    lines += [row(name, values) for name, values in settings.items()]
    every = [curve for curves in groups.values() for curve in curves]
    for axis, title in enumerate(AXES):
        lines += ["", f"validation loss by equal {title}"]
        try:
            points = meeting_points(every, axis)
        except ValueError as error:  # the curves may overlap on another axis
            lines.append(str(error))
            continue
        for x in points:
            cells = [spread([loss_by(c, axis, x) for c in curves]) for curves in groups.values()]
            lines.append(row(f"{x:,.1f}" if axis == 2 else f"{x:,.0f}", cells))
    lines += ["", row("lowest", [spread([lowest(c) for c in curves]) for curves in groups.values()])]
    return "\n".join(lines)


def lowest(curve: Curve) -> float:
    """The lowest validation loss; those that are not numbers do not count, unless all are."""
    return float(np.fmin.reduce(curve.points[:, 3]))


def verdict(runs: list[Path]) -> dict:
    """The comparison for a program. `runs` are ranked by their lowest validation loss, the mean over seeds.

    `better` is the first of them, `by` how much lower its loss is than the next one's; `spread` is the larger standard
    deviation between seeds of those two, None if neither has several seeds, and `beyond_spread` whether `by` is more.
    `at_equal` has the losses at the last point on each axis that all have reached.
    """
    groups = group([read(Path(run)) for run in runs])
    differing, at_equal = differences(groups), {}
    rows: list[dict] = []
    for i, (name, curves) in enumerate(groups.items()):
        losses = [lowest(curve) for curve in curves]
        row = {"name": name, "runs": [str(curve.run) for curve in curves], "val_loss": float(np.mean(losses))}
        settings = {setting: values[i] for setting, values in differing.items()}
        rows.append(row | {"spread": deviation(losses), "settings": settings})
    rows.sort(key=lambda row: (np.isnan(row["val_loss"]), row["val_loss"]))
    for axis, title in enumerate(AXES):
        with suppress(ValueError):  # they have no point in common
            at = float(meeting_points([curve for curves in groups.values() for curve in curves], axis)[-1])
            losses = {name: float(np.mean([loss_by(c, axis, at) for c in curves])) for name, curves in groups.items()}
            at_equal[title] = {"at": at, "val_loss": losses}
    by = rows[1]["val_loss"] - rows[0]["val_loss"] if len(rows) > 1 else None
    known = [row["spread"] for row in rows[:2] if row["spread"] is not None]
    spread = max(known) if known else None
    better = rows[0]["name"] if by is not None else None
    beyond = None if by is None or spread is None else by > spread
    return {"better": better, "by": by, "spread": spread, "beyond_spread": beyond, "runs": rows, "at_equal": at_equal}
