"""Faster operators for the CPU.

    model = GPT(config, ops=CPU)  # for training
    model = pack(model)  # for sampling: a packed model cannot be trained

Each operator gives the same values and gradients as torch up to rounding (tests/ops/test_cpu.py);
dropout draws different random numbers. Without gradients all but `pack` call torch's own functions.
`python benchmarks/cpu_parts.py` measures each operator; LOG.md has the results.
"""

import contextlib
import ctypes
import functools
import math
import platform

import torch
import torch.nn.functional as F
from torch import nn

from nanogpt.model import GPT, Linear, Ops, attention, cross_entropy, rms_norm

X86 = platform.machine().lower() in ("x86_64", "amd64")
NARROWEST, WIDEST = 8, 96  # outputs in a block of packed weights; 96 are fastest (LOG.md)
FEW = 8  # rows, up to which bags are faster than a matmul
SUM = 0  # the mode of a bag
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


@torch.no_grad()
def pack(model: GPT, int8: bool = False, smallest: int = 10_000_000) -> GPT:
    """Packs the weights of a model on the CPU for sampling, in place: it can no longer be trained.

    With `int8` they are rounded to 8 bits. Without it, models with fewer than `smallest` parameters
    stay as they are: they fit into the cache and gain nothing. So do all models on anything but an
    x86 CPU; int8 raises ValueError there.
    """
    device = model.wte.weight.device.type
    fast = device == "cpu" and X86
    if int8 and not fast:
        raise ValueError(
            f"dtype=int8 is for x86 CPUs, and the model is on {device}: choose bfloat16"
        )
    if not fast or (not int8 and model.get_num_params() < smallest):
        return model
    if model.lm_head is None:  # the embedding stays as it is, and the logits get a packed copy
        c = model.config
        model.lm_head = Linear(c.n_embd, c.padded_vocab_size, bias=False, device="meta")
        model.lm_head.weight = model.wte.weight
    for linear in (module for module in model.modules() if isinstance(module, Linear)):
        if linear.out_features % NARROWEST == 0:
            linear.weight = nn.Parameter(packed(linear.weight, int8), requires_grad=False)
    loss = functools.partial(cross_entropy, linear=packed_linear)
    return model.use(model.ops._replace(linear=packed_linear, loss=loss))


def packed(weight: torch.Tensor, int8: bool = False) -> torch.Tensor:
    """The weight (V, C) of a Linear for `packed_linear`: blocks of columns (blocks, C, width).

    A matrix times a vector is the weighted sum of the matrix's columns, which is what an embedding
    bag computes. torch's kernel for it (FBGEMM) reads memory at up to nine tenths of its speed, a
    matmul at half of it (LOG.md), in bf16 and with weights of 8 bits too. The kernel keeps its sums
    in registers if they are few: hence the blocks, and a bag for each block and row of x.

    With 8 bits, (blocks * C, width + 8): the numbers of a block's column share a scale and an
    offset in fp32, which follow them.
    """
    outputs, inputs = weight.shape
    width = max(width for width in range(NARROWEST, WIDEST + 1, NARROWEST) if outputs % width == 0)
    columns = weight.detach().view(-1, width, inputs).transpose(1, 2).contiguous()
    if not int8:
        return columns
    return torch.ops.quantized.embedding_bag_byte_prepack(columns.flatten(0, 1).float())


def packed_linear(x, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear` of x (..., C) with a `packed` weight, or an ordinary one. It has no gradient."""
    int8 = weight.dtype == torch.uint8
    if not int8 and weight.ndim == 2:
        return F.linear(x, weight, bias)
    C = x.size(-1)
    R = x.numel() // C  # rows
    if not int8:
        weight = weight.flatten(0, 1)  # (blocks * C, width)
    blocks = weight.size(0) // C
    if R <= FEW:
        y = bags(x.reshape(1, R, C), weight, blocks)  # (blocks * R, width)
    else:
        if int8:
            weight = torch.ops.quantized.embedding_bag_byte_unpack(weight)
        elif weight.dtype != torch.float32 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            weight = weight.float()  # matmuls in half precision take six times as long there
        y = x.reshape(R, C).to(weight.dtype) @ weight.view(blocks, C, -1)  # (blocks, R, width)
        y = y.to(x.dtype)
    if R > 1:
        y = y.view(blocks, R, -1).transpose(0, 1)  # (R, blocks, width)
    y = y.reshape(*x.shape[:-1], -1)  # (..., V)
    return y if bias is None else y + bias


def bags(x: torch.Tensor, weight: torch.Tensor, blocks: int) -> torch.Tensor:
    """x (1, R, C) times each block of a flattened packed weight: (blocks * R, width)."""
    _, R, C = x.shape
    scales = x.expand(blocks, -1, -1).flatten()
    # torch.compile warns at a cache, and needs none
    number = columns_in_bags if torch.compiler.is_compiling() else cached_columns
    columns, starts = number(blocks, R, C)
    if weight.dtype == torch.uint8:
        bag = torch.ops.quantized.embedding_bag_byte_rowwise_offsets
        return bag(weight, columns, starts, mode=SUM, per_sample_weights=scales)
    return F.embedding_bag(columns, weight, starts, mode="sum", per_sample_weights=scales)


def columns_in_bags(blocks: int, rows: int, C: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The column numbers of the bags, one bag for each block and row, and where each bag starts."""
    columns = torch.arange(blocks * C, dtype=torch.int32).view(blocks, 1, C)
    columns = columns.expand(-1, rows, -1).reshape(-1)
    return columns, torch.arange(0, columns.numel(), C, dtype=torch.int32)


cached_columns = functools.lru_cache(maxsize=32)(columns_in_bags)


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
