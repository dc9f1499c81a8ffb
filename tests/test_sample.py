"""Sampling: cached and uncached agree past block_size, draws follow the softmax, and a text ends where it should."""

import dataclasses

import pytest
import torch
from helpers import randomize
from shapes import CASES

from nanogpt import GPT, GPTConfig
from nanogpt import sample as sample_module
from nanogpt.sample import KVCache, draw

GPT2 = GPTConfig(vocab_size=65, block_size=16, n_layer=2, n_head=4, n_embd=32)
MODERN = dataclasses.replace(GPT2, norm="rmsnorm", position="rope", mlp="swiglu", n_kv_head=2, qk_norm=True)
MODERN = dataclasses.replace(MODERN, tie_embeddings=False)
ONE = torch.zeros(1, 1, dtype=torch.long)


def random_model(config: GPTConfig) -> GPT:
    return randomize(GPT(config).eval())


def prompts(samples: int, length: int) -> torch.Tensor:
    return torch.randint(65, (samples, length), generator=torch.Generator().manual_seed(1))


def greedy(model: GPT, idx: torch.Tensor, count: int) -> torch.Tensor:
    """A loop written out: it reads the context again for each token, and if that is full, only its newer half."""
    context = idx[:, -16:]
    for _ in range(count):
        context = context[:, -8:] if context.size(1) > 16 else context
        token = model(context)[:, -1].argmax(-1, keepdim=True)
        context, idx = torch.cat((context, token), dim=1), torch.cat((idx, token), dim=1)
    return idx


@pytest.mark.parametrize("config", [GPT2, MODERN], ids=["gpt2", "modern"])
@pytest.mark.parametrize("prompt_length", [1, 5, 16, 40])
def test_greedy_equals_a_loop_written_out_past_block_size_too(config, prompt_length):
    model, idx = random_model(config), prompts(3, prompt_length)
    expected = greedy(model, idx, 50)
    assert torch.equal(model.generate(idx, 50, temperature=0), expected)
    assert expected[:, prompt_length:].unique().numel() > 5  # not the same token all along


def test_the_seed_decides_and_padding_is_never_sampled():
    model, idx = random_model(GPT2), ONE.expand(4, 1)
    a, b, c = (model.generate(idx, 40, temperature=5.0, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert not torch.equal(a[0], a[1])  # the samples of one batch differ
    assert a.max() < 65


@pytest.mark.parametrize(
    "options, kept",
    [
        ({}, 5),
        ({"top_k": 2}, 2),
        ({"top_k": 99}, 5),
        ({"top_p": 0.6}, 2),  # 0.5 does not reach 0.6, with 0.2 it does
        ({"top_p": 0.4}, 1),
        ({"top_p": 0.0}, 1),
        ({"top_k": 3, "top_p": 0.6}, 2),
    ],
)
def test_top_k_and_top_p_keep_the_likeliest(options, kept):
    probs = torch.tensor([0.1, 0.5, 0.05, 0.2, 0.15])
    generator = torch.Generator().manual_seed(0)
    logits = probs.log().expand(10_000, 5)
    drawn = draw(logits, 1.0, **{"top_k": None, "top_p": None} | options, generator=generator)
    expected = torch.zeros(5)
    expected[[1, 3, 4, 0, 2][:kept]] = probs[[1, 3, 4, 0, 2][:kept]]
    shares = drawn[:, 0].bincount(minlength=5) / len(drawn)
    assert torch.equal(shares > 0, expected > 0) and (shares - expected / expected.sum()).abs().max() < 0.03


def test_draws_follow_the_softmax_at_the_temperature():
    model = random_model(GPT2)
    drawn = model.generate(ONE.expand(4000, 1), 1, temperature=2.0, seed=1)[:, 1]
    expected = (model(ONE)[0, 0] / 2).softmax(-1)
    assert (drawn.bincount(minlength=65) / 4000 - expected).abs().max() < 0.03


def test_a_diverged_model_and_an_empty_prompt_are_refused():
    model = random_model(GPT2)
    with pytest.raises(ValueError, match="prompt is empty"):
        model.generate(ONE[:, :0], 1)
    for options in ({"temperature": -1.0}, {"top_k": -1}, {"top_p": -0.1}):
        with pytest.raises(ValueError, match="must not be negative"):
            model.generate(ONE, 1, **options)
    model.ln_f.weight.data.fill_(torch.nan)
    for temperature in (0, 1):
        with pytest.raises(ValueError, match="diverged"):
            model.generate(ONE, 1, temperature=temperature)


def test_the_model_is_afterwards_in_the_mode_it_was_in():
    model = random_model(GPT2)
    for training in (True, False):
        model.train(training).generate(ONE, 2)
        assert model.training == training


def test_a_sample_ends_with_eos_and_the_batch_with_its_last_sample():
    model, idx = random_model(MODERN), prompts(3, 4)
    whole = model.generate(idx, 30, temperature=0)[:, 4:].tolist()
    eos_id = next(token for token in whole[0] if all(token in row for row in whole))
    ends = [row.index(eos_id) for row in whole]
    assert len(set(ends)) > 1 and max(ends) < 29
    cut = model.generate(idx, 30, temperature=0, eos_id=eos_id)[:, 4:].tolist()
    for row, end, uncut in zip(cut, ends, whole, strict=True):
        assert row == uncut[: end + 1] + [eos_id] * (max(ends) - end)


def test_sampling_on_cuda_passes_over_cudnns_attention():
    flags = torch.backends.cuda
    for device, cudnn in (("cuda", False), ("cpu", flags.cudnn_sdp_enabled())):
        with sample_module.sampling_kernels(torch.device(device)):
            assert flags.cudnn_sdp_enabled() is cudnn
            assert flags.flash_sdp_enabled() and flags.mem_efficient_sdp_enabled() and flags.math_sdp_enabled()


@pytest.mark.parametrize("case", ["gpt2", "llama", "qwen3"])
def test_reading_in_pieces_equals_reading_at_once(case):
    model = random_model(CASES[case])
    T = model.config.block_size
    idx, cache = torch.randint(65, (3, T)), KVCache(model.config, batch_size=3)
    with torch.no_grad():
        pieces = [model(idx[:, a:b], cache=cache) for a, b in ((0, 3), (3, 9), (9, 10), (10, 12), (12, T))]
        whole = model(idx)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-4, rtol=1e-4)
    assert cache.length == T
    with pytest.raises(ValueError, match=f"{T + 1} tokens do not fit into a cache of {T}"):
        model(idx[:, :1], cache=cache)
