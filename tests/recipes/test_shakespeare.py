"""recipes/shakespeare.py chooses its model by the device of a run; recipes/sweep.yaml searches its settings."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml

from nanogpt import GPTConfig, TrainConfig
from nanogpt.run.flags import parse

RECIPE = Path(__file__).parents[2] / "recipes" / "shakespeare.py"


@pytest.mark.parametrize("flags, layers", [([], 6), (["--device=cpu"], 4), (["--n_head=2", "--device", "cpu"], 4)])
def test_the_device_flag_chooses_the_model(monkeypatch, flags, layers):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: FakeGPU)
    monkeypatch.setattr(sys, "argv", ["shakespeare.py", *flags])
    assert runpy.run_path(str(RECIPE))["MODEL"].n_layer == layers


class FakeGPU:
    total_memory = 16 * 2**30


def test_a_sweep_searches_settings_of_the_recipe():
    sweep = yaml.safe_load((RECIPE.parent / "sweep.yaml").read_text())
    flags = [
        f"--{name}={setting.get('min', setting.get('values', [0])[0])}" for name, setting in sweep["parameters"].items()
    ]
    assert parse(GPTConfig(), TrainConfig(), flags)[1].learning_rate == 0.003
    assert RECIPE.parents[1] / sweep["program"] == RECIPE and sweep["metric"]["name"] == "val_loss"
