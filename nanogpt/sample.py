"""Sampling from a GPT, one token at a time, with a key-value cache.

ids = model.generate(prompt, max_new_tokens=100, temperature=0.8, top_k=50, seed=1)
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanogpt.model import GPT, GPTConfig, rope_tables


def draw(logits: torch.Tensor, temperature: float, top_k, top_p, generator=None) -> torch.Tensor:
    """The next token (B, 1) for logits (B, V). ValueError, on a CPU, if they are not finite."""
    if logits.device.type == "cpu" and not logits.amax(-1).isfinite().all():  # a GPU would wait
        raise ValueError("the model's logits are not finite: its training has diverged")
    if temperature < 1e-6:  # dividing by less would overflow
        return logits.argmax(-1, keepdim=True)
    logits, tokens = logits / temperature, None
    if top_k and top_k < logits.size(-1):  # fewer to draw from, which is faster
        logits, tokens = logits.topk(top_k)
    if top_p is not None and top_p < 1.0:  # nucleus sampling (Holtzman et al. 2020)
        ordered, order = logits.sort(descending=True)
        probs = ordered.softmax(-1)
        beyond = probs.cumsum(-1) - probs > top_p  # more likely tokens already exceed top_p
        logits = logits.masked_fill(beyond.scatter(1, order, beyond), -torch.inf)
    drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
    return drawn if tokens is None else tokens.gather(1, drawn)


def sampling_kernels(device: torch.device) -> AbstractContextManager:
    """On CUDA, attention without cuDNN, which plans a new kernel for every context length."""
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(kernels) if device.type == "cuda" else nullcontext()


@torch.inference_mode()
def stream(
    model: GPT,
    idx: torch.Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    eos_id: int | None = None,
) -> Iterator[torch.Tensor]:
    """Continues the prompts idx (B, T); yields the next token of each (B,) as soon as it is drawn.

    The end-of-text token `eos_id` ends a sample, which repeats it from then on; the stream ends
    with the last sample. Temperature 0 takes the likeliest token. The same seed draws the same
    tokens on the same device. The model must be in eval mode, which `GPT.generate` sets. Raises
    ValueError at the first token if the prompt is empty, and on a CPU if the logits are not finite.

    When the context is full, its older half is dropped and the newer half is read again from
    position 0. (Dropping single tokens, as nanoGPT does, takes a full pass for each token.)
    """
    if idx.size(1) == 0:
        raise ValueError("the prompt is empty: give at least one token")
    if temperature < 0 or (top_k or 0) < 0 or (top_p or 0) < 0:
        raise ValueError(f"{temperature=}, {top_k=} and {top_p=} must not be negative")
    block_size = model.config.block_size
    generator = None if seed is None else torch.Generator(idx.device).manual_seed(seed)
    context = idx[:, -block_size:]
    room = min(block_size, context.size(1) + max_new_tokens)
    weight = model.wte.weight
    cache = KVCache(
        model.config, idx.size(0), weight.device, weight.dtype, room, model.ops.cache_memory
    )
    unread = context
    ended = torch.zeros(idx.size(0), dtype=torch.bool, device=idx.device)
    for _ in range(max_new_tokens):
        if context.size(1) > block_size:
            context = unread = context[:, -max(1, block_size // 2) :]
            cache.length = 0
        with sampling_kernels(idx.device):
            logits = model(unread, cache=cache, logits_to_keep=1)[:, -1].float()  # (B, V)
        unread = draw(logits, temperature, top_k, top_p, generator)
        if eos_id is not None:
            unread = unread.masked_fill(ended[:, None], eos_id)
            ended |= unread[:, 0] == eos_id
        context = torch.cat((context, unread), dim=1)
        yield unread[:, 0]
        if eos_id is not None and ended.all():
            return


class KVCache:
    """Keys and values of the tokens read so far, allocated once: no tensor grows while sampling.

        with torch.inference_mode():
            cache = KVCache(model.config, batch_size=1, cache_memory=model.ops.cache_memory)
            logits = model(prompt, cache=cache)  # then model(token, cache=cache) for each new token

    `GPT.forward` asks for the place of the next tokens (`place`). Each block puts its keys and
    values there, in its layer of the cache, and gets all of them back (`LayerCache.extend`).
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        device=None,
        dtype=None,
        room: int | None = None,
        cache_memory: Callable = torch.zeros,
    ):
        """`room` is the largest number of tokens, by default block_size.

        Pass the model's dtype and its `ops.cache_memory`.
        """
        room = room or config.block_size
        shape = (config.n_layer, batch_size, config.kv_heads, room, config.head_size)
        self.keys = cache_memory(shape, device=device, dtype=dtype)  # (L, B, K, room, D)
        self.values = cache_memory(shape, device=device, dtype=dtype)
        self.layers: list[LayerCache] = []
        self.positions = torch.arange(room, device=device)
        self.rope = rope_tables(config, self.positions) if config.position == "rope" else ()
        self.length = 0  # tokens placed so far

    def place(self, T: int) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor | None]:
        """Positions (T,) of the next T tokens, their rows of `rope_tables`, and their mask (T, S).

        Afterwards `layers` holds each block's cache, with room for these tokens. The mask is None
        for the first tokens and for a single token, which need none. Raises ValueError if there is
        no room.
        """
        start, room = self.length, len(self.positions)
        end = start + T
        if end > room:
            raise ValueError(f"{end} tokens do not fit into a cache of {room}")
        self.length = end
        both = zip(self.keys[:, :, :, :end], self.values[:, :, :, :end], strict=True)
        self.layers = [LayerCache(keys, values) for keys, values in both]
        rows = [table[start:end] for table in self.rope]
        positions, mask = self.positions[start:end], None
        if T > 1 and start:
            mask = self.positions[:end] <= positions[:, None]
        return positions, rows, mask


class LayerCache(NamedTuple):
    """The keys and values (B, K, S, D) of one block, with room for the next T tokens at the end."""

    keys: torch.Tensor
    values: torch.Tensor

    def extend(self, k: torch.Tensor, v: torch.Tensor) -> "LayerCache":
        """Puts k and v (B, K, T, D) into the last T rows; returns all keys and values."""
        T = k.size(2)
        self.keys[:, :, -T:] = k
        self.values[:, :, -T:] = v
        return self
