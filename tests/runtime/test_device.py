"""What the launcher, the machine and the settings come to together; `launch-check` itself is in test_commands.py."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from nanogpt.runtime import device


def test_accumulation_that_does_not_divide_says_which_counts_do(make_run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps=4 .* with 3 processes choose 3, 6, 9"):
        make_run(gradient_accumulation_steps=4)


def test_muon_under_fsdp_is_refused(make_run, monkeypatch):
    sharded = SimpleNamespace(num_processes=1, device=torch.device("cpu"), distributed_type=DistributedType.FSDP)
    monkeypatch.setattr(device, "Accelerator", lambda **kwargs: sharded)
    with pytest.raises(
        ValueError, match="optimizer=muon needs whole matrices, and FSDP shards them: use --optimizer=adamw"
    ):
        make_run(optimizer="muon")


def test_a_device_that_the_launcher_overrules_is_an_error(make_run, monkeypatch):
    on_cpu = SimpleNamespace(num_processes=1, device=torch.device("cpu"), distributed_type=DistributedType.NO)
    monkeypatch.setattr(device, "Accelerator", lambda **kwargs: on_cpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="device=cuda, but the launcher chose cpu"):
        make_run(device="cuda", precision="fp32")
