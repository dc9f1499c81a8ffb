"""Compares runs: settings that differ, and losses at equal steps, tokens and training time.

    nanogpt compare out/a out/b
    python recipes/shakespeare.py --seeds=3 --out_dir=out/a  # out/a-seed1337, -seed1338, …

Runs that differ only in their seed share a column, with mean and standard deviation. The last line
says whether the best two differ by more than their seeds do, by Welch's t-test.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanogpt import checkpoint
from nanogpt.config import ignored_by
from nanogpt.data.files import one_line_errors
from nanogpt.run import metrics

KEYS = ("step", "tokens", "train_seconds", "val_loss")
AXES = ("steps", "tokens", "seconds of training")  # names of the first three
ALPHA = 0.05  # a difference with a smaller p is significant


@dataclass(eq=False)
class Curve:
    run: Path
    settings: dict
    kind: dict  # the settings that are equal for runs that differ only in their seed
    points: np.ndarray  # (N, 4) the values of KEYS at each evaluation
    lowest: float  # validation loss; NaN only if all are
    val_sha256: str | None  # of the validation tokens; None if not recorded
    finished: bool


def read(run: Path) -> Curve:
    """A run's settings and validation losses. Raises ValueError if it is not a run or has none."""
    lines = [line for line in metrics.read(run / metrics.METRICS) if line.keys() >= set(KEYS)]
    if not lines:
        why = "has no validation loss" if run.exists() else "does not exist"
        raise ValueError(f"{run} {why}: name an out directory with a validation loss")
    config = checkpoint.read_json(run / checkpoint.CONFIG)
    with one_line_errors(f"{run / checkpoint.CONFIG} is not a run's", "name an out directory"):
        settings = config["model"] | config["train"]
        for name in ("class", "optimizers"):  # of a run with make_model or make_optimizers
            settings[name] = config.get(name, {"name": "nanogpt's"})["name"]
        settings["code"] = config.get("environment", {}).get("code")
        digests = {name: split.get("sha256") for name, split in config.get("data", {}).items()}
    kind = {name: value for name, value in settings.items() if name not in ignored_by("compare")}
    # a step may have been divided by the number of processes, or for lack of memory
    divided = [kind.pop(name, 1) for name in ("batch_size", "gradient_accumulation_steps")]
    kind["sequences"] = settings["sequences"] = divided[0] * divided[1]  # of a step
    if digests and all(digests.values()):
        kind["data"] = list(digests.values())  # the same tokens in any directory
    points = np.array([[line[key] for key in KEYS] for line in lines], dtype=float)
    lowest = float(np.fmin.reduce(points[:, 3]))
    # which a run writes at its end
    outcome = run / metrics.RESULT
    result = checkpoint.read_json(outcome) if outcome.exists() else {}
    finished = result.get("reason") == "finished"
    return Curve(run, settings, kind, points, lowest, digests.get("val"), finished)


def group(runs: list[Path]) -> list[list[Curve]]:
    """Groups runs that differ only in their seed, the best first; ValueError for a seed twice."""
    groups: dict[str, list[Curve]] = {}
    for run in dict.fromkeys(runs):
        curve = read(Path(run))
        groups.setdefault(repr(sorted(curve.kind.items())), []).append(curve)
    for curves in groups.values():
        if len({repr(curve.settings.get("seed")) for curve in curves}) < len(curves):
            names = ", ".join(str(curve.run) for curve in curves)
            raise ValueError(f"{names}: two have the same settings, code and seed: leave one out")
    means = {kind: np.mean([curve.lowest for curve in curves]) for kind, curves in groups.items()}
    ranked = sorted(groups, key=lambda kind: np.nan_to_num(means[kind], nan=np.inf))
    return [groups[kind] for kind in ranked]


def mean_and_spread(losses: list[float]) -> tuple[float, float | None]:
    """The mean of seeds and their standard deviation, which is None for a single one."""
    with np.errstate(all="ignore"):  # a loss may be infinite, or NaN
        spread = float(np.std(losses, ddof=1)) if len(losses) > 1 else None
        return float(np.mean(losses)), spread


def welch(a: list[float], b: list[float]) -> float | None:
    """The two-sided p of Welch's t-test (1947); NaN if neither varies, None for a single seed."""
    import mpmath

    if min(len(a), len(b)) < 2:
        return None
    with np.errstate(all="ignore"):  # a loss may be infinite, or NaN
        # squared standard errors of the means
        u = np.var(a, ddof=1) / len(a)
        v = np.var(b, ddof=1) / len(b)
        df = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))  # Welch-Satterthwaite
        x = df / (df + (np.mean(a) - np.mean(b)) ** 2 / (u + v))
    if not 0 < x <= 1:
        return math.nan
    # Student's tails are an incomplete beta function
    return float(mpmath.betainc(df / 2, 0.5, 0, x, regularized=True))


