"""Text from sampled tokens: no piece splits a character, and a text ends where it should."""

from types import SimpleNamespace

import pytest
import torch

from nanogpt import GPT, GPTConfig, sample
from nanogpt.text import generate
from nanogpt.text.generate import sample_text, stream_text

CONFIG = GPTConfig(vocab_size=65, block_size=16, n_layer=2, n_head=4, n_embd=32)


def streamed(monkeypatch, tokens, decode, prompt=(), eos_id=None) -> list[str]:
    """The pieces of the text of these tokens, as a model draws them."""
    monkeypatch.setattr(generate, "stream", lambda *args, **options: (torch.tensor([t]) for t in tokens))
    tokenizer = SimpleNamespace(decode=decode)
    return list(stream_text(GPT(CONFIG), tokenizer, list(prompt), 99, eos_id))


def test_streamed_text_never_splits_a_character(monkeypatch):
    text = "aé你😀b"
    decode = lambda ids: bytes(ids).decode("utf-8", errors="replace")  # noqa: E731
    assert streamed(monkeypatch, text.encode(), decode) == list(text)
    assert "".join(streamed(monkeypatch, b"ok\xff", decode)) == "ok\ufffd"


def test_streamed_text_has_only_the_spaces_between_tokens_and_ends_before_the_end(monkeypatch):
    decode = lambda ids: " ".join("abcdef"[i] for i in ids)  # noqa: E731
    assert streamed(monkeypatch, [1, 2, 3, 5, 4], decode, prompt=[0], eos_id=5) == [" b", " c", " d"]


@pytest.mark.parametrize("ends", [{"eot_id": 2, "special": {}}, {"eot_id": None, "special": {"<|im_end|>": 2}}])
def test_a_text_amid_training_ends_with_eos(monkeypatch, ends):
    tokens = [1, 0, 2, 0]
    monkeypatch.setattr(sample, "stream", lambda *args, **options: (torch.tensor([t]) for t in tokens))
    tokenizer, model = SimpleNamespace(**ends, decode=lambda ids: " ".join(map(str, ids))), GPT(CONFIG)
    assert sample_text(model.train(), tokenizer, [7], 4, 0) == "7 1 0"
    assert model.training
