"""Compiled sampling on a CPU: every token reads the weights once, in few kernels.

    model = compile_decoding(model)  # for sampling: it can no longer be trained

Sampling a token cannot be faster than reading the weights once. torch's one-row matmul reads them
at half the memory bandwidth, and some 400 small operators run one after another. Here a matmul of
one row is written as a sum, which Inductor fuses with the norm before it and the residual after it.
A block is compiled as a function of its weights: once for all blocks and lengths of the context.
`python benchmarks/sampling.py` compares the speed with other programs; LOG.md has the results.
"""

import copy
import functools
import math
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from nanogpt.model import GPT, Block, Linear, Ops, attention, cross_entropy
from nanogpt.ops.aot import Program
from nanogpt.ops.cpu import CPU
from nanogpt.sample import LayerCache

SMALL = 2**21  # elements of rows times weights up to which a sum is faster than a matmul (LOG.md)
WORTHWHILE = 1e11  # tokens times parameters: fewer save less time than a first run takes (LOG.md)
HAS_AVX512 = "AVX512" in torch.backends.cpu.get_cpu_capability()


class Int8(nn.Module):
    """A weight of a Linear in 8 bits: numbers (V, C), and the scale of each row (V,) in fp32.

    Without AVX-512 only vectors of floats are loaded fast (LOG.md). There, four numbers make a word
    of 32 bits, one from each quarter of a row, and `numbers` has these words as fp32 (V, C / 4).
    """

    def __init__(self, numbers: torch.Tensor, scale: torch.Tensor):
        super().__init__()
        self.register_buffer("numbers", numbers)
        self.register_buffer("scale", scale)

    def columns(self) -> list[torch.Tensor]:
        """The numbers in fp32, in one or four parts of the columns."""
        if self.numbers.dtype == torch.int8:
            return [self.numbers.float()]
        words = self.numbers.view(torch.int32)
        return [((words << shift) >> 24).float() for shift in (24, 16, 8, 0)]


def round_to_int8(weight: torch.Tensor) -> Int8:
    """Rounds a weight (V, C) to -127 to 127 times a scale for each row."""
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1).clamp(min=1e-30) / 127
    numbers = (weight / scale[:, None]).round().to(torch.int8)
    if not HAS_AVX512 and numbers.size(1) % 4 == 0:
        numbers = numbers.unflatten(1, (4, -1)).mT.contiguous().view(torch.float32)[..., 0]
    return Int8(numbers, scale)


def linear(x: torch.Tensor, weight: torch.Tensor | Int8, bias=None) -> torch.Tensor:
    """`F.linear` of x (..., C); written as a sum if there are few rows and it is compiled."""
    columns = weight.columns() if isinstance(weight, Int8) else [weight]
    outputs, C = len(columns[0]), x.size(-1)
    rows = x.numel() // C
    small = rows == 1 or rows * outputs * C <= SMALL
    if small and torch.compiler.is_compiling():  # prompts are read without compiling
        y = rows_sum(x, columns)
    else:
        whole = columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)  # cat would copy one
        y = F.linear(x, whole.to(x.dtype))
    if isinstance(weight, Int8):
        y = y * weight.scale
    return (y if bias is None else y + bias).to(x.dtype)


