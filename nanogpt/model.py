"""GPT: one model, two families, in one file that needs only torch.

    GPT-2 family    LayerNorm, learned positions, GELU, dropout, optional bias (Radford et al. 2019)
    modern family   RMSNorm, RoPE, SwiGLU, grouped-query attention, QK-norm (Llama 2023, Qwen3 2025)

Each field of `GPTConfig` can be set on its own; the families are two points in that space:

    >>> gpt2 = GPT(GPTConfig(vocab_size=65, block_size=64, n_layer=2, n_head=4, n_embd=32))
    >>> idx = torch.zeros(1, 8, dtype=torch.long)
    >>> loss = gpt2(idx, targets=idx)

Start with `GPT.forward`: embeddings, the blocks, then the logits or the loss. A `Block` adds the
outputs of `CausalSelfAttention` and `MLP` to its input. Sampling passes a `cache`
(nanogpt/sample.py) through all of them. Weights are named as in nanoGPT
(`h.0.attn.c_attn.weight`, …) and stored as torch's Linear stores them: (out, in).

Dimension letters: B batch, T time, C channels (n_embd), H heads, K key-value heads, D head size,
V vocabulary, S keys, L layers.
"""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Annotated, Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

VOCAB_MULTIPLE = 64  # pad the vocabulary to a multiple of this: faster matmuls

SAME_RESULT = {"ignored_by": ("resume", "card")}  # readers of settings, see nanogpt/config.py


@dataclass
class GPTConfig:
    block_size: Annotated[int, 1, 2**24] = 1024  # context length T, in tokens
    vocab_size: Annotated[int | None, 1, 2**24] = None  # number of tokens; none: the tokenizer's
    n_layer: Annotated[int, 1, 1000] = 12  # number of blocks
    n_head: Annotated[int, 1, 4096] = 12  # attention heads per block
    n_embd: Annotated[int, 1, 2**18] = 768  # channels C
    dropout: Annotated[float, 0, 0.99] = 0.0  # dropout rate; useful only on tiny data
    _: KW_ONLY  # the advanced ones
    n_kv_head: Annotated[int | None, 1, 4096] = None  # key-value heads (GQA); none: n_head
    head_dim: Annotated[int | None, 1, 2**16] = None  # channels per head; none: n_embd / n_head
    n_inner: Annotated[int | None, 1, 2**20] = None  # MLP channels; none: 4 C (swiglu: 8/3 C)
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"  # norm in the blocks and before the output
    norm_eps: Annotated[float, 0, 1] = 1e-5  # added to the variance in every norm
    position: Literal["learned", "rope"] = "learned"  # position encoding
    rope_theta: Annotated[float, 1, 1e12] = 10000.0  # base of RoPE's wavelengths
    mlp: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu"  # gelu_tanh: GPT-2's published weights
    qk_norm: bool = False  # RMSNorm of each head's queries and keys before RoPE, as in Qwen3
    bias: bool = False  # biases in Linear and LayerNorm, as in GPT-2
    separator: Annotated[int | None, 0, 2**24] = None  # token between documents: attend within each
    tie_embeddings: bool = True  # share one matrix between embedding and output projection
    train_temperature: Annotated[float, 0.1, 10] = 1.0  # divides training logits; 0.9: less certain
    gradient_checkpointing: bool = field(default=False, metadata=SAME_RESULT)  # less memory, slower

    def __post_init__(self):
        check_fields(self)
        if self.head_dim is None and self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}: "
                "change one of them, or set head_dim"
            )
        if self.separator is not None and self.vocab_size and self.separator >= self.vocab_size:
            raise ValueError(
                f"separator={self.separator} must be below vocab_size={self.vocab_size}"
            )
        if self.n_head % self.kv_heads:
            raise ValueError(f"n_head={self.n_head} is not divisible by n_kv_head={self.n_kv_head}")
        if self.position == "rope" and self.head_size % 2:
            raise ValueError(f"RoPE needs an even head size; it is {self.head_size}")

    @classmethod
    def modern(cls, **settings) -> "GPTConfig":
        """RMSNorm, RoPE, SwiGLU and QK-norm, as in Qwen3. `settings` are fields."""
        modern = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "qk_norm": True}
        return cls(**(modern | settings))

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
        # two thirds of 4 C: three such matrices have the parameters of GELU's two (Shazeer 2020)
        return 32 * math.ceil(8 * self.n_embd / 3 / 32) if self.mlp == "swiglu" else 4 * self.n_embd

    @property
    def padded_vocab_size(self) -> int:
        return VOCAB_MULTIPLE * math.ceil(self.vocab_size / VOCAB_MULTIPLE)


