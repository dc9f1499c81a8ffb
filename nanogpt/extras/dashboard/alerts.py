"""Alerts about a run's curves: values that are not finite, divergence, overfitting, a plateau.

Pure functions of the measurements; the thresholds are default arguments.
"""

import numpy as np

CURVES = ("train_loss", "val_loss", "skipped_steps")  # the curves that `alerts` reads
Curve = tuple[np.ndarray, np.ndarray]  # steps and values, both (N,)


def alerts(curves: dict[str, Curve]) -> list[dict]:
    """The alerts for a run's curves, by name in metrics.jsonl: {"kind", "step", "text"} each.

    Curves may be missing from `curves`, and values may not be finite.
    """
    found = not_finite(curves) + diverging(curves)
    found += overfitting(curves) or ([] if found else plateau(curves))
    return [{"kind": kind, "step": int(step), "text": text} for kind, step, text in found]


def not_finite(curves: dict[str, Curve]) -> list[tuple]:
    """A loss is NaN or infinite, or steps were skipped because their gradient was."""
    found = []
    for name in ("train_loss", "val_loss"):
        steps, values = curves.get(name, ((), ()))
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            i = bad[0]
            found.append(("nan", steps[i], f"{name} is {values[i]} at step {steps[i]:,.0f}"))
    steps, skipped = curves.get("skipped_steps", ((), ()))
    if len(skipped) and skipped[-1] > 0:
        last = steps[np.flatnonzero(np.diff(skipped, prepend=0) > 0)[-1]]
        text = (
            f"{skipped[-1]:,.0f} steps were skipped because of a non-finite gradient, "
            f"the last by step {last:,.0f}"
        )
        found.append(("nan", last, text))
    return found


def diverging(curves: dict[str, Curve], window: int = 5, rise: float = 0.5) -> list[tuple]:
    """The training loss (its median over `window` lines) is `rise` nats above its minimum."""
    steps, values = finite(curves, "train_loss")
    if len(values) < 2 * window:
        return []
    medians = np.median(np.lib.stride_tricks.sliding_window_view(values, window), axis=1)
    low, now, since = medians.min(), medians[-1], steps[medians.argmin()]
    if now < low + rise:
        return []
    text = f"training loss has risen to {now:.2f} from {low:.2f} at step {since:,.0f}"
    return [("divergence", steps[-1], text)]


def overfitting(curves: dict[str, Curve], rise: float = 0.01) -> list[tuple]:
    """Validation loss is `rise` (a share) above its best while training loss falls.

    Both for at least two evaluations.
    """
    steps, values = finite(curves, "val_loss")
    train_steps, train = finite(curves, "train_loss")
    best = values.argmin() if len(values) else 0
    if len(values) - 1 - best < 2 or values[best + 1 :].min() < values[best] * (1 + rise):
        return []
    half = (steps[-1] - steps[best]) / 2
    then = train[(train_steps > steps[best] - half) & (train_steps <= steps[best])]
    now = train[train_steps > steps[-1] - half]
    if not len(then) or not len(now) or np.median(now) >= np.median(then):
        return []
    text = (
        f"validation loss has risen to {values[-1]:.3f} from its best, {values[best]:.3f} "
        f"at step {steps[best]:,.0f}, while training loss fell"
    )
    return [("overfitting", steps[best], text)]


def plateau(curves: dict[str, Curve], evaluations: int = 5, gain: float = 0.001) -> list[tuple]:
    """The last `evaluations` improved the best validation loss by less than a share of `gain`."""
    steps, values = finite(curves, "val_loss")
    if len(values) < 2 * evaluations:
        return []
    best, since = values[:-evaluations].min(), steps[-evaluations - 1]
    if values[-evaluations:].min() < best * (1 - gain):
        return []
    text = f"validation loss has hardly improved on {best:.3f} since step {since:,.0f}"
    return [("plateau", since, text)]


def finite(curves: dict[str, Curve], name: str) -> Curve:
    """The points of a curve whose value is finite."""
    steps, values = (np.asarray(part, dtype=float) for part in curves.get(name, ((), ())))
    return steps[np.isfinite(values)], values[np.isfinite(values)]
