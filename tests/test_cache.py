"""The key-value cache: reading in pieces equals reading at once."""

import pytest
import torch
from helpers import randomize
from shapes import CASES

from nanogpt import GPT
from nanogpt.cache import KVCache


@pytest.mark.parametrize("case", ["gpt2", "llama", "qwen3"])
def test_reading_in_pieces_equals_reading_at_once(case):
    model = randomize(GPT(CASES[case]).eval())
    T = model.config.block_size
    idx, cache = torch.randint(65, (3, T)), KVCache(model.config, batch_size=3)
    with torch.no_grad():
        pieces = [model(idx[:, a:b], cache=cache) for a, b in ((0, 3), (3, 9), (9, 10), (10, 12), (12, T))]
        whole = model(idx)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-4, rtol=1e-4)
    assert cache.length == T
    with pytest.raises(ValueError, match=f"{T + 1} tokens do not fit into a cache of {T}"):
        model(idx[:, :1], cache=cache)
