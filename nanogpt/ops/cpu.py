"""Faster operators for the CPU.

    model = GPT(config, ops=CPU)

Each operator gives the same values and gradients as torch up to rounding (tests/ops/test_cpu.py);
dropout draws different random numbers.
`python benchmarks/cpu_parts.py` measures each operator; LOG.md has the results.
"""

import ctypes
import math
from contextlib import nullcontext, suppress

import torch
import torch.nn.functional as F

from nanogpt.model import Ops, attention, rms_norm

ROWS = 128  # queries at a time in attention that is written out (LOG.md)


def fused_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`model.rms_norm` in as few passes over memory as possible while training.

    torch has a fused kernel for CUDA only; on a CPU it takes twice as long (LOG.md).
    """
    if torch.is_grad_enabled():
        return RMSNormFunction.apply(x.to(weight.dtype), weight, eps)
    return rms_norm(x, weight, eps)


class RMSNormFunction(torch.autograd.Function):
    """RMSNorm (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + eps) * weight, over the last dim."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.size(-1)).add_(eps).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        x, inverse, weight = ctx.saved_tensors
        normed = x * inverse
        by_weight = grad * normed
        projection = torch.linalg.vecdot(by_weight, weight).div_(x.size(-1)).unsqueeze(-1)
        grad_x = torch.addcmul(grad * weight, normed, projection, value=-1).mul_(inverse)
        return grad_x, by_weight.flatten(0, -2).sum(0), None


def fast_attention(q, k, v, mask=None, dropout=0.0, causal=False, enable_gqa=False) -> torch.Tensor:
    """`model.attention`, written out in matmuls if that is faster.

    That is the case in bf16 up to 1024 tokens, in fp32 up to 256 while training (LOG.md), and with
    dropout, for which torch has no kernel on the CPU. torch's backward pass takes four times as
    long in bf16 as in fp32, so it gets fp32 whatever the dtype of v.
    """
    dtype, with_gradients = v.dtype, torch.is_grad_enabled()
    longest = 1024 if dtype.itemsize == 2 else 256 if with_gradients else 0
    compiled_dropout = dropout and torch.compiler.is_compiling()
    suits = causal and mask is None and not compiled_dropout
    written_out = suits and (dropout or q.size(-2) <= longest)
    if not with_gradients and not written_out:
        return attention(q, k, v, mask, dropout, causal, enable_gqa)
    # autocast would round fp32; around bf16 it changes nothing, and Inductor does not cache it
    mixed = dtype.itemsize > 2 and torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", enabled=False) if mixed or not written_out else nullcontext():
        if written_out:
            if enable_gqa:
                k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
            return causal_attention(q.to(dtype), k.to(dtype), v, dropout)
        y = attention(q.float(), k.float(), v.float(), mask, dropout, causal, enable_gqa)
    return y.to(dtype)


def causal_attention(q, k, v, dropout: float) -> torch.Tensor:
    """Causal attention of q, k, v (B, H, T, D), with dropout of the weights.

    `ROWS` queries at a time, which skip the keys after them. Matmuls and weights have the inputs'
    dtype, as under autocast.
    """
    B, H, T, D = q.shape
    q, k, v = (x.reshape(B * H, T, D).split(ROWS, dim=1) for x in (q, k, v))
    y = []
    for i, rows in enumerate(q):
        keys, values = torch.cat(k[: i + 1], dim=1), torch.cat(v[: i + 1], dim=1)
        future = rows.new_full((rows.size(1), keys.size(1)), -math.inf).triu_(i * ROWS + 1)
        scores = torch.baddbmm(future, rows, keys.mT, alpha=1 / math.sqrt(D))
        weights = torch._softmax(scores, -1, False)  # (B H, rows, keys); autocast leaves it
        if dropout:
            weights = weights * dropout_mask(weights, dropout)
        y.append(weights @ values)
    return torch.cat(y, dim=1).view(B, H, T, D)


def fast_dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """`F.dropout` that draws four random numbers at once: torch takes several times as long."""
    if not training or not p or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    return x * dropout_mask(x, p)


def dropout_mask(x: torch.Tensor, p: float) -> torch.Tensor:
    """Dropout's factors for x: 0 with probability p, to the nearest 1/65536, or a constant."""
    n, dropped = x.numel(), min(round(p * 2**16), 2**16 - 1)
    numbers = torch.empty(math.ceil(n / 4), dtype=torch.int64, device=x.device)
    numbers.random_(-(2**63), None)  # drawn one by one: 64 bits serve four elements
    numbers = numbers.view(torch.int16)[:n].view(x.shape)
    kept = torch.ge(numbers, dropped - 2**15, out=x.new_empty(x.shape))
    return kept.mul_(2**16 / (2**16 - dropped))


CPU = Ops(rms_norm=fused_rms_norm, attention=fast_attention, dropout=fast_dropout)


def keep_freed_memory() -> None:
    """Lets glibc keep the memory that a step frees for the next: 5 % faster on a CPU (LOG.md).

    By default glibc returns large blocks to the system at once, and each step pays for hundreds of
    page faults. Holds for the whole process; does nothing with another C library.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h
    with suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