# Operators that another file may replace: `GPT(config, ops=...)`. nanogpt/ops/ has faster ones for
# a CPU, a loss for large vocabularies on GPUs, and the precision of sharded models.


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last dimension, in the weight's dtype (fp32 even under autocast)."""
    return F.rms_norm(x.to(weight.dtype), weight.shape, weight, eps)


def attention(q, k, v, mask=None, dropout=0.0, causal=False, enable_gqa=False) -> torch.Tensor:
    """Attention of queries (B, H, T, D) to keys and values (B, K, S, D); `enable_gqa` if K < H.

    CUDA has a fused GQA kernel only in half precision, on Ampere or newer, without a mask. Without
    that kernel torch materializes the (T, S) matrices; repeating keys and values avoids it. On MPS
    some versions of torch abort with enable_gqa, return wrong values for up to eight queries, or
    let causal attention in half precision see the future (pytorch/pytorch#149132, #181133,
    #195910).
    """
    kind = q.device.type
    if enable_gqa and kind != "cpu" and not has_gqa_kernel(q, mask):
        k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
        enable_gqa = False
    if kind == "mps" and not dropout:
        half = q.dtype.itemsize == 2 or torch.is_autocast_enabled("mps")
        if (causal and half) or (q.size(2) <= 8 and torch.__version__ < "2.12"):
            if causal:
                mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril()
            return plain_attention(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=enable_gqa)


def has_gqa_kernel(q: torch.Tensor, mask: torch.Tensor | None) -> bool:
    if q.device.type != "cuda" or mask is not None:
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else q.dtype
    return dtype.itemsize == 2 and torch.cuda.get_device_properties(q.device).major >= 8


def plain_attention(q, k, v, mask=None) -> torch.Tensor:
    """Attention of queries (B, H, T, D) to keys and values (B, H, S, D), in plain operators."""
    scores = q @ k.mT / math.sqrt(q.size(-1))  # (B, H, T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


def cross_entropy(x, weight, bias, targets, reduction="mean", linear=F.linear) -> torch.Tensor:
    """Cross-entropy of x @ weight.T + bias, for x (B, T, C) and targets (B, T); ignores -1."""
    logits = linear(x, weight, bias).flatten(0, 1)  # (B T, V)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction=reduction)


class Ops(NamedTuple):
    """The operators of a model: functions with the signatures of these defaults."""

    linear: Callable = F.linear
    embedding: Callable = F.embedding
    rms_norm: Callable = rms_norm
    layer_norm: Callable = F.layer_norm
    dropout: Callable = F.dropout
    attention: Callable = attention
    cache_memory: Callable = torch.zeros  # for keys or values (L, B, K, S, D)
    loss: Callable = cross_entropy


class HasOps:
    ops = Ops()  # `GPT.use` replaces it in all modules


