"""Compares runs: settings that differ, and losses at equal steps, tokens and training time.

    nanogpt compare out/a out/b
    accelerate launch recipes/shakespeare.py --seeds=3 --out_dir=out/a     # out/a-seed1337, -seed1338, -seed1339

Runs that differ only in their seed share a column, with mean and spread (standard deviation between seeds). Each seed
counts once, and a run that has not finished does not count beside finished ones. The last line says whether the best
two differ by more than their seeds do, by Welch's t-test.
"""

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanogpt import checkpoint
from nanogpt.config import ignored_by
from nanogpt.run import metrics

AXES = {"steps": "step", "tokens": "tokens", "seconds of training": "train_seconds"}
POINTS = 8  # at which curves are compared, at most
ALPHA = 0.05  # a difference with a smaller p is significant


@dataclass
class Curve:
    run: Path
    settings: dict
    kind: dict  # the settings that are equal for runs that differ only in their seed
    points: np.ndarray  # (N, 4) step, tokens, seconds, validation loss
    val_sha256: str | None = None  # of the validation tokens; None if not recorded

    @property
    def finished(self) -> bool:
        """Whether the last evaluation is that of the end; true if the settings name no end."""
        step, _, seconds, _ = self.points[-1]
        if self.settings.get("train_minutes") and self.settings.get("max_iters"):
            return (
                seconds >= 60 * self.settings["train_minutes"] - 0.001
            )  # metrics.jsonl has milliseconds
        return step >= self.settings.get("max_iters", 0)


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
        digests = {name: split.get("sha256") for name, split in config.get("data", {}).items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{run / checkpoint.CONFIG} is not a run's configuration ({error})"
        ) from None
    kind = {name: value for name, value in settings.items() if name not in ignored_by("compare")}
    if digests and all(digests.values()):
        kind["data"] = list(digests.values())  # the same tokens in any directory
    return Curve(run, settings, kind, points, digests.get("val"))


def group(curves: list[Curve]) -> tuple[dict[str, list[Curve]], dict[str, str]]:
    """Groups curves that differ only in their seed; a group has the name, or the path, of its first run.

    Also returns the runs that do not count, each with the reason: another run of the group has the same seed, or has
    finished and this one has not. A group of unfinished runs keeps them.
    """
    groups: list[list[Curve]] = []
    left_out: dict[str, str] = {}
    for curve in sorted(
        curves, key=lambda c: not c.finished
    ):  # of one seed the finished run counts
        same = next((group for group in groups if group[0].kind == curve.kind), None)
        if same is None:
            groups.append([curve])
        elif same[0].finished and not curve.finished:
            left_out[str(curve.run)] = (
                f"not finished: its last evaluation is of step {curve.points[-1, 0]:,.0f}"
            )
        elif twin := next(
            (c for c in same if c.settings.get("seed") == curve.settings.get("seed")), None
        ):
            if curve.run.resolve() != twin.run.resolve():
                left_out[str(curve.run)] = f"the same settings and seed as {twin.run}"
        else:
            same.append(curve)
    groups.sort(
        key=lambda group: min(curves.index(c) for c in group)
    )  # in the order of the command line
    names = [group[0].run.name for group in groups]
    return {
        name if names.count(name) == 1 else str(g[0].run): g
        for name, g in zip(names, groups, strict=True)
    }, left_out


def differences(groups: dict[str, list[Curve]]) -> dict[str, list]:
    """The settings that differ between groups, with each group's value."""
    first = [curves[0] for curves in groups.values()]
    names = dict.fromkeys(name for curve in first for name in curve.kind)
    differing = [
        name for name in names if any(c.kind.get(name) != first[0].kind.get(name) for c in first)
    ]
    return {name: [curve.settings.get(name) for curve in first] for name in differing}


def loss_by(curve: Curve, axis: int, x: float) -> float:
    """The validation loss at `x` on an axis, interpolated linearly between evaluations."""
    return float(np.interp(x, curve.points[:, axis], curve.points[:, 3]))


def meeting_points(curves: list[Curve], axis: int) -> np.ndarray:
    """Where to compare: at evaluations of the curve that ends first, from where all curves have begun.

    Raises ValueError if a curve starts after the end of another.
    """
    late, short = (
        max(curves, key=lambda c: c.points[0, axis]),
        min(curves, key=lambda c: c.points[-1, axis]),
    )
    at = np.unique(short.points[short.points[:, axis] >= late.points[0, axis], axis])
    if not at.size:
        title = list(AXES)[axis]
        raise ValueError(
            f"{late.run} starts after {late.points[0, axis]:,.0f} {title}, but {short.run} ends at "
            f"{short.points[-1, axis]:,.0f}: there is nothing to compare"
        )
    return at[np.unique(np.linspace(0, len(at) - 1, POINTS).round().astype(int))]


def deviation(values: list[float]) -> float | None:
    """The standard deviation between seeds; None for a single one."""
    with np.errstate(all="ignore"):  # a loss may be infinite, or NaN
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f}" + (f" ±{deviation(values):.4f}" if len(values) > 1 else "")


