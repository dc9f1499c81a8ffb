"""Key-value caches: while sampling, a model reads each token only once.

    cache = KVCache(model.config, batch_size=1)
    logits = model(prompt, cache=cache)  # then model(token, cache=cache) for each new token

`GPT.forward` asks the cache for the positions of the next tokens (`place`). Each block adds its
keys and values to its layer of the cache and gets all of them back (`extend`). Then `advance`
counts the tokens as read.
"""

import torch

from nanogpt.model import GPTConfig, rope_tables


class Layer:
    """The keys and values (B, K, room, D) of one block."""

    def __init__(self, cache: "KVCache", keys: torch.Tensor, values: torch.Tensor):
        self.cache = cache
        self.keys = keys
        self.values = values

    def extend(self, k: torch.Tensor, v: torch.Tensor) -> tuple:
        """Appends k and v (B, K, T, D); returns all keys and values (B, K, S, D).

        The third result is the attention mask (T, S). It is None for the first tokens and for a
        single token, which need no mask.
        """
        start, T = self.cache.length, k.size(2)
        keys = self.keys[:, :, : start + T]
        values = self.values[:, :, : start + T]
        keys[:, :, start:] = k
        values[:, :, start:] = v
        mask = None
        if T > 1 and start:
            positions = self.cache.positions
            mask = positions[: start + T] <= positions[start : start + T, None]
        return keys, values, mask


class KVCache:
    """Keys and values of the tokens read so far, allocated once: no tensor grows while sampling."""

    layer_class = Layer
    spare = 1  # a row never used: torch.compile would treat a full cache as a case of its own

    def __init__(
        self, config: GPTConfig, batch_size: int, device=None, dtype=None, room: int | None = None
    ):
        """`room` is the largest number of tokens, by default block_size."""
        room = room or config.block_size
        rows = room + self.spare
        shape = (config.n_layer, batch_size, config.kv_heads, rows, config.head_size)
        keys = torch.zeros(shape, device=device, dtype=dtype)
        values = torch.zeros(shape, device=device, dtype=dtype)
        self.layers = [self.layer_class(self, k, v) for k, v in zip(keys, values, strict=True)]
        self.positions = torch.arange(room, device=device)
        self.rope = rope_tables(config, self.positions) if config.position == "rope" else ()
        self.length: int | torch.Tensor = 0  # tokens held, and the position of the next one

    def place(self, T: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Positions (T,) of the next T tokens, and their rows of `rope_tables` if there is RoPE.

        Raises ValueError if there is no room for them.
        """
        end, room = self.length + T, len(self.positions)
        if end > room:
            raise ValueError(f"{end} tokens do not fit into a cache of {room}")
        # copies, because the offsets of views would be further inputs of a compiled block
        rows = [table[self.length : end].clone() for table in self.rope]
        return self.positions[self.length : end], rows

    def advance(self, T: int) -> None:
        self.length += T

    def clear(self) -> None:
        self.length = 0


class StaticLayer(Layer):
    def extend(self, k: torch.Tensor, v: torch.Tensor) -> tuple:
        new = self.cache.length + self.cache.positions[: k.size(2)]
        keys = self.keys.index_copy_(2, new, k)
        values = self.values.index_copy_(2, new, v)
        return keys, values, self.cache.positions <= new[:, None]


class StaticKVCache(KVCache):
    """A cache for a compiled step: its shapes never change, and `length` is a tensor.

    One CUDA graph serves all tokens. Attention reads the whole cache, with a mask: on a GPU that
    costs less than launching all its kernels. There is no check that the tokens fit, because the
    host would have to wait for the device.
    """

    layer_class = StaticLayer
    spare = 0

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.length = torch.zeros(1, dtype=torch.long, device=self.positions.device)
        written = [tensor for layer in self.layers for tensor in (layer.keys, layer.values)]
        for tensor in (*written, self.length):  # a CUDA graph may write to them
            torch._dynamo.mark_static_address(tensor, guard=False)

    def place(self, T: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        new = self.length + self.positions[:T]
        return new, [table[new] for table in self.rope]

    def clear(self) -> None:
        self.length.zero_()