class Linear(HasOps, nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ops.linear(x, self.weight, self.bias)


class Embedding(HasOps, nn.Embedding):
    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return self.ops.embedding(idx, self.weight)


class RMSNorm(HasOps, nn.RMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps)


class LayerNorm(HasOps, nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ops.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


def norm_layer(config: GPTConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return RMSNorm(config.n_embd, eps=config.norm_eps)
    return LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)


def rope_tables(config: GPTConfig, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and signed sines (T, 2, D/2) of rotary positions (Su et al. 2021), as in Llama.

    Channels i and i + D/2 of a head are rotated together, by an angle of position / theta^(2i/D).
    The sines of the first half are negative, as `apply_rope` needs them.
    """
    D = config.head_size
    wavelengths = config.rope_theta ** (torch.arange(0, D, 2, device=positions.device).float() / D)
    angles = positions.float()[:, None] / wavelengths  # (T, D/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((cos, cos), dim=1), torch.stack((-sin, sin), dim=1)


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates x (B, H, T, D) by `rope_tables`: halves (a, b) to (a cos - b sin, b cos + a sin)."""
    halves = x.unflatten(-1, (2, -1))  # (B, H, T, 2, D/2): Inductor vectorizes flip, but not roll
    return (halves * cos + halves.flip(-2) * sin).flatten(-2).to(x.dtype)


def document_mask(idx: torch.Tensor, separator: int) -> torch.Tensor:
    """The mask (B, 1, T, T) that lets each token of idx (B, T) attend to its own document only.

    As ever, a token attends to itself and to those before it. Each `separator` counts as the start
    of the next document.
    """
    document = (idx == separator).cumsum(dim=1)  # (B, T)
    same = document[:, :, None] == document[:, None, :]
    return same.tril()[:, None]


class CausalSelfAttention(HasOps, nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head = config.n_head
        self.n_kv_head = config.kv_heads
        self.head_size = config.head_size
        self.dropout = config.dropout
        # queries, keys and values in one matmul
        self.qkv_rows = [n * self.head_size for n in (self.n_head, self.n_kv_head, self.n_kv_head)]
        self.c_attn = Linear(config.n_embd, sum(self.qkv_rows), bias=config.bias)
        self.c_proj = Linear(self.n_head * self.head_size, config.n_embd, bias=config.bias)
        self.q_norm = RMSNorm(self.head_size, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_size, eps=config.norm_eps) if config.qk_norm else None

    def forward(self, x: torch.Tensor, rope=None, cache=None, mask=None) -> torch.Tensor:
        """x (B, T, C) to (B, T, C): each position attends to itself and to those before it.

        `rope` is the result of `rope_tables`. `cache` holds this layer's earlier keys
        and values, and takes the new ones. `mask` comes from `document_mask` or the cache.
        """
        B, T, _ = x.shape
        qkv = self.c_attn(x).view(B, T, -1, self.head_size)  # (B, T, H + 2 K, D)
        q, k, v = qkv.split([self.n_head, self.n_kv_head, self.n_kv_head], dim=2)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.transpose(1, 2)  # (B, H, T, D)
        k = k.transpose(1, 2)  # (B, K, T, D)
        v = v.transpose(1, 2)  # (B, K, T, D)
        if rope:
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)

        if cache is not None:
            k, v = cache.extend(k, v)
        # a single query after others in the cache sees all keys
        causal = mask is None and (cache is None or T > 1)
        gqa = self.n_kv_head != self.n_head
        dropout = self.dropout if self.training else 0.0
        y = self.ops.attention(q, k, v, mask, dropout, causal, enable_gqa=gqa)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, -1)  # (B, T, H D), the heads side by side again
        return self.c_proj(y)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.kind = config.mlp
        # SwiGLU's gate and up projections in one matmul
        self.fc_rows = [config.inner] * (2 if config.mlp == "swiglu" else 1)
        self.c_fc = Linear(config.n_embd, sum(self.fc_rows), bias=config.bias)
        self.c_proj = Linear(config.inner, config.n_embd, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) to (B, T, C), each position on its own."""
        x = self.c_fc(x)  # (B, T, inner), for swiglu (B, T, 2 inner)
        if self.kind == "swiglu":
            gate, up = x.chunk(2, dim=-1)  # (B, T, inner) each
            x = F.silu(gate) * up
        else:
            x = F.gelu(x, approximate="tanh" if self.kind == "gelu_tanh" else "none")
        return self.c_proj(x)


class Block(HasOps, nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = norm_layer(config)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = norm_layer(config)
        self.mlp = MLP(config)
        self.dropout = config.dropout

    def forward(self, x: torch.Tensor, rope=None, cache=None, mask=None) -> torch.Tensor:
        """(B, T, C) to (B, T, C): two residual branches, each normalized first (pre-norm)."""
        attended = self.attn(self.ln_1(x), rope, cache, mask)
        x = x + self.ops.dropout(attended, self.dropout, self.training)
        return x + self.ops.dropout(self.mlp(self.ln_2(x)), self.dropout, self.training)


class GPT(HasOps, nn.Module):
    def __init__(self, config: GPTConfig, ops: Ops | None = None):
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("vocab_size is not set: give the tokenizer's number of tokens")
        self.config = config
        self.dropout = config.dropout
        V, C = config.padded_vocab_size, config.n_embd
        self.wte = Embedding(V, C)
        self.wpe = Embedding(config.block_size, C) if config.position == "learned" else None
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = norm_layer(config)
        # if tied, there is no second parameter that loading or sharding could untie
        self.lm_head = None if config.tie_embeddings else Linear(C, V, bias=False)
        self.apply(self._init_weights)
        if ops is not None:
            self.use(ops)

    def use(self, ops: Ops) -> "GPT":
        """Computes with other operators from now on. Parameters and their names do not change."""
        for module in self.modules():
            if hasattr(module, "ops"):
                module.ops = ops
        return self

    def _init_weights(self, module: nn.Module):
        """As GPT-2: N(0, 0.02), divided by sqrt(2 n_layer) for outputs to the residual stream."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, CausalSelfAttention | MLP):  # apply() comes here after its children
            nn.init.normal_(module.c_proj.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def forward(
        self,
        idx: torch.Tensor,
        targets: torch.Tensor | None = None,
        *,
        reduction: str = "mean",
        cache=None,
        logits_to_keep: int = 0,
    ) -> torch.Tensor:
        """Token ids `idx` (B, T) to logits (B, T, V), or with `targets` (B, T) to the loss in nats.

        With targets only the loss is returned: returning the logits too would keep (and under mixed
        precision copy) the largest tensor of the step. Targets of -1 are ignored; `reduction` is
        that of cross_entropy. With a `cache`, idx continues the tokens in it. `logits_to_keep=n`
        computes the logits of the last n positions, 0 all. If the config has a `separator`, targets
        are predicted from their own document only; without targets, idx is a single document.

        Raises ValueError if idx is longer than block_size, or than the room left in the cache.
        """
        T = idx.size(1)
        if T > self.config.block_size:  # noqa: SIM300
            raise ValueError(f"{T} tokens do not fit into block_size={self.config.block_size}")
        mask = None
        if cache is None:
            positions = torch.arange(T, device=idx.device)
            rope = rope_tables(self.config, positions) if self.config.position == "rope" else None
        else:
            positions, rope, mask = cache.place(T)
        x = self.wte(idx)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe(positions)  # (T, C), the same in each sequence
        x = self.ops.dropout(x, self.dropout, self.training)
        if self.config.separator is not None and targets is not None and cache is None:
            mask = document_mask(idx, self.config.separator)
        for i, block in enumerate(self.h):
            if self.config.gradient_checkpointing and self.training and cache is None:
                x = checkpoint(block, x, rope, None, mask, use_reentrant=False)
            else:
                x = block(x, rope, None if cache is None else cache.layers[i], mask)
        x = self.ln_f(x[:, -logits_to_keep:])  # -0 keeps all positions

        if targets is None:
            return self.ops.linear(x, self.head.weight)[..., : self.config.vocab_size]
        return self.loss(x, targets, reduction)

    @property
    def head(self) -> Linear | Embedding:
        """The module whose weight (V, C) turns the final states into logits."""
        return self.wte if self.lm_head is None else self.lm_head

    def loss(self, x: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
        """Cross-entropy of the final states x (B, T, C), as `forward` returns it.

        A model that reads its text more than once becomes too sure of itself. Training with logits
        divided by a temperature below 1 gives softer predictions at temperature 1, as temperature
        scaling (Guo et al. 2017) does afterwards.
        """
        if self.training and self.config.train_temperature != 1:
            x = x / self.config.train_temperature  # divides the logits: the head has no bias
        # a bias of -inf gives padded tokens no probability and no gradient
        padding = torch.zeros(self.config.padded_vocab_size, device=x.device, dtype=x.dtype)
        padding[self.config.vocab_size :] = -torch.inf
        return self.ops.loss(x, self.head.weight, padding, targets, reduction)

    def fused_rows(self) -> dict[str, list[int] | None]:
        """Row counts of the matrices stacked in one parameter: queries, keys, values; gate, up."""
        rows = {}
        for i, block in enumerate(self.h):
            # a replaced module may have none
            rows[f"h.{i}.attn.c_attn.weight"] = getattr(block.attn, "qkv_rows", None)
            rows[f"h.{i}.mlp.c_fc.weight"] = getattr(block.mlp, "fc_rows", None)
        return rows

    @classmethod
    def from_pretrained(cls, name_or_dir, **options) -> "GPT":
        """Loads a run (its best checkpoint), a checkpoint, or transformers' GPT-2, Llama or Qwen3.

        `name_or_dir` is a directory, or a name on the Hub. `options` are those of
        `nanogpt.hub.load.load_model`.
        """
        from nanogpt.hub.load import load_model

        return load_model(name_or_dir, **{"make_model": cls} | options)[0]

    def generate(self, idx: torch.Tensor, max_new_tokens: int, **options) -> torch.Tensor:
        """The prompts idx (B, T) with max_new_tokens appended: (B, T + max_new_tokens).

        `options` are those of `nanogpt.sample.stream`: temperature, top_k, top_p, seed, eos_id, …
        With `eos_id` there are fewer tokens if all samples end earlier.
        """
        from nanogpt.sample import stream

        training = self.training
        self.eval()
        try:
            new = list(stream(self, idx, max_new_tokens, **options))
        finally:
            self.train(training)
        return torch.cat((idx, torch.stack(new, dim=1)), dim=1) if new else idx

    def get_num_params(self) -> int:
        """Number of parameters, not counting the padding of the vocabulary."""
        c = self.config
        matrices = 1 if self.lm_head is None else 2  # of (V, C)
        padding = matrices * (c.padded_vocab_size - c.vocab_size) * c.n_embd
        return sum(p.numel() for p in self.parameters()) - padding

    def flops_per_token(self, T: int | None = None) -> int:
        """Operations to train on one token of a sequence of T: 6 N + 12 L H D T (PaLM, appendix B).

        N counts the parameters that a token is multiplied by: those of the blocks, the last norm
        and the output projection. As usual, causal attention's savings are not subtracted.
        """
        c = self.config
        blocks = sum(p.numel() for part in (self.h, self.ln_f) for p in part.parameters())
        N = blocks + c.vocab_size * c.n_embd
        return 6 * N + 12 * c.n_layer * c.n_head * c.head_size * (T or c.block_size)


# Checks the fields of a configuration; nanogpt/config.py uses this as well


def declared(cls: type) -> dict[str, tuple[type, tuple]]:
    """The type of each field, with the choices of a Literal or the limits of an Annotated number.

    >>> declared(GPTConfig)["n_layer"], declared(GPTConfig)["norm"]
    ((<class 'int'>, (1, 1000)), (<class 'str'>, ('layernorm', 'rmsnorm')))
    """
    hints = get_type_hints(cls, include_extras=True)
    found = {}
    for f in fields(cls):
        kind, limits = hints[f.name], ()
        if get_origin(kind) is Annotated:
            kind, *limits = get_args(kind)
        elif get_origin(kind) is Literal:
            kind, limits = str, get_args(kind)
        found[f.name] = (kind, tuple(limits))
    return found


def check_fields(config) -> None:
    """Raises ValueError if a field of a dataclass does not hold what it declares."""
    for name, (kind, limits) in declared(type(config)).items():
        value = getattr(config, name)
        right = isinstance(value, float | int if kind is float else kind)
        if not right or isinstance(value, bool) != (kind is bool):
            raise ValueError(f"{name}={value!r:.80} must be {getattr(kind, '__name__', kind)}")
        if value == "" or (isinstance(value, str) and limits and value not in limits):
            expected = f"one of {', '.join(limits)}" if limits else "a name"
            raise ValueError(f"{name}={value!r:.80} is not {expected}")
        # `not` catches NaN as well
        if isinstance(value, int | float) and limits and not limits[0] <= value <= limits[1]:
            raise ValueError(f"{name}={value!s:.40} must be from {limits[0]} to {limits[1]}")
