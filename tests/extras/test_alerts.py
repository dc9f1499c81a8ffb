"""Alerts about a run's curves, and curves without alerts."""

import numpy as np
import pytest

from nanogpt.extras.dashboard.alerts import CURVES, find_alerts


def curve(values, every: int = 10) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(1, len(values) + 1) * every, np.array(values, dtype=float)


NO_CURVES = dict.fromkeys(CURVES, curve([]))
NAN, INF = float("nan"), float("inf")
FALLING = np.linspace(4, 1.5, 100)
HEALTHY = {"train_loss": curve(FALLING), "val_loss": curve([4.2, 2.5, 2.0, 1.8, 1.7, 1.65], 200)}
OVERFIT = [4.2, 2.0, 1.7, 1.6, 1.65, 1.7, 1.8]
FOUND = {  # curves: (kind, its step, words of it)
    "skipped steps": (HEALTHY | {"skipped_steps": curve([0, 0, 2, 2, 3, 3, 3])}, "nan", 50, "3 steps"),
    "NaN": (HEALTHY | {"train_loss": curve([3, 2, NAN, NAN])}, "nan", 30, "train_loss is nan"),
    "infinity": (HEALTHY | {"val_loss": curve([3, INF, 2])}, "nan", 20, "val_loss is inf"),
    "a rise that stays": ({"train_loss": curve([*FALLING, *[2.4] * 10])}, "divergence", 1100, "2.40 from 1.5"),
    "validation rises": (HEALTHY | {"val_loss": curve(OVERFIT, 140)}, "overfitting", 560, "1.800"),
}


@pytest.mark.parametrize("what", FOUND)
def test_an_alert_names_its_step(what):
    curves, kind, step, words = FOUND[what]
    (found,) = find_alerts(NO_CURVES | curves)
    assert found["kind"] == kind and found["step"] == step and words in found["text"]


QUIET = {
    "a healthy run": HEALTHY | {"skipped_steps": curve([0] * 100)},
    "no curve": {},
    "a first loss": {"train_loss": curve([4.2]), "val_loss": curve([4.2])},
    "two spikes": {"train_loss": curve([*FALLING, 9, 9, 1.5])},
    "one worse evaluation": {"val_loss": curve([4.2, 2.0, 1.7, 1.6, 1.7], 200)},
}


@pytest.mark.parametrize("what", QUIET)
def test_a_run_without_trouble_has_no_alert(what):
    assert find_alerts(NO_CURVES | QUIET[what]) == []