def verdict(groups: list[list[Curve]], first: Path) -> dict:
    """The comparison of `group`s for a program; docs/experiments.md describes the keys.

    `first` is the run that was named first; each `p` in "runs" is against its group. `by` is how
    much lower the loss of `better` is than the next one's. Both are None if losses cannot be
    compared; without a p, `why_not` says why.
    """
    every = [curve for curves in groups for curve in curves]
    names = dict.fromkeys(name for curve in every for name in curve.kind)
    differing = [n for n in names if any(c.kind.get(n) != every[0].kind.get(n) for c in every)]
    lowest = [[curve.lowest for curve in curves] for curves in groups]
    base = next(i for i, curves in enumerate(groups) if first in [curve.run for curve in curves])
    rows = []
    for i, curves in enumerate(groups):
        loss, spread = mean_and_spread(lowest[i])
        p = None if i == base else welch(lowest[i], lowest[base])
        settings = {name: curves[0].settings.get(name) for name in differing}
        row = {"name": str(curves[0].run), "runs": [str(curve.run) for curve in curves]}
        rows.append(row | {"settings": settings, "val_loss": loss, "spread": spread, "p": p})
    found: dict = dict.fromkeys(("better", "by", "p", "significant", "why_not"))
    found["runs"] = rows
    unfinished = [str(curve.run) for curve in every if not curve.finished]
    if len(rows) < 2:
        return found | {"why_not": "there is nothing to compare with"}
    if unfinished:
        return found | {"why_not": f"not finished: {', '.join(unfinished)}"}
    if len({curve.val_sha256 for curve in every} - {None}) > 1:
        return found | {"why_not": "the validation data differ"}
    ends = [{curve.points[-1, axis] for curve in every} for axis in (0, 1)]  # steps, tokens
    minutes = {curve.settings.get("train_minutes") or curve.run for curve in every}
    if all(len(values) > 1 for values in (*ends, minutes)):
        return found | {"why_not": "they were not trained for the same steps, tokens or minutes"}
    found["better"] = rows[0]["name"]
    found["by"] = rows[1]["val_loss"] - rows[0]["val_loss"]
    p = welch(*lowest[:2])
    if p is None:
        return found | {"why_not": "this needs at least two seeds of each"}
    if np.isnan(p):
        return found | {"why_not": "the losses of seeds do not vary, or are not finite"}
    return found | {"p": p, "significant": p < ALPHA}


def compare(runs: list[Path]) -> str:
    """A `verdict` as text, the best run first; the last line says whether it is better."""
    groups = group(runs)
    found = verdict(groups, Path(runs[0]))
    rows = found["runs"]
    table = {"": [row["name"] for row in rows], "seeds": [len(row["runs"]) for row in rows]}
    for name in rows[0]["settings"]:
        values = [row["settings"][name] for row in rows]
        table[name] = [f"{v:.4g}" if isinstance(v, float) else v for v in values]
    every = [curve for curves in groups for curve in curves]
    for axis, title in enumerate(AXES):
        end = min(curve.points[-1, axis] for curve in every)  # the last that all have reached
        reached = [curve.points[curve.points[:, axis] <= end, axis] for curve in every]
        # interpolated linearly between evaluations; between the first two it falls too fast
        title = f"at {end:,.1f} {title}".replace(".0 ", " ")
        table[title] = ["too few evaluations"] * len(groups)
        if all(len(places) > 1 or end in places for places in reached):
            losses = {c: np.interp(end, c.points[:, axis], c.points[:, 3]) for c in every}
            table[title] = [cell([losses[c] for c in curves]) for curves in groups]
    table["lowest"] = [cell([curve.lowest for curve in curves]) for curves in groups]
    if len(groups) > 2:
        values = ["" if row["p"] is None else f"{row['p']:.2g}" for row in rows]
        table["p against the first named"] = values
    width = 2 + max(16, *(len(str(value)) for values in table.values() for value in values))
    lines = []
    for title, values in table.items():
        lines.append(f"{title:<36}" + "".join(f"{value!s:>{width}}" for value in values))
    lines.append("")
    if found["better"] is not None and found["by"] > 0:
        lower = f"{found['better']} has a lower loss than {rows[1]['name']}"
        lines.append(f"{lower} by {found['by']:.4f}")
    if found["p"] is not None:
        what = "a significant" if found["significant"] else "no significant"
        lines.append(f"{what} difference (p = {found['p']:.2g}, Welch's t-test)")
    elif len(groups) > 1:
        lines.append(f"not tested for significance: {found['why_not']}")
    return "\n".join(lines)


def cell(losses: list[float]) -> str:
    """Losses of seeds as text: their mean and spread."""
    mean, spread = mean_and_spread(losses)
    return f"{mean:.4f}" if spread is None else f"{mean:.4f} ±{spread:.4f}"
