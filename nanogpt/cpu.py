"""Optimizations for the CPU. `model.py` is plain PyTorch; the functions here change a finished model.

>>> model = speed_up(GPT(config))  # before training                                          # doctest: +SKIP
>>> model = pack(model)  # before sampling, instead: a packed model cannot be trained         # doctest: +SKIP

Two ways are used, neither of which touches parameters, their names or gradient checkpointing:

- A torch module gets a subclass of its class, which overrides `forward` only: `norm.__class__ = FusedRMSNorm`.
  `isinstance(norm, nn.RMSNorm)` stays true. Subclasses made elsewhere keep their own forward.
- A torch function that `model.py` calls through an attribute is replaced in this one model by a function of the same
  signature: `attention.attention = fp32_attention`.

Each part gives the same values and gradients as torch up to rounding (tests/test_cpu.py). Outside of training all but
`pack` call torch's own functions. `python tests/performance/cpu_parts.py` measures each part; LOG.md has the results.
"""

import contextlib
import ctypes

import torch
import torch.nn.functional as F
from torch import nn

from nanogpt.model import GPT, CausalSelfAttention, rms_norm


def speed_up(model: GPT) -> GPT:
    """Makes the training of a model on a CPU faster, in place. Models on other devices stay as they are."""
    if model.wte.weight.device.type == "cpu":
        use_fused_rms_norm(model)
        use_fp32_attention(model)
    return model


def use_fused_rms_norm(model: GPT) -> None:
    """Computes RMSNorm in as few passes over memory as possible while training.

    torch has a fused kernel for CUDA only; on a CPU it takes twice as long (LOG.md).
    """
    for module in model.modules():
        if type(module) is nn.RMSNorm:
            module.__class__ = FusedRMSNorm
        elif isinstance(module, CausalSelfAttention):
            module.rms_norm = fused_rms_norm


class FusedRMSNorm(nn.RMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fused_rms_norm(x, self.weight, self.eps)


def fused_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`model.rms_norm`: x / sqrt(mean(x^2) + eps) * weight over the last dimension, in the weight's dtype."""
    if torch.is_grad_enabled():
        return RMSNormFunction.apply(x.to(weight.dtype), weight, eps)
    return rms_norm(x, weight, eps)


class RMSNormFunction(torch.autograd.Function):
    """RMSNorm (Zhang and Sennrich 2019); the weight may have dimensions before the last, such as one row per head."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.size(-1)).add_(eps).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        x, inverse, weight = ctx.saved_tensors
        normed = x * inverse
        by_weight = grad * normed
        projection = torch.linalg.vecdot(by_weight, weight).div_(x.size(-1)).unsqueeze(-1)
        grad_x = torch.addcmul(grad * weight, normed, projection, value=-1).mul_(inverse)
        return grad_x, by_weight.flatten(0, -1 - weight.ndim).sum(0), None


def use_fp32_attention(model: GPT) -> None:
    """Computes attention in fp32 while training: its backward pass takes four times as long in bf16 (LOG.md)."""
    for module in model.modules():
        if isinstance(module, CausalSelfAttention):
            module.attention = fp32_attention


def fp32_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args, **options) -> torch.Tensor:
    """`F.scaled_dot_product_attention`; while training in fp32, whatever the dtype of q, k, v and autocast's."""
    if not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, *args, **options)
    with torch.autocast("cpu", enabled=False):
        y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), *args, **options)
    return y.to(v.dtype)


@torch.no_grad()
def pack(model: GPT, smallest: int = 10_000_000) -> GPT:
    """Packs the weights of a model on the CPU for sampling, in place. A packed model cannot be trained.

    Models with fewer than `smallest` parameters stay as they are: they fit into the cache, so they gain nothing. So do
    models in bf16 where the CPU has no AVX-512 or the like, without which oneDNN packs no bf16.
    """
    small, weight = model.get_num_params() < smallest, model.wte.weight
    if small or weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return model
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return model
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child.weight, child.bias))
    if model.lm_head is None:
        model.lm_head = PackedLinear(model.wte.weight)
    model.linear = packed_linear
    return model


def packed_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear` by oneDNN, with a weight that is packed or not. It has no gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class PackedLinear(nn.Module):
    """Linear with its weight in oneDNN's own layout.

    Sampling reads all weights for each token, so it is bound by memory. For a few rows torch's Linear reaches less
    than half of the memory's speed in fp32, oneDNN nine tenths (LOG.md).
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        super().__init__()
        # the layout for 16 rows is faster for a single row than the layout for one (LOG.md)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 16)
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return packed_linear(x, self.weight, self.bias)


def keep_freed_memory() -> None:
    """Lets glibc keep the memory that a step frees for the next step: some 5 % faster on a CPU (LOG.md).

    By default glibc returns large blocks to the system at once, and each step pays for hundreds of page faults. The
    setting holds for the whole process. Does nothing with another C library.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
