"""Compares runs: settings that differ, and losses at equal steps, tokens and training time.

    nanogpt compare out/a out/b
    python recipes/shakespeare.py --seeds=3 --out_dir=out/a  # out/a-seed1337, -seed1338, …

Runs that differ only in their seed share a column, with mean and standard deviation. Each seed
counts once, and a run that has not finished does not count beside finished ones. The last line says
whether the best two differ by more than their seeds do, by Welch's t-test.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanogpt import checkpoint
from nanogpt.config import ignored_by
from nanogpt.run import metrics

AXES = ("steps", "tokens", "seconds of training")  # the first columns of Curve.points
ALPHA = 0.05  # a difference with a smaller p is significant


@dataclass
class Curve:
    run: Path
    settings: dict
    kind: dict  # the settings that are equal for runs that differ only in their seed
    points: np.ndarray  # (N, 4) step, tokens, seconds, validation loss
    val_sha256: str | None  # of the validation tokens; None if not recorded

    @property
    def finished(self) -> bool:
        """Whether the last evaluation is the final one; true if the settings name no end."""
        minutes, max_iters = (self.settings.get(key, 0) for key in ("train_minutes", "max_iters"))
        step, _, seconds, _ = self.points[-1]
        if minutes and max_iters:
            return seconds >= 60 * minutes - 0.001  # metrics.jsonl has milliseconds
        return step >= max_iters

    @property
    def lowest(self) -> float:
        """The lowest validation loss; NaN only if all are."""
        return float(np.fmin.reduce(self.points[:, 3]))

    def loss_at(self, axis: int, x: float) -> float:
        """The validation loss at `x` on an axis, interpolated linearly between evaluations."""
        return float(np.interp(x, self.points[:, axis], self.points[:, 3]))


def read(run: Path) -> Curve:
    """A run's settings and validation losses. Raises ValueError if it is not a run or has none."""
    if not (run / metrics.METRICS).is_file():
        raise ValueError(f"{run} is not an out directory: it has no {metrics.METRICS}")
    keys = ("step", "tokens", "train_seconds", "val_loss")
    lines = [line for line in metrics.read(run / metrics.METRICS) if line.keys() >= set(keys)]
    if not lines:
        raise ValueError(f"{run} has no validation loss yet")
    config = checkpoint.read_json(run / checkpoint.CONFIG)
    try:
        settings = config["model"] | config["train"]
        digests = {name: split.get("sha256") for name, split in config.get("data", {}).items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{run / checkpoint.CONFIG} is not a run's configuration ({error})"
        ) from None
    kind = {name: value for name, value in settings.items() if name not in ignored_by("compare")}
    kind["class"] = config.get("class")  # of a run with make_model
    if digests and all(digests.values()):
        kind["data"] = list(digests.values())  # the same tokens in any directory
    points = np.array([[line[key] for key in keys] for line in lines])
    return Curve(run, settings, kind, points, digests.get("val"))


def group(runs: list[Path]) -> tuple[dict[str, list[Curve]], dict[str, str]]:
    """Groups runs that differ only in their seed; a group has the name, or path, of its first run.

    Also returns the runs that do not count, each with the reason: another run of the group has the
    same seed, or has finished and this one has not.
    """
    curves = [read(Path(run)) for run in dict.fromkeys(runs)]
    groups: list[list[Curve]] = []
    left_out: dict[str, str] = {}
    for curve in sorted(curves, key=lambda c: not c.finished):  # of one seed the finished run
        same = next((group for group in groups if group[0].kind == curve.kind), None)
        if same is None:
            groups.append([curve])
            continue
        twins = [c for c in same if c.settings.get("seed") == curve.settings.get("seed")]
        if same[0].finished and not curve.finished:
            step = f"{curve.points[-1, 0]:,.0f}"
            left_out[str(curve.run)] = f"not finished: its last evaluation is of step {step}"
        elif twins:
            left_out[str(curve.run)] = f"the same settings and seed as {twins[0].run}"
        else:
            same.append(curve)
    names = [group[0].run.name for group in groups]
    if len(set(names)) < len(names):
        names = [str(group[0].run) for group in groups]
    return dict(zip(names, groups, strict=True)), left_out


def last_common(curves: list[Curve], axis: int) -> float | None:
    """The last evaluation that all curves have reached; None if one starts after another's end."""
    end = min(curve.points[-1, axis] for curve in curves)
    return None if any(curve.points[0, axis] > end for curve in curves) else float(end)


