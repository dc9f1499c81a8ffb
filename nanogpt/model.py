"""GPT: one model, two families, one file that needs nothing but torch.

    GPT-2 family    LayerNorm, learned positions, GELU, dropout, optional bias   (Radford et al. 2019)
    modern family   RMSNorm, RoPE, SwiGLU, grouped-query attention, QK-norm      (Llama 2023, Qwen3 2025)

Every field of `GPTConfig` can be set on its own, so the two families are only two corners of it:

    >>> gpt2 = GPT(GPTConfig(vocab_size=65, block_size=64, n_layer=2, n_head=4, n_embd=32))
    >>> loss = gpt2(torch.zeros(1, 8, dtype=torch.long), targets=torch.zeros(1, 8, dtype=torch.long))

Weights are named as in nanoGPT (`h.0.attn.c_attn.weight`, …) and stored as torch's Linear stores them: (out, in).

Dimension letters: B batch, T time, C channels (n_embd), H heads, K key-value heads, D head size, V vocabulary.
"""

import math
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, fields, replace
from types import NoneType
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

VOCAB_MULTIPLE = 64  # rows of the embedding: matrix products like multiples of 64, and nothing else ever sees the rest


def declared(cls: type) -> dict[str, tuple[type, tuple]]:
    """The types of a dataclass's fields with what they may hold: choices of a Literal, limits of an Annotated number.

    >>> declared(GPTConfig)["n_layer"], declared(GPTConfig)["norm"]
    ((<class 'int'>, (1, 1000)), (<class 'str'>, ('layernorm', 'rmsnorm')))
    """
    found = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        kind, *limits = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        found[name] = (str, get_args(kind)) if get_origin(kind) is Literal else (kind, tuple(limits))
    return found


def check_fields(config) -> None:
    """Raises ValueError where a field of a dataclass does not hold what it declares."""
    allowed = declared(type(config))
    for name in (field.name for field in fields(config)):
        value, (kind, limits) = getattr(config, name), allowed[name]
        if not isinstance(value, kind | int if float in (kind, *get_args(kind)) else kind):
            raise ValueError(f"{name}={value!r:.80} must be {getattr(kind, '__name__', kind)}")
        if isinstance(value, str) and (not value or "\0" in value):
            raise ValueError(f"{name}={value!r:.80} is not a name")
        if isinstance(value, str) and limits and value not in limits:
            raise ValueError(f"{name}={value!r:.80} is not one of {', '.join(limits)}")
        # `not` catches NaN as well
        if not isinstance(value, str | NoneType) and limits and not limits[0] <= value <= limits[1]:
            raise ValueError(f"{name}={value!s:.40} must be from {limits[0]} to {limits[1]}")


