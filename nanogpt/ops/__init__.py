"""Operators that replace those of `nanogpt.model.Ops` on some devices."""

import torch

from nanogpt.model import GPTConfig, Ops
from nanogpt.ops.cpu import CPU
from nanogpt.ops.loss import loss_for


def ops_for(device: torch.device, config: GPTConfig, tokens: int) -> Ops:
    """The operators to train with on a device, for micro-batches of `tokens` tokens."""
    ops = CPU if device.type == "cpu" else Ops()
    return ops._replace(loss=loss_for(device, config, tokens))