def deviation(values: list[float]) -> float | None:
    """The standard deviation between seeds; None for a single one."""
    with np.errstate(all="ignore"):  # a loss may be infinite, or NaN
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def welch(a, b) -> np.ndarray:
    """The two-sided p of Welch's t-test (Welch 1947) between samples along the last axis.

    Each has two or more values. NaN if neither sample varies.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    n, m = a.shape[-1], b.shape[-1]
    with np.errstate(all="ignore"):  # a loss may be infinite, or NaN
        # squared standard errors of the means
        u = a.var(-1, ddof=1) / n
        v = b.var(-1, ddof=1) / m
        df = (u + v) ** 2 / (u**2 / (n - 1) + v**2 / (m - 1))  # Welch-Satterthwaite
        t = np.abs(a.mean(-1) - b.mean(-1)) / np.sqrt(u + v)
        # with t = sqrt(df) / tan(angle), Student's tail is the integral of sin(angle)^(df - 1)
        x, weights = np.polynomial.legendre.leggauss(100)

        def integral(end):  # from 0
            angles = np.asarray(end)[..., None] * (x + 1) / 2
            return end / 2 * (np.sin(angles) ** (df[..., None] - 1) @ weights)

        return integral(np.arctan2(np.sqrt(df), t)) / integral(np.pi / 2)


def verdict(runs: list[Path]) -> dict:
    """The comparison for a program; docs/experiments.md describes the keys.

    `runs` are groups, ranked by their lowest validation loss, the mean over seeds. `by` is how much
    lower the loss of `better` is than the next one's. Both are None if losses cannot be compared;
    without a p, `why_not` says why. Raises ValueError if one of `runs` is not a run.
    """
    groups, left_out = group(runs)
    first = {name: curves[0] for name, curves in groups.items()}
    kinds = [curve.kind for curve in first.values()]
    differing = [k for k in dict.fromkeys(k for kind in kinds for k in kind) if not equal(kinds, k)]
    rows = []
    for name, curves in groups.items():
        losses = [curve.lowest for curve in curves]
        settings = {key: first[name].settings.get(key) for key in differing}
        row = {"name": name, "runs": [str(curve.run) for curve in curves], "settings": settings}
        rows.append(row | {"val_loss": float(np.mean(losses)), "spread": deviation(losses)})
    rows.sort(key=lambda row: (np.isnan(row["val_loss"]), row["val_loss"]))
    every = [curve for curves in groups.values() for curve in curves]
    at_equal = {}
    for axis, title in enumerate(AXES):
        if (at := last_common(every, axis)) is not None:
            there = {n: [curve.loss_at(axis, at) for curve in c] for n, c in groups.items()}
            losses = {name: float(np.mean(values)) for name, values in there.items()}
            spread = {name: deviation(values) for name, values in there.items()}
            at_equal[title] = {"at": at, "val_loss": losses, "spread": spread}
    found = dict.fromkeys(("better", "by", "p", "significant", "why_not"))
    found |= {"runs": rows, "left_out": left_out, "at_equal": at_equal}
    unfinished = [name for name, curve in first.items() if not curve.finished]
    if len(rows) < 2:
        return found | {"why_not": "there is nothing to compare with"}
    if unfinished:
        return found | {"why_not": f"not finished: {', '.join(unfinished)}"}
    if len({curve.val_sha256 for curve in every} - {None}) > 1:
        return found | {"why_not": "the validation data differ"}
    found["better"] = rows[0]["name"]
    found["by"] = rows[1]["val_loss"] - rows[0]["val_loss"]
    best, next_best = ([curve.lowest for curve in groups[str(r["name"])]] for r in rows[:2])
    if min(len(best), len(next_best)) < 2:
        return found | {"why_not": "this needs at least two seeds of each"}
    p = float(welch(best, next_best))
    if np.isnan(p):
        return found | {"why_not": "the losses of seeds do not vary, or are not finite"}
    return found | {"p": p, "significant": p < ALPHA}


def equal(kinds: list[dict], key: str) -> bool:
    return all(kind.get(key) == kinds[0].get(key) for kind in kinds)


def compare(runs: list[Path]) -> str:
    """A `verdict` as text, the best run first; the last line says whether it is better."""
    found = verdict(runs)
    rows = {row["name"]: row for row in found["runs"]}
    table = {"": list(rows), "seeds": [len(row["runs"]) for row in rows.values()]}
    for name in found["runs"][0]["settings"]:
        table[name] = [row["settings"][name] for row in rows.values()]
    for title, losses in found["at_equal"].items():
        title = f"at {losses['at']:,.1f}".removesuffix(".0") + f" {title}"
        table[title] = [cell(losses["val_loss"][name], losses["spread"][name]) for name in rows]
    table["lowest"] = [cell(row["val_loss"], row["spread"]) for row in rows.values()]
    width = 2 + max(16, *(len(str(value)) for values in table.values() for value in values))
    lines = [
        f"{title:<36}" + "".join(f"{value!s:>{width}}" for value in values)
        for title, values in table.items()
    ]
    lines += [f"left out: {run} ({why})" for run, why in found["left_out"].items()]
    return "\n".join([*lines, "", *([in_words(found)] if len(rows) > 1 else [])])


def cell(loss: float, spread: float | None) -> str:
    return f"{loss:.4f}" if spread is None else f"{loss:.4f} ±{spread:.4f}"


def in_words(found: dict) -> str:
    """What a `verdict` says, in one line."""
    if found["better"] is None:
        return f"no verdict: {found['why_not']}"
    first, second = found["runs"][:2]
    lower = f"{first['name']} has a lower loss than {second['name']} by {found['by']:.4f}"
    if found["p"] is None:
        return f"{lower}; not tested for significance: {found['why_not']}"
    sizes = f"{len(first['runs'])} and {len(second['runs'])} seeds"
    what = "a significant difference" if found["significant"] else "no significant difference"
    return f"{lower}: {what} (p = {found['p']:.2g}, Welch's t-test, {sizes})"
