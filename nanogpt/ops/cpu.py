"""Faster operators for the CPU.

    model = GPT(config, ops=CPU)

Each operator gives the same values and gradients as torch up to rounding (tests/ops/test_cpu.py);
dropout draws different random numbers. Without gradients they call torch's own functions.
`python benchmarks/cpu_parts.py` measures each operator; LOG.md has the results.
"""

import contextlib
import ctypes
import math

import torch
import torch.nn.functional as F

from nanogpt.model import Ops, attention, rms_norm

SHORT = 64  # tokens, up to which attention is faster written out (LOG.md)


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
    """`model.attention`; while training in fp32, whatever the dtype of q, k, v and autocast's.

    torch's backward pass takes four times as long in bf16 as in fp32. For short sequences it takes
    longer than plain matmuls do, and with dropout torch has no kernel on the CPU (LOG.md).
    """
    if not torch.is_grad_enabled():
        return attention(q, k, v, mask, dropout, causal, enable_gqa)
    dtype = v.dtype
    plain = causal and mask is None and not torch.compiler.is_compiling()
    with torch.autocast("cpu", enabled=False):
        q, k, v = q.float(), k.float(), v.float()
        if plain and (dropout or q.size(-2) <= SHORT):
            if enable_gqa:
                k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
            y = AttentionFunction.apply(q, k, v, dropout)
        else:
            y = attention(q, k, v, mask, dropout, causal, enable_gqa)
    return y.to(dtype)


class AttentionFunction(torch.autograd.Function):
    """Causal attention of q, k, v (B, H, T, D), written out, with dropout of the weights."""

    @staticmethod
    def forward(ctx, q, k, v, dropout: float) -> torch.Tensor:
        B, H, T, D = q.shape
        ctx.shape, ctx.scale = q.shape, 1 / math.sqrt(D)
        q, k, v = (x.reshape(B * H, T, D) for x in (q, k, v))
        future = q.new_full((T, T), -math.inf).triu_(1)
        weights = torch.baddbmm(future, q, k.mT, alpha=ctx.scale).softmax(-1)  # (B H, T, T)
        kept = dropout_mask(weights, dropout) if dropout else None
        ctx.save_for_backward(q, k, v, weights, kept)
        return ((weights * kept if dropout else weights) @ v).view(B, H, T, D)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        q, k, v, weights, kept = ctx.saved_tensors
        grad = grad.reshape(v.shape)
        grad_weights = grad @ v.mT
        dropped = weights
        if kept is not None:
            grad_weights *= kept
            dropped = weights * kept
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_q = torch.baddbmm(q, grad_scores, k, beta=0, alpha=ctx.scale)
        grad_k = torch.baddbmm(k, grad_scores.mT, q, beta=0, alpha=ctx.scale)
        return *(x.view(ctx.shape) for x in (grad_q, grad_k, dropped.mT @ grad)), None


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
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
