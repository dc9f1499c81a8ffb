"""Alerts about a run's curves: values that are not finite, divergence, overfitting.

Pure functions of the measurements; the thresholds are default arguments.
"""

import numpy as np

CURVES = ("train_loss", "val_loss", "skipped_steps")  # the curves that `alerts` reads
Curve = tuple[np.ndarray, np.ndarray]  # steps and values, both (N,)
NO_CURVE = (np.empty(0), np.empty(0))


def alerts(curves: dict[str, Curve]) -> list[dict]:
    """The alerts for a run's curves, by name in metrics.jsonl: {"kind", "step", "text"} each.

    Curves may be missing from `curves`, and values may not be finite.
    """
    found = not_finite(curves) + diverging(curves) or overfitting(curves)
    return [{"kind": kind, "step": int(step), "text": text} for kind, step, text in found]


def not_finite(curves: dict[str, Curve]) -> list[tuple]:
    """A loss is NaN or infinite, or steps were skipped because their gradient was."""
    found = []
    for name in ("train_loss", "val_loss"):
        steps, values = curves.get(name, NO_CURVE)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            i = bad[0]
            found.append(("nan", steps[i], f"{name} is {values[i]} at step {steps[i]:,.0f}"))
    steps, skipped = curves.get("skipped_steps", NO_CURVE)
    if len(skipped) and skipped[-1] > 0:
        last = steps[np.flatnonzero(np.diff(skipped, prepend=0))[-1]]
        text = f"{skipped[-1]:,.0f} steps with a non-finite gradient were skipped"
        found.append(("nan", last, f"{text}, the last by step {last:,.0f}"))
    return found


def diverging(curves: dict[str, Curve], window: int = 5, rise: float = 0.5) -> list[tuple]:
    """The training loss (its median over `window` lines) is `rise` nats above its minimum."""
    steps, values = finite(*curves.get("train_loss", NO_CURVE))
    if len(values) < 2 * window:
        return []
    medians = np.median(np.lib.stride_tricks.sliding_window_view(values, window), axis=1)
    low, now, since = medians.min(), medians[-1], steps[medians.argmin()]
    if now < low + rise:
        return []
    text = f"training loss has risen to {now:.2f} from {low:.2f} at step {since:,.0f}"
    return [("divergence", steps[-1], text)]


def overfitting(curves: dict[str, Curve], rise: float = 0.01) -> list[tuple]:
    """Validation loss is `rise` (a share) above its best, for two evaluations at least."""
    steps, values = finite(*curves.get("val_loss", NO_CURVE))
    best = values.argmin() if len(values) else 0
    after = values[best + 1 :]
    if len(after) < 2 or after.min() < values[best] * (1 + rise):
        return []
    text = f"validation loss has risen to {values[-1]:.3f} from its best, {values[best]:.3f}"
    return [("overfitting", steps[best], f"{text} at step {steps[best]:,.0f}")]


def finite(steps: np.ndarray, values: np.ndarray) -> Curve:
    """The points of a curve whose value is finite."""
    shown = np.isfinite(values)
    return steps[shown], values[shown]
