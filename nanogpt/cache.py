"""Key-value caches: while sampling, a model reads each token only once.

    cache = KVCache(model.config, batch_size=1)
    logits = model(prompt, cache=cache)  # then model(token, cache=cache) for each new token

`GPT.forward` asks the cache for the place of the next tokens (`place`). Each block puts its
keys and values there, in its layer of the cache, and gets all of them back (`extend`).
"""

import torch

from nanogpt.model import GPTConfig, rope_tables


class LayerCache:
    """The keys and values (B, K, room, D) of one block."""

    def __init__(self, cache: "KVCache", keys: torch.Tensor, values: torch.Tensor):
        self.cache = cache
        self.keys = keys
        self.values = values

    def extend(self, k: torch.Tensor, v: torch.Tensor) -> tuple:
        """Appends k and v (B, K, T, D); returns all keys and values (B, K, S, D)."""
        end, T = self.cache.length, k.size(2)
        keys = self.keys[:, :, :end]
        values = self.values[:, :, :end]
        keys[:, :, end - T :] = k
        values[:, :, end - T :] = v
        return keys, values


class KVCache:
    """Keys and values of the tokens read so far, allocated once: no tensor grows while sampling."""

    def __init__(
        self, config: GPTConfig, batch_size: int, device=None, dtype=None, room: int | None = None
    ):
        """`room` is the largest number of tokens, by default block_size."""
        room = room or config.block_size
        rows = room + 1  # torch.compile would treat a full cache as a case of its own
        shape = (config.n_layer, batch_size, config.kv_heads, rows, config.head_size)
        keys = torch.zeros(shape, device=device, dtype=dtype)
        values = torch.zeros(shape, device=device, dtype=dtype)
        self.layers = [LayerCache(self, k, v) for k, v in zip(keys, values, strict=True)]
        self.positions = torch.arange(room, device=device)
        self.rope = rope_tables(config, self.positions) if config.position == "rope" else ()
        self.length = 0  # tokens placed so far

    def place(self, T: int) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor | None]:
        """Positions (T,) of the next T tokens, their rows of `rope_tables`, and their mask (T, S).

        The mask is None for the first tokens and for a single token, which need none. Raises
        ValueError if there is no room for them.
        """
        start, room = self.length, len(self.positions)
        end = start + T
        if end > room:
            raise ValueError(f"{end} tokens do not fit into a cache of {room}")
        self.length = end
        # copies, because the offsets of views would be further inputs of a compiled block
        rows = [table[start:end].clone() for table in self.rope]
        positions, mask = self.positions[start:end], None
        if T > 1 and start:
            mask = self.positions[:end] <= positions[:, None]
        return positions, rows, mask

    def clear(self) -> None:
        self.length = 0
