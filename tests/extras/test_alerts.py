"""Alerts about a run's curves, and curves without alerts."""

import numpy as np
import pytest

from nanogpt.extras.dashboard.alerts import alerts


def curve(values, every: int = 10) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(1, len(values) + 1) * every, np.array(values, dtype=float)


def falling(n: int = 100, end: float = 1.5) -> np.ndarray:
    """A healthy loss: from 4.2 down to about `end`, with noise."""
    return end + (4.2 - end) * np.exp(-np.arange(n) / n * 6) + np.random.default_rng(0).normal(0, 0.05, n)


HEALTHY = {"train_loss": curve(falling()), "val_loss": curve([4.2, 2.5, 2.0, 1.8, 1.7, 1.65], 200)}


def overfit(train) -> dict:
    return {"train_loss": curve(train), "val_loss": curve([4.2, 2.0, 1.7, 1.6, 1.65, 1.7, 1.8], 140)}


def spiked(*where: int) -> np.ndarray:
    values = falling()
    values[list(where)] = 9.0
    return values


RISING = np.concatenate((falling(), np.full(10, 2.4)))
BACK = np.concatenate((np.linspace(4, 1.5, 50), np.linspace(1.5, 1.9, 50)))
STANDING = [4, 3, 2.5, 2.2, 2.0, 2.0, 1.9995, 2.001, 1.9999, 2.0]
FOUND = {  # curves: (kind, its step, words of it)
    "skipped steps": (HEALTHY | {"skipped_steps": curve([0, 0, 2, 2, 3, 3, 3])}, "nan", 50, "3 steps"),
    "a rise that stays": ({"train_loss": curve(RISING)}, "divergence", 1100, "2.40 from 1.4"),
    "validation alone rises": (overfit(np.linspace(4, 1, 100)), "overfitting", 560, "1.800"),
    "validation stands still": ({"val_loss": curve(STANDING, 100)}, "plateau", 500, ""),
    "the best was earlier": ({"val_loss": curve([4, 3, 2.5, 2.2, 2.1, 2.0, 1.9, *[1.9] * 5], 100)}, "plateau", 700, ""),
}
for bad in (float("nan"), float("inf")):
    for name in ("train_loss", "val_loss"):
        steps, values = (part.copy() for part in HEALTHY[name])
        values[3:5] = bad
        FOUND[f"{name} is {bad}"] = (HEALTHY | {name: (steps, values)}, "nan", steps[3], name)


@pytest.mark.parametrize("what", FOUND)
def test_an_alert_names_its_step(what):
    curves, kind, step, words = FOUND[what]
    (found,) = alerts(curves)
    assert found["kind"] == kind and found["step"] == step and words in found["text"]


QUIET = {
    "a healthy run": HEALTHY | {"skipped_steps": curve([0] * 100)},
    "no curve": {},
    "a first loss": {"train_loss": curve([4.2])},
    "a first evaluation": {"val_loss": curve([4.2])},
    "one spike": {"train_loss": curve(spiked(-2))},
    "two spikes": {"train_loss": curve(spiked(-2, -1))},
    "one worse evaluation": {
        "train_loss": curve(np.linspace(4, 1, 100)),
        "val_loss": curve([4.2, 2.0, 1.7, 1.6, 1.7], 200),
    },
    "creeping down": {"val_loss": curve([4, 3, 2.5, 2.2, 2.0, 1.99, 1.98, 1.97, 1.96, 1.95], 100)},
}


@pytest.mark.parametrize("what", QUIET)
def test_a_run_without_trouble_has_no_alert(what):
    assert alerts(QUIET[what]) == []


def test_validation_that_rises_with_training_is_no_overfitting():
    assert "overfitting" not in [alert["kind"] for alert in alerts(overfit(BACK))]
