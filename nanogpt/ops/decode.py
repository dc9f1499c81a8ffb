"""Sampling on a CPU with torch.compile: a block reads its weights once, in a single kernel.

    model = compile_decoding(model)  # for sampling: it can no longer be trained

Sampling a token cannot be faster than reading the weights once. torch's one-row matmul reads them
at half the memory bandwidth, and some 400 small operators run one after another. Here a matmul of
one row is written as a sum, which Inductor fuses with the norm before it and the residual after it.
All blocks share one compilation, for any length of the context.
`python benchmarks/sampling.py` compares the speed with other programs; LOG.md has the results.
"""

import functools
import math
import shutil

import torch
import torch.nn.functional as F

from nanogpt.model import GPT, attention, cross_entropy

SMALL = 2**21  # elements of rows times weights up to which a sum is faster than a matmul (LOG.md)
# Tokens times parameters from which compiling pays: it takes 3 to 18 s and saves a third of the
# time (LOG.md)
WORTHWHILE = 1e11


def linear(x: torch.Tensor, weight: torch.Tensor, bias=None) -> torch.Tensor:
    """`F.linear` of x (..., C); written as a sum if there are few rows and it is compiled."""
    rows = x.numel() // x.size(-1)
    if rows > 1 and rows * weight.numel() > SMALL:
        return F.linear(x, weight, bias)
    y = rows_sum(x, weight) if torch.compiler.is_compiling() else compiled_rows_sum()(x, weight)
    return (y if bias is None else y + bias).to(x.dtype)


def rows_sum(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (..., C) @ weight.T for a weight (V, C); accumulates in fp32 if compiled."""
    if not torch.compiler.is_compiling():  # prompts are read without compilation
        return F.linear(x, weight)
    C = x.size(-1)
    # Inductor stores what as_strided is applied to; otherwise it would compute x for each output
    rows = x.reshape(-1).as_strided((x.numel() // C, 1, C), (C, C, 1)).float()
    return (rows * weight.float()).sum(-1).view(*x.shape[:-1], -1)


@functools.cache
def compiled_rows_sum():
    """`rows_sum`, compiled at its first use: importing torch.compile takes two seconds."""
    return torch.compile(rows_sum, dynamic=False)


def single_query(q, k, v, mask=None, dropout=0.0, causal=False, enable_gqa=False) -> torch.Tensor:
    """`model.attention`, with one query (B, H, 1, D) written out for torch.compile to fuse."""
    B, H, T, D = q.shape
    if T > 1 or not torch.compiler.is_compiling():
        return attention(q, k, v, mask, dropout, causal, enable_gqa)
    assert mask is None  # the cache gives a single query none
    K = k.size(1)
    q = q.reshape(B, K, H // K, 1, D).float() / math.sqrt(D)
    weights = (q * k[:, :, None].float()).sum(-1).softmax(-1)  # (B, K, H / K, S)
    y = (weights[..., None] * v[:, :, None].float()).sum(-2)  # (B, K, H / K, D)
    return y.view(B, H, 1, D).to(v.dtype)


def is_worth_compiling(model: GPT, tokens: int) -> bool:
    """Whether compiling saves more time than it takes, if so many tokens are sampled on a CPU."""
    on_cpu = model.wte.weight.device.type == "cpu"
    return on_cpu and has_compiler() and tokens * model.get_num_params() > WORTHWHILE


def has_compiler() -> bool:
    return any(map(shutil.which, ("g++", "clang++", "c++")))


def compile_decoding(model: GPT) -> GPT:
    """Compiles the blocks of a model on a CPU for sampling, in place, at its first new token.

    Raises ValueError on another device, or if there is no C++ compiler.
    """
    device = model.wte.weight.device.type
    if device != "cpu":
        raise ValueError(f"compiled sampling is for CPUs, and the model is on {device}")
    if not has_compiler():
        raise ValueError("compiled sampling needs a C++ compiler: install g++ or clang")
    loss = functools.partial(cross_entropy, linear=linear)
    model.use(model.ops._replace(linear=linear, attention=single_query, loss=loss))
    for block in model.h:
        block.forward = torch.compile(block.forward, dynamic=True)
    return model
