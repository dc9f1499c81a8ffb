"""Caches of keys and values: with one, a model that samples reads each token once.

    cache = KVCache(model.config, batch_size=1)
    logits = model(prompt, cache=cache)  # then model(token, cache=cache) for each new token

`GPT.forward` asks a cache where the next tokens are (`place`), each layer hands it its keys and values and gets all
of them back (`extend`), and at the end the tokens count as read (`advance`).
"""

import torch

from nanogpt.model import GPTConfig, rope_tables


class KVCache:
    """Keys and values of the tokens read so far, allocated once so that no tensor grows while sampling."""

    def __init__(
        self, config: GPTConfig, batch_size: int, device=None, dtype=None, length: int | None = None
    ):
        """Room for `length` tokens, by default the whole block_size."""
        length = length or config.block_size
        shape = (config.n_layer, batch_size, config.kv_heads, length, config.head_size)
        self.keys, self.values = (
            torch.zeros(shape, device=device, dtype=dtype).unbind() for _ in range(2)
        )
        self.positions = torch.arange(length, device=device)
        self.rope = rope_tables(config, self.positions) if config.position == "rope" else ()
        self.length = 0  # number of tokens held, and the position of the next one

    def place(self, T: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Positions (T,) of the next T tokens, and the rows of `rope_tables` for them where the model has RoPE."""
        new = slice(self.length, self.length + T)
        return self.positions[new], [table[new] for table in self.rope]

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple:
        """Appends k and v (B, K, T, D); returns all keys and values (B, K, S, D) of the layer and the mask (T, S).

        The mask says which keys a query sees. It is None for the first tokens and for a single one, which need none.
        """
        start, T = self.length, k.size(2)
        keys, values = (x[layer].narrow(2, 0, start + T) for x in (self.keys, self.values))
        keys.narrow(2, start, T).copy_(k)
        values.narrow(2, start, T).copy_(v)
        mask = None
        if start and T > 1:
            mask = self.positions[: start + T] <= self.positions[start : start + T, None]
        return keys, values, mask

    def advance(self, T: int) -> None:
        self.length += T

    def clear(self) -> None:
        self.length = 0


class StaticKVCache(KVCache):
    """A cache for a compiled step: the shapes are the same for every token, and its length is a tensor.

    So one compiled graph, on a GPU one CUDA graph, serves all tokens. Attention reads the whole block_size each time,
    with a mask, which costs less on a GPU than the launches of all its kernels do.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.next = torch.zeros(1, dtype=torch.long, device=self.positions.device)
        for tensor in (*self.keys, *self.values, self.next):
            torch._dynamo.mark_static_address(tensor, guard=False)  # a CUDA graph may write to them

    def place(self, T: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        new = self.next + self.positions[:T]
        return new, [table[new] for table in self.rope]

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple:
        new = self.next + self.positions[: k.size(2)]
        keys, values = (
            self.keys[layer].index_copy_(2, new, k),
            self.values[layer].index_copy_(2, new, v),
        )
        return keys, values, self.positions <= new[:, None]

    def advance(self, T: int) -> None:
        self.next += T

    def clear(self) -> None:
        self.next.zero_()
