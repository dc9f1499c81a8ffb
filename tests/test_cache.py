"""The key-value cache: reading in pieces, or by a compiled step of fixed shapes, equals reading at once."""

import dataclasses

import pytest
import torch
from helpers import randomize
from torch._dynamo.utils import counters

from nanogpt import GPT, GPTConfig
from nanogpt.cache import KVCache
from nanogpt.sample import generate

GPT2 = GPTConfig(vocab_size=65, block_size=16, n_layer=2, n_head=4, n_embd=32)
LLAMA = dataclasses.replace(GPT2, norm="rmsnorm", position="rope", mlp="swiglu", n_kv_head=2, tie_embeddings=False)
QWEN3 = dataclasses.replace(LLAMA, qk_norm=True)
SHAPES = pytest.mark.parametrize("config", [GPT2, LLAMA, QWEN3], ids=["gpt2", "llama", "qwen3"])
DRAWN = {"temperature": 1.0, "top_k": 20, "seed": 3}


def random_model(config: GPTConfig) -> GPT:
    return randomize(GPT(config).eval())


def prompts(length: int) -> torch.Tensor:
    return torch.randint(65, (3, length), generator=torch.Generator().manual_seed(1))


@SHAPES
def test_reading_in_pieces_equals_reading_at_once(config):
    model, idx, cache = random_model(config), prompts(16), KVCache(config, batch_size=3)
    with torch.no_grad():
        pieces = [model(idx[:, a:b], cache=cache) for a, b in ((0, 3), (3, 9), (9, 10), (10, 12), (12, 16))]
        whole = model(idx)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-4, rtol=1e-4)
    assert cache.length == 16
    with pytest.raises(ValueError, match="17 tokens do not fit into a cache of 16"):
        model(idx[:, :1], cache=cache)


@SHAPES
def test_a_cache_of_fixed_shapes_draws_the_same(config, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda step, **options: step)
    model = random_model(config)
    for idx in (prompts(n) for n in (1, 5, 16, 40)):
        assert torch.equal(generate(model, idx, 40, compile=True, **DRAWN), generate(model, idx, 40, **DRAWN))


def test_a_compiled_step_draws_the_same_and_is_compiled_once():
    model = random_model(dataclasses.replace(QWEN3, n_layer=1))
    counters.clear()
    for idx in (prompts(n) for n in (1, 5, 16, 40)):
        assert torch.equal(generate(model, idx, 40, compile=True, **DRAWN), generate(model, idx, 40, **DRAWN))
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