@dataclass
class GPTConfig:
    block_size: Annotated[int, 1, 2**24] = 1024  # context length T, in tokens
    vocab_size: Annotated[int | None, 1, 2**24] = None  # number of tokens; none: as many as the data's tokenizer has
    n_layer: Annotated[int, 1, 1000] = 12  # number of blocks
    n_head: Annotated[int, 1, 4096] = 12  # attention heads in a block
    n_embd: Annotated[int, 1, 2**18] = 768  # channels C
    dropout: Annotated[float, 0, 0.99] = 0.0  # on embeddings, attention weights, branches; 0 suits all but tiny data
    _: KW_ONLY  # the advanced ones
    n_kv_head: Annotated[int | None, 1, 4096] = None  # heads of keys and values (grouped-query attention); none: n_head
    head_dim: Annotated[int | None, 1, 2**16] = None  # channels in a head; none: n_embd / n_head
    n_inner: Annotated[int | None, 1, 2**20] = None  # MLP's channels; none: 4 C, for swiglu 8/3 C in multiples of 32
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"  # of the input of attention, MLP and output projection
    norm_eps: Annotated[float, 0, 1] = 1e-5  # added to the variance in every norm
    position: Literal["learned", "rope"] = "learned"  # how the model knows the order of tokens
    rope_theta: Annotated[float, 1, 1e12] = 10000.0  # base of RoPE's wavelengths
    mlp: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu"  # gelu: exact, as nanoGPT; gelu_tanh: as GPT-2's own weights
    qk_norm: bool = False  # RMSNorm over each head's query and key, before RoPE (as Qwen3)
    bias: bool = False  # biases in Linear and LayerNorm; GPT-2 has them, nanoGPT trains better without
    tie_embeddings: bool = True  # one matrix for the token embedding and the output projection
    gradient_checkpointing: bool = False  # recompute each block in the backward pass: less memory, a third more time

    def __post_init__(self):
        check_fields(self)
        if self.head_dim is None and self.n_embd % self.n_head:
            near = [h for h in range(1, self.n_embd + 1) if self.n_embd % h == 0]
            near = sorted(sorted(near, key=lambda h: abs(h - self.n_head))[:3])
            raise ValueError(
                f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}: "
                f"choose n_head from {', '.join(map(str, near))}, or set head_dim"
            )
        if self.n_head % self.kv_heads:
            raise ValueError(f"n_head={self.n_head} is not divisible by n_kv_head={self.n_kv_head}")
        if self.position == "rope" and self.head_size % 2:
            raise ValueError(f"RoPE turns pairs of channels, so the head size must be even; it is {self.head_size}")

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def head_size(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    @property
    def inner(self) -> int:
        if self.n_inner:
            return self.n_inner
        # two thirds of 4 C: three matrices of that width have the parameters of GELU's two (Shazeer 2020)
        return 32 * math.ceil(8 * self.n_embd / 3 / 32) if self.mlp == "swiglu" else 4 * self.n_embd

    @property
    def padded_vocab_size(self) -> int:
        return VOCAB_MULTIPLE * math.ceil(self.vocab_size / VOCAB_MULTIPLE)


class KVCache:
    """Keys and values of the tokens read so far, allocated once: no tensor grows while sampling."""

    def __init__(self, config: GPTConfig, batch_size: int, device=None, dtype=None, length: int | None = None):
        """Room for `length` tokens, by default the whole block_size."""
        length = length or config.block_size
        shape = (batch_size, config.kv_heads, length, config.head_size)
        make = {"device": device, "dtype": dtype}
        self.keys = [torch.empty(shape, **make) for _ in range(config.n_layer)]
        self.values = [torch.empty(shape, **make) for _ in range(config.n_layer)]
        self.rope = rope_tables(config, torch.arange(length, device=device))
        self.length = 0  # tokens held, the position of the next one

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes k and v (B, K, T, D) behind what is held; returns all of the layer's (B, K, length + T, D)."""
        keys, values, new = self.keys[layer], self.values[layer], k.size(2)
        keys.narrow(2, self.length, new).copy_(k)
        values.narrow(2, self.length, new).copy_(v)
        return keys.narrow(2, 0, self.length + new), values.narrow(2, 0, self.length + new)


def norm_layer(config: GPTConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return RMSNorm(config.n_embd, eps=config.norm_eps)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)


def rope_tables(config: GPTConfig, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and signed sines (T, D) of rotary position embeddings (Su et al. 2021), in Llama's layout.

    Channel i of a head turns together with channel i + D/2, by an angle of position / theta^(2i/D). The sines of the
    first half are negative, because that is how `apply_rope` needs them.
    """
    D = config.head_size
    wavelengths = config.rope_theta ** (torch.arange(0, D, 2, device=positions.device).float() / D)
    angles = positions.float()[:, None] / wavelengths  # (T, D/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns queries or keys x (B, H, T, D) by the tables (T, D): (a, b) to (a cos - b sin, b cos + a sin)."""
    return (x * cos + x.roll(x.size(-1) // 2, dims=-1) * sin).to(x.dtype)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.n_head, self.n_kv_head, self.head_size = config.n_head, config.kv_heads, config.head_size
        self.dropout = config.dropout
        # queries, keys and values in one matrix product
        self.qkv_rows = [n * self.head_size for n in (self.n_head, self.n_kv_head, self.n_kv_head)]
        self.c_attn = Linear(config.n_embd, sum(self.qkv_rows), bias=config.bias)
        self.c_proj = Linear(self.n_head * self.head_size, config.n_embd, bias=config.bias)
        self.q_norm = RMSNorm(self.head_size, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_size, eps=config.norm_eps) if config.qk_norm else None

    def forward(self, x: torch.Tensor, rope=None, cache: KVCache | None = None) -> torch.Tensor:
        """x (B, T, C) to what its positions gather from themselves and those before, (B, T, C).

        `rope` are the tables of `rope_tables`; a `cache` holds earlier positions and takes up these.
        """
        B, T, _ = x.shape
        qkv = self.c_attn(x).view(B, T, -1, self.head_size)
        # what queries and keys have in common is done to both at once
        qk, v = qkv.split([self.n_head + self.n_kv_head, self.n_kv_head], dim=2)
        if self.q_norm is not None:
            weights = self.q_norm.weight.expand(self.n_head, -1), self.k_norm.weight.expand(self.n_kv_head, -1)
            qk = rms_norm(qk, torch.cat(weights), self.q_norm.eps)
        qk, v = qk.transpose(1, 2), v.transpose(1, 2)  # (B, H + K, T, D), (B, K, T, D)
        if rope is not None:
            qk = apply_rope(qk, *rope)
        q, k = qk.split([self.n_head, self.n_kv_head], dim=1)

        mask = None
        if cache is not None:
            if cache.length and T > 1:  # query i, at position length + i, sees the keys up to there
                mask = torch.ones(T, cache.length + T, dtype=torch.bool, device=x.device).tril(cache.length)
            k, v = cache.extend(self.layer, k, v)
        causal, gqa = mask is None and T > 1, self.n_kv_head != self.n_head
        dropout = self.dropout if self.training else 0.0
        fp32 = q.is_cpu and torch.is_grad_enabled()  # there the backward pass takes four times as long in bf16 (LOG.md)
        if fp32:
            q, k, v = q.float(), k.float(), v.float()
        with torch.autocast("cpu", enabled=False) if fp32 else nullcontext():
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=gqa)
        y = y.transpose(1, 2).reshape(B, T, self.n_head * self.head_size)  # heads side by side again
        return self.c_proj(y)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.kind = config.mlp
        # swiglu: gate and up in one matrix product
        self.fc_rows = [config.inner] * (2 if config.mlp == "swiglu" else 1)
        self.c_fc = Linear(config.n_embd, sum(self.fc_rows), bias=config.bias)
        self.c_proj = Linear(config.inner, config.n_embd, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Each position on its own: (B, T, C) to (B, T, C)."""
        x = self.c_fc(x)
        if self.kind == "swiglu":
            gate, up = x.chunk(2, dim=-1)
            x = F.silu(gate) * up
        else:
            x = F.gelu(x, approximate="tanh" if self.kind == "gelu_tanh" else "none")
        return self.c_proj(x)


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.ln_1 = norm_layer(config)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = norm_layer(config)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, rope=None, cache: KVCache | None = None) -> torch.Tensor:
        """(B, T, C) to (B, T, C): both branches add to what passes by (pre-norm)."""
        x = x + self.dropout(self.attn(self.ln_1(x), rope, cache))
        return x + self.dropout(self.mlp(self.ln_2(x)))


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("vocab_size is not set: give the number of tokens that the tokenizer has")
        self.config = config
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.position == "learned" else None
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = norm_layer(config)
        # tied: no second parameter exists, so nothing can come untied when a checkpoint is loaded or sharded
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module):
        """GPT-2's initialisation: N(0, 0.02), the projections into the residual stream by 1/sqrt(2 n_layer) less."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, CausalSelfAttention | MLP):  # apply() reaches a module after its children
            nn.init.normal_(module.c_proj.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def forward(
        self,
        idx: torch.Tensor,
        targets: torch.Tensor | None = None,
        *,
        reduction: str = "mean",
        cache: KVCache | None = None,
        logits_to_keep: int = 0,
    ) -> torch.Tensor:
        """Token ids `idx` (B, T) to logits (B, T, V), or with `targets` (B, T) to their cross-entropy in nats.

        The loss comes alone: handing the logits back as well would keep (and under mixed precision copy) the largest
        tensor of the step. Targets of -1 do not count; `reduction` is cross_entropy's. With a `cache`, idx continues
        what the cache holds. `logits_to_keep=n` gives the logits of the last n positions only; 0 gives all.

        Raises ValueError if idx, with what the cache holds, is longer than block_size.
        """
        past = cache.length if cache is not None else 0
        T = idx.size(1)
        if past + T > self.config.block_size:
            raise ValueError(f"{past + T} tokens do not fit into block_size={self.config.block_size}")
        positions = torch.arange(past, past + T, device=idx.device)
        x = self.wte(idx)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe(positions)
        x = self.drop(x)
        rope = None
        if self.config.position == "rope":
            rope = rope_tables(self.config, positions) if cache is None else [t[past : past + T] for t in cache.rope]
        for block in self.h:
            if self.config.gradient_checkpointing and self.training:
                x = checkpoint(block, x, rope, use_reentrant=False)
            else:
                x = block(x, rope, cache)
        if cache is not None:
            cache.length += T
        x = self.ln_f(x[:, -logits_to_keep:])

        if targets is None:
            logits = F.linear(x, self.wte.weight) if self.lm_head is None else self.lm_head(x)
            return logits[..., : self.config.vocab_size]
        head = self.wte.weight if self.lm_head is None else self.lm_head.weight
        # -inf on the padding: it takes no probability and no gradient, so the loss is that of V tokens exactly
        padding = torch.zeros(head.size(0), device=x.device, dtype=x.dtype)
        padding[self.config.vocab_size :] = -torch.inf
        logits = linear(x, head, padding)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction=reduction)

    def fused_rows(self) -> dict[str, list[int]]:
        """Rows of the matrices stacked in one parameter (queries, keys, values; gate, up), by the parameter's name."""
        rows = {f"h.{i}.attn.c_attn.weight": block.attn.qkv_rows for i, block in enumerate(self.h)}
        return rows | {f"h.{i}.mlp.c_fc.weight": block.mlp.fc_rows for i, block in enumerate(self.h)}

    @classmethod
    def from_pretrained(cls, name_or_dir, **options) -> "GPT":
        """A model of transformers, from the Hub or a directory: gpt2, Llama- and Qwen3-shaped ones.

        The one thing here that needs the rest of the package; options: `nanogpt.hub.weights.from_pretrained`.
        """
        from nanogpt.hub.weights import from_pretrained

        return from_pretrained(name_or_dir, **options)

    def crop_block_size(self, block_size: int) -> None:
        """Shortens the context, learned positions included. Raises ValueError if it would be longer than it is."""
        if block_size > self.config.block_size:
            raise ValueError(f"block_size={block_size} is longer than the context of {self.config.block_size} tokens")
        self.config = replace(self.config, block_size=block_size)
        if self.wpe is not None:
            self.wpe = nn.Embedding.from_pretrained(self.wpe.weight.detach()[:block_size].clone(), freeze=False)

    def get_num_params(self, non_embedding: bool = False) -> int:
        """Number of parameters, without the padding of the vocabulary; `non_embedding` leaves wte and wpe out."""
        total = sum(p.numel() for p in self.parameters())
        padding = (self.config.padded_vocab_size - self.config.vocab_size) * self.config.n_embd
        total -= padding * (1 if self.lm_head is None else 2)
        if non_embedding:
            total -= self.config.vocab_size * self.config.n_embd
            total -= self.wpe.weight.numel() if self.wpe is not None else 0
        return total

    def flops_per_token(self, T: int | None = None) -> int:
        """Floating-point operations of training on one token of a sequence of T: 6 N + 12 L H D T (PaLM, appendix B).

        N is the number of parameters that a token is multiplied with: tables that are only looked up do not count
        (wpe, and wte unless it is also the output projection). Causality is not taken off, as is the custom.
        """
        T = T or self.config.block_size
        N = self.get_num_params(non_embedding=True)
        if self.lm_head is None:
            N += self.config.vocab_size * self.config.n_embd
        return 6 * N + 12 * self.config.n_layer * self.config.n_head * self.config.head_size * T


# torch's products in fp32 are MKL's, which take twice as long on AMD's CPUs as oneDNN's (LOG.md)
ON_AMD = "AMD" in torch.cpu.get_capabilities().get("cpu_name", "") and torch.backends.mkldnn.is_available()


class Linear(nn.Linear):
    """torch's Linear, with quicker products where they are known to be slow: training in fp32 on an AMD CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (..., in) times weight (out, in) transposed, plus bias."""
    training_in_fp32 = x.is_cpu and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    if training_in_fp32 and x.dtype == weight.dtype == torch.float32 and ON_AMD and not torch.compiler.is_compiling():
        return LinearByOneDNN.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class LinearByOneDNN(torch.autograd.Function):
    """Linear through oneDNN, by the operator that torch.compile uses for it."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        x, weight = ctx.saved_tensors
        grad_x = torch.ops.mkldnn._linear_pointwise(grad, weight.t(), None, "none", [], "")
        rows = grad.flatten(0, -2)  # (N, out)
        grad_weight = rows.t() @ x.flatten(0, -2)  # both transposed for oneDNN: no gain there
        return grad_x, grad_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019), in the weight's dtype."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square normalization over the last dimension of x; weight may have dimensions before that one too."""
    x = x.to(weight.dtype)
    if not x.is_cpu:
        return F.rms_norm(x, x.shape[-1:], eps=eps) * weight
    if torch.is_grad_enabled():
        return RMSNormOnCPU.apply(x, weight, eps)
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


class RMSNormOnCPU(torch.autograd.Function):
    """The same in as few passes over memory as it takes: torch has a fused kernel for CUDA alone (LOG.md: 2x)."""

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
