"""recipes/shakespeare.py chooses its model by the device that a run will use."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

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
