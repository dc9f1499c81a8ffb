"""Alerts about a run's curves: values that are not finite, divergence, overfitting."""

import numpy as np

CURVES = ("train_loss", "val_loss", "skipped_steps")  # the curves that `find_alerts` reads
Curve = tuple[np.ndarray, np.ndarray]  # steps and values, both (N,)


def find_alerts(curves: dict[str, Curve]) -> list[dict]:
    """The alerts for a run's curves, by name in metrics.jsonl: {"kind", "step", "text"} each.

    All of CURVES are there, but may be empty, and values may not be finite.
    """
    found = []
    for name in ("train_loss", "val_loss"):
        steps, values = curves[name]
        for i in np.flatnonzero(~np.isfinite(values))[:1]:
            found.append(("nan", steps[i], f"{name} is {values[i]} at step {steps[i]:,.0f}"))
    steps, skipped = curves["skipped_steps"]
    for i in np.flatnonzero(np.diff(skipped, prepend=0))[-1:]:
        text = f"{skipped[-1]:,.0f} steps with a non-finite gradient were skipped"
        found.append(("nan", steps[i], f"{text}, the last by step {steps[i]:,.0f}"))
    found += diverging(*finite(*curves["train_loss"]))
    found = found or overfitting(*finite(*curves["val_loss"]))
    return [{"kind": kind, "step": int(step), "text": text} for kind, step, text in found]


def diverging(steps, values, window: int = 5, rise: float = 0.5) -> list[tuple]:
    """The training loss (its median over `window` lines) is `rise` nats above its minimum."""
    if len(values) < 2 * window:
        return []
    medians = np.median(np.lib.stride_tricks.sliding_window_view(values, window), axis=1)
    low, now, since = medians.min(), medians[-1], steps[medians.argmin()]
    if now < low + rise:
        return []
    text = f"training loss has risen to {now:.2f} from {low:.2f} at step {since:,.0f}"
    return [("divergence", steps[-1], text)]


def overfitting(steps, values, rise: float = 0.01) -> list[tuple]:
    """Validation loss is `rise` (a share) above its best, for two evaluations at least."""
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
