"""recipes/own_text.py: the model follows from the text and the machine, by arithmetic on paper."""

from dataclasses import replace

import own_text
import pytest

from nanogpt.model import GPT


@pytest.mark.parametrize(
    "tokens, vocab_size, gib, n_embd",
    [
        (10**5, 65, 0, 64),  # the smallest, whatever the text
        (10**6, 65, 0, 128),  # 12 x 4 x 128^2 + 65 x 128 = 0.79 million parameters, the most without a GPU
        (2 * 10**7, 4096, 6, 448),  # 12 x 7 x 448^2 + 4096 x 448 = 18.7 million; 8 layers have 27.3 million
        (10**10, 4096, 4, 448),  # 4 GiB / 160 = 26.8 million parameters
        (10**10, 50257, 80, 768),  # the largest
    ],
)
def test_the_model_grows_with_the_text_and_the_machine(tokens, vocab_size, gib, n_embd):
    model, train, note = own_text.size(tokens, vocab_size, gib)
    assert model.n_embd == n_embd
    count = GPT(replace(model, vocab_size=vocab_size)).get_num_params()
    assert f"{count:,} parameters for {tokens:,} tokens" in note
    assert count < max(1.1 * tokens, 1.2e5)
    seen = train.max_iters * train.batch_size * train.gradient_accumulation_steps * model.block_size
    assert seen <= 1.05 * min(20 * count, 4 * tokens)
    assert gib or seen <= 1.05 * 4e6


@pytest.mark.parametrize("name", ["own_text", "pretrain", "speedrun"])  # they read flags before `main` does
def test_a_value_that_is_not_allowed_is_one_line(recipe, name):
    done = recipe(name, "--min_lr=inf")
    assert done.returncode == 2
    assert done.stderr == "error: min_lr=inf must be from 0 to 100\n"
