"""Alerts about a run's curves, and curves without alerts."""

import numpy as np
import pytest

from nanogpt.extras.dashboard.alerts import alerts


def curve(values, every: int = 10) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(1, len(values) + 1) * every, np.array(values, dtype=float)


def falling(n: int = 100, end: float = 1.5) -> np.ndarray:
    """A healthy loss: from 4.2 down to about `end`, with noise."""
    return end + (4.2 - end) * np.exp(-np.arange(n) / n * 6) + np.random.default_rng(0).normal(0, 0.05, n)


def kinds(**curves) -> list[str]:
    return [alert["kind"] for alert in alerts(curves)]


HEALTHY = {"train_loss": curve(falling()), "val_loss": curve([4.2, 2.5, 2.0, 1.8, 1.7, 1.65], 200)}


def test_a_healthy_run_and_one_that_has_hardly_begun_have_none():
    assert kinds(**HEALTHY, skipped_steps=curve([0] * 100)) == []
    assert alerts({}) == [] == kinds(train_loss=curve([4.2])) == kinds(val_loss=curve([4.2]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["train_loss", "val_loss"])
def test_a_loss_that_is_not_finite_is_named_with_its_first_step(name, bad):
    steps, values = (part.copy() for part in HEALTHY[name])
    values[3:5] = bad
    (found,) = alerts(HEALTHY | {name: (steps, values)})
    assert found["kind"] == "nan" and found["step"] == steps[3] and name in found["text"]


def test_skipped_steps_are_counted_and_the_last_of_them_named():
    (found,) = alerts(HEALTHY | {"skipped_steps": curve([0, 0, 2, 2, 3, 3, 3])})
    assert found["kind"] == "nan" and found["step"] == 50 and found["text"].startswith("3 steps")


def test_a_loss_that_rises_and_stays_up_diverges():
    values = np.concatenate((falling(), np.full(10, 2.4)))
    (found,) = alerts({"train_loss": curve(values)})
    assert found["kind"] == "divergence" and found["step"] == 1100 and "to 2.40 from 1.4" in found["text"]


def test_a_single_spike_does_not_diverge():
    values = falling()
    values[-2] = 9.0
    assert kinds(train_loss=curve(values)) == []
    values[-1] = 9.0
    assert kinds(train_loss=curve(values)) == []


def overfit(train) -> dict:
    return {"train_loss": curve(train), "val_loss": curve([4.2, 2.0, 1.7, 1.6, 1.65, 1.7, 1.8], 140)}


def test_validation_that_rises_while_training_falls_is_overfitting_since_the_best_evaluation():
    (found,) = alerts(overfit(np.linspace(4, 1, 100)))
    assert found["kind"] == "overfitting" and found["step"] == 560 and "1.800" in found["text"]


def test_validation_that_rises_together_with_training_is_not_overfitting():
    assert "overfitting" not in kinds(**overfit(np.concatenate((np.linspace(4, 1.5, 50), np.linspace(1.5, 1.9, 50)))))


def test_one_worse_evaluation_is_not_overfitting():
    val = curve([4.2, 2.0, 1.7, 1.6, 1.7], 200)
    assert kinds(train_loss=curve(np.linspace(4, 1, 100)), val_loss=val) == []


def test_validation_that_stands_still_is_a_plateau_and_one_that_creeps_down_is_none():
    val = [4, 3, 2.5, 2.2, 2.0, 2.0, 1.9995, 2.001, 1.9999, 2.0]
    (found,) = alerts({"val_loss": curve(val, 100)})
    assert found["kind"] == "plateau" and found["step"] == 500
    assert kinds(val_loss=curve([4, 3, 2.5, 2.2, 2.0, 1.99, 1.98, 1.97, 1.96, 1.95], 100)) == []


def test_the_best_of_all_evaluations_before_counts_for_a_plateau():
    assert kinds(val_loss=curve([4, 3, 2.5, 2.2, 2.1, 2.0, 1.9, *[1.9] * 5], 100)) == ["plateau"]