def welch(a, b) -> np.ndarray:
    """The two-sided p of Welch's t-test (Welch 1947) between samples along the last axis, each of two or more values.

    NaN if neither sample varies.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    n, m = a.shape[-1], b.shape[-1]
    with np.errstate(all="ignore"):  # a loss may be infinite, or NaN
        u, v = a.var(-1, ddof=1) / n, b.var(-1, ddof=1) / m  # squared standard errors of the means
        df = (u + v) ** 2 / (u**2 / (n - 1) + v**2 / (m - 1))  # Welch-Satterthwaite
        t = np.abs(a.mean(-1) - b.mean(-1)) / np.sqrt(u + v)
        # with t = sqrt(df) / tan(angle), Student's tail is the integral of sin(angle)^(df - 1), from 0
        x, weights = np.polynomial.legendre.leggauss(100)

        def integral(end):
            angles = np.asarray(end)[..., None] * (x + 1) / 2
            return end / 2 * (np.sin(angles) ** (df[..., None] - 1) @ weights)

        return integral(np.arctan2(np.sqrt(df), t)) / integral(np.pi / 2)


def compare(runs: list[Path]) -> str:
    """The comparison as text; its last line is the verdict. Raises ValueError if one of `runs` is not a run."""
    groups, left_out = group([read(Path(run)) for run in runs])
    settings = {
        name: [str(value) for value in values] for name, values in differences(groups).items()
    }
    width = max(16, *(len(cell) for cells in (groups, *settings.values()) for cell in cells)) + 2

    def row(first: str, cells) -> str:
        return f"{first:<28}" + "".join(f"{cell:>{width}}" for cell in cells)

    lines = [row("", groups), row("seeds", [len(curves) for curves in groups.values()])]
    lines += [row(name, values) for name, values in settings.items()]
    lines += [f"left out: {run} ({why})" for run, why in left_out.items()]
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
    lines += [
        "",
        row("lowest", [spread([lowest(c) for c in curves]) for curves in groups.values()]),
    ]
    if len(groups) > 1:
        lines += ["", in_words(ranking(groups))]
    return "\n".join(lines)


def ranking(groups: dict[str, list[Curve]]) -> dict:
    """Groups ranked by their lowest validation loss, the mean over seeds, and whether the first two differ."""
    rows: list[dict] = []
    differing = differences(groups)
    for i, (name, curves) in enumerate(groups.items()):
        losses = [lowest(curve) for curve in curves]
        row = {
            "name": name,
            "runs": [str(curve.run) for curve in curves],
            "val_loss": float(np.mean(losses)),
        }
        settings = {setting: values[i] for setting, values in differing.items()}
        rows.append(row | {"spread": deviation(losses), "settings": settings})
    rows.sort(key=lambda row: (np.isnan(row["val_loss"]), row["val_loss"]))
    found = {
        "better": None,
        "by": None,
        "p": None,
        "significant": None,
        "why_not": None,
        "runs": rows,
    }
    if len(rows) < 2:
        return found | {"why_not": "there is nothing to compare with"}
    if unfinished := [name for name, curves in groups.items() if not curves[0].finished]:
        return found | {"why_not": f"not finished: {', '.join(unfinished)}"}
    if len({c.val_sha256 for curves in groups.values() for c in curves} - {None}) > 1:
        return found | {"why_not": "the validation data differ"}
    found |= {"better": rows[0]["name"], "by": rows[1]["val_loss"] - rows[0]["val_loss"]}
    first, second = ([lowest(curve) for curve in groups[row["name"]]] for row in rows[:2])
    if min(len(first), len(second)) < 2:
        return found | {"why_not": "that takes at least two seeds of each"}
    p = float(welch(first, second))
    if math.isnan(p):
        return found | {"why_not": "the losses of seeds do not vary, or are not finite"}
    return found | {"p": p, "significant": p < ALPHA}


def in_words(found: dict) -> str:
    """The verdict of `ranking` in one line."""
    if found["better"] is None:
        return f"no verdict: {found['why_not']}"
    first, second = found["runs"][:2]
    lower = f"{first['name']} is lower than {second['name']} by {found['by']:.4f}"
    if found["p"] is None:
        return f"{lower}; whether that is more than chance is unknown: {found['why_not']}"
    sizes = f"{len(first['runs'])} and {len(second['runs'])} seeds"
    what = "a significant difference" if found["significant"] else "no significant difference"
    return f"{lower}: {what} (p = {found['p']:.2g}, Welch's t-test, {sizes})"


def lowest(curve: Curve) -> float:
    """The lowest validation loss; those that are not numbers do not count, unless all are."""
    return float(np.fmin.reduce(curve.points[:, 3]))


def verdict(runs: list[Path]) -> dict:
    """The comparison for a program. `runs` are ranked by their lowest validation loss, the mean over seeds.

    `better` is the first of them, and `by` how much lower its loss is than the next one's: both None where losses
    cannot be compared, because runs have not finished or validation data differ. `p` is Welch's for the difference
    between these two and `significant` whether it is below 0.05; both None, and `why_not` says why, without at least
    two seeds of each. `at_equal` has the losses at the last point on each axis that all have reached; `left_out` the
    runs that do not count.
    """
    groups, left_out = group([read(Path(run)) for run in runs])
    at_equal = {}
    for axis, title in enumerate(AXES):
        with suppress(ValueError):  # they have no point in common
            at = float(
                meeting_points([curve for curves in groups.values() for curve in curves], axis)[-1]
            )
            losses = {
                name: float(np.mean([loss_by(c, axis, at) for c in curves]))
                for name, curves in groups.items()
            }
            at_equal[title] = {"at": at, "val_loss": losses}
    return ranking(groups) | {"left_out": left_out, "at_equal": at_equal}