def rows_sum(x: torch.Tensor, columns: list[torch.Tensor]) -> torch.Tensor:
    """x (..., C) @ weight.T, to be compiled, for a weight (V, C) in n equal parts of its columns.

    It accumulates in fp32. A loop of Inductor's adds to one vector, and each addition waits for the
    one before it. Four quarters of the outputs in one loop are four independent sums (LOG.md).
    """
    n, C = len(columns), x.size(-1)
    # Inductor stores what as_strided is applied to; otherwise it would compute x for each output
    shape, strides = (n, x.numel() // C, 1, C // n), (C // n, C, C, 1)
    parts = x.reshape(-1).as_strided(shape, strides).float()
    sums = []
    for quarter in zip(*(part.chunk(4) for part in columns), strict=True):
        products = [x * numbers.float() for x, numbers in zip(parts, quarter, strict=True)]
        sums.append(sum(products[1:], products[0]).sum(-1))
    return torch.cat(sums, dim=-1).view(*x.shape[:-1], -1)


def single_query(q, k, v, mask=None, dropout=0.0, causal=False, enable_gqa=False) -> torch.Tensor:
    """`model.attention`, with one query (B, H, 1, D) written out for Inductor to fuse."""
    B, H, T, D = q.shape
    if T > 1 or not torch.compiler.is_compiling():
        return attention(q, k, v, mask, dropout, causal, enable_gqa)
    assert mask is None  # the cache gives a single query none
    K = k.size(1)
    q = q.reshape(B, K, H // K, 1, D).float() / math.sqrt(D)
    weights = (q * k[:, :, None].float()).sum(-1).softmax(-1)  # (B, K, H / K, S)
    y = (weights[..., None] * v[:, :, None].float()).sum(-2)  # (B, K, H / K, D)
    return y.view(B, H, 1, D).to(v.dtype)


def rows_by_position(shape: tuple[int, ...], **options) -> torch.Tensor:
    """Zeros (L, B, K, S, D) in which the first n positions of a layer are contiguous, for any n.

    Uncompiled attention is slower with this layout (LOG.md).
    """
    L, B, K, S, D = shape
    return torch.zeros(L, S, B, K, D, **options).permute(0, 2, 3, 1, 4)


def is_worth_compiling(model: GPT, tokens: int) -> bool:
    """Whether to compile by default, if so many tokens are sampled on a CPU."""
    plain = all(is_plain(module) for block in model.h for module in block.modules())
    possible = plain and model.wte.weight.device.type == "cpu" and has_compiler()
    return possible and tokens * model.get_num_params() > WORTHWHILE


def has_compiler() -> bool:
    """Whether Inductor's compiler is installed and, on Linux, Python's headers."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if sys.platform == "linux" and not headers.is_file():
        return False
    default = "clang++" if sys.platform == "darwin" else "g++"
    return shutil.which(os.environ.get("CXX", default)) is not None


@torch.no_grad()
def compile_decoding(model: GPT, int8: bool = False) -> GPT:
    """Compiles a model on a CPU for sampling, in place, at its first new token.

    From now on it can be neither trained nor converted to a different device or dtype, and copies
    of it sample with its weights. With `int8` the weights of its matmuls are rounded to 8 bits.
    Blocks with code of your own (a class, an operator, a hook, a replaced forward pass) stay as
    they are. Raises ValueError on another device, or if there is no C++ compiler.
    """
    device = model.wte.weight.device.type
    if device != "cpu":
        why = f"for CPUs, and the model is on {device}: pass --device=cpu"
        raise ValueError(f"compiled sampling and int8 are {why}")
    if not has_compiler():
        missing = "a C++ compiler and Python's headers: install g++ and python3-dev, or set CXX"
        raise ValueError(f"compiled sampling and int8 need {missing}")
    for block in model.h:
        forward = vars(block).get("forward")
        if forward and forward.__module__ in ("nanogpt.run.device", __name__):
            del block.forward  # compiled for training, or by an earlier call
    plain = [block for block in model.h if all(map(is_plain, block.modules()))]
    if int8:
        if model.lm_head is None:  # the embedding stays as it is
            V, C = model.wte.weight.shape
            model.lm_head = Linear(C, V, bias=False, device="meta")
            model.lm_head.weight = model.wte.weight
        linears = [m for part in (*plain, model.head) for m in part.modules() if type(m) is Linear]
        for module in linears:
            if not isinstance(module.weight, Int8):  # by an earlier call
                rounded = round_to_int8(module.weight)
                del module.weight
                module.weight = rounded
    programs: dict[str, Program] = {}  # blocks that compute the same share one
    for block in plain:
        for module in block.modules():
            if hasattr(module, "ops"):
                module.ops = module.ops._replace(linear=linear, attention=single_query)
        name = description(block)
        if name not in programs:
            programs[name] = block_program(block, name)
        compile_block(block, programs[name])
    # of the output projection, which is outside the blocks
    own = {"linear": compiled_linear(), "loss": functools.partial(cross_entropy, linear=linear)}
    model.ops = model.ops._replace(**own, cache_memory=rows_by_position)
    return model


def is_plain(module: nn.Module) -> bool:
    """Whether its code is this package's: class, operators, no hooks, no replaced forward pass."""
    ops = getattr(module, "ops", Ops())
    used = {ops.linear, ops.rms_norm, ops.layer_norm, ops.dropout, ops.attention}
    changed = module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module)
    own = type(module).__module__ in ("nanogpt.model", __name__) and not changed
    return own and used <= {*Ops(), *CPU, linear, single_query}


def description(block: Block) -> str:
    """What a plain block computes: its tensors, and its modules' classes, settings, operators."""
    tensors = block.state_dict(keep_vars=True)
    lines = [f"{name} {tuple(x.shape)} {x.dtype}" for name, x in tensors.items()]
    for name, module in block.named_modules():
        settings = {k: v for k, v in vars(module).items() if k[0] != "_" and k != "training"}
        lines.append(f"{name} {type(module)} {settings}")
    return re.sub(r" at 0x\w+", "", "\n".join(lines))  # the addresses of functions


def block_program(block: Block, name: str) -> Program:
    """The step of a block for one new token, as a function of its weights."""
    template = copy.deepcopy(block).to("meta").eval()
    names = list(template.state_dict())

    def step(x, keys, values, *others) -> torch.Tensor:
        weights, rope = dict(zip(names, others, strict=False)), others[len(names) :]
        cache = LayerCache(keys.permute(1, 2, 0, 3), values.permute(1, 2, 0, 3))  # (B, K, S, D)
        return functional_call(template, weights, (x, rope, cache))

    return Program(step, name, growing=(1, 2))


def compile_block(block: Block, program: Program) -> None:
    """Runs `program` for single new tokens. Prompts and a first token are not compiled."""
    plain, weights = block.forward, list(block.state_dict(keep_vars=True).values())

    def forward(x, rope=None, cache=None, mask=None) -> torch.Tensor:
        rows = [memory.permute(2, 0, 1, 3) for memory in cache or ()]  # (S, B, K, D)
        # a library would write into a copy of rows that are not contiguous
        if x.size(1) > 1 or not rows or len(rows[0]) < 2 or not rows[0].is_contiguous():
            return plain(x, rope, cache, mask)
        return program.run(x, *rows, *weights, *rope)

    block.forward = forward


def compiled_linear() -> Callable:
    """`linear` of x (B, T, C) without bias, compiled for T = 1."""
    program = Program(lambda x, *w: linear(x, Int8(*w) if len(w) > 1 else w[0]), "linear")

    def forward(x: torch.Tensor, weight: torch.Tensor | Int8) -> torch.Tensor:
        parts = weight.buffers() if isinstance(weight, Int8) else [weight]
        return program.run(x, *parts) if x.size(1) == 1 else linear(x, weight)

    return forward
