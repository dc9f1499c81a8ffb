"""The loss over a large vocabulary, in chunks of rows: the logits never exist as a whole.

For 12 sequences of 1024 tokens and GPT-2's vocabulary the logits are 618 million numbers, 2.5 GB in
fp32, and plain cross-entropy holds several copies of them, or of their gradient, at once. Here a
chunk's logits, loss and gradient are computed one after the other and forgotten, with the same
three matmuls. Training on a CPU does not use it. torch 2.13 has `F.linear_cross_entropy` with
chunks, but earlier versions do not, and torch.compile does not compile it (LOG.md).
"""

import math

import torch
import torch.nn.functional as F

from nanogpt.model import cross_entropy

CHUNK = 2**26  # logits at a time, 0.27 GB in fp32; on CUDA for each 16 GiB of the device


def chunked_loss(x, weight, bias, targets, reduction="mean") -> torch.Tensor:
    """`model.cross_entropy`, in chunks of 64 rows or more if the logits exceed two of them."""
    kind, chunk = x.device.type, CHUNK
    if kind == "cuda":
        chunk = CHUNK * torch.cuda.get_device_properties(x.device).total_memory // 2**34
    if targets.numel() * len(weight) <= 2 * chunk or reduction == "none":
        return cross_entropy(x, weight, bias, targets, reduction)
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    x, weight, bias = (tensor.to(dtype) for tensor in (x.flatten(0, 1), weight, bias))
    targets = targets.flatten()
    with torch.autocast(kind, enabled=False):
        loss = ChunkedLoss.apply(x, weight, bias, targets, torch.is_grad_enabled(), chunk)
    return loss if reduction == "sum" else loss / (targets != -1).sum()


class ChunkedLoss(torch.autograd.Function):
    """The sum of losses in fp32. The gradients are computed while a chunk's logits are there."""

    @staticmethod
    def forward(ctx, x, weight, bias, targets, training: bool, chunk: int) -> torch.Tensor:
        """x (N, C), weight (V, C), bias (V), targets (N); without `training` no gradients."""
        chunks = math.ceil(len(x) * len(weight) / chunk)
        rows = 64 * math.ceil(len(x) / (64 * chunks))
        loss = torch.zeros((), device=x.device)
        grad_x = []
        grad_weight = torch.zeros(weight.shape, device=x.device) if training else None
        for x_rows, its_targets in zip(x.split(rows), targets.split(rows), strict=True):
            grad_x.append(add_chunk(x_rows, its_targets, weight, bias, loss, grad_weight))
        if training:
            ctx.save_for_backward(torch.cat(grad_x), grad_weight)
        return loss

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        x, weight = ctx.saved_tensors
        # scaled in fp32: the scale of fp16 keeps small gradients from vanishing
        return (x * grad).to(x.dtype), (weight * grad).to(x.dtype), None, None, None, None


def add_chunk(x, targets, weight, bias, loss, grad_weight) -> torch.Tensor | None:
    """Adds a chunk's loss to `loss` and its weight gradient to grad_weight; returns that of x."""
    logs = F.linear(x, weight, bias).log_softmax(-1, dtype=torch.float32)  # (rows, V)
    loss += F.nll_loss(logs, targets, ignore_index=-1, reduction="sum")
    if grad_weight is None:
        return None
    kept = (targets != -1)[:, None]
    # The gradient of the logits: their probabilities, minus 1 at the targets. A compiler fuses the
    # comparison; scatter_add_ would need the probabilities in memory, in fp32
    at_target = torch.arange(len(weight), device=x.device) == targets[:, None]
    grad = logs.exp_().mul_(kept).sub_(at_target.byte()).to(x.dtype)
    grad_weight += grad.mT @ x
    return grad @ weight
