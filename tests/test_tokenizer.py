import json

import pytest
from tokenizers import Tokenizer

from nanogpt import tokenizer
from nanogpt.tokenizer import BPETokenizer, CharTokenizer

MIXED = "Hello wörld 你好 😀 \n\n  def f(x):\t\r\n  it's 1234 — ROMEO:<|endoftext|>"


def test_characters_keep_the_order_of_nanogpts_vocabulary(shakespeare):
    text = shakespeare.read_text()
    chars = CharTokenizer.train(text)
    assert chars.vocab_size == 65
    itos = sorted(set(text))  # nanoGPT's prepare.py
    assert chars.encode("ROMEO:").tolist() == [itos.index(c) for c in "ROMEO:"]
    assert chars.decode(chars.encode(text)) == text


def test_character_tokenizer_survives_saving_and_reads_the_same_in_tokenizers(tmp_path):
    chars = CharTokenizer.train(MIXED)
    chars.save(tmp_path)
    again = tokenizer.load(tmp_path)
    assert again.characters == chars.characters
    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert reference.encode(MIXED).ids == chars.encode(MIXED).tolist() == again.encode(MIXED).tolist()
    assert reference.decode(reference.encode(MIXED).ids) == again.decode(again.encode(MIXED)) == MIXED


@pytest.mark.parametrize("strange", ["é", "😀"])
def test_an_unknown_character_is_named_with_its_place(strange):
    with pytest.raises(ValueError, match=f"character '{strange}' .position 2. is not among the 2 .*: ab"):
        CharTokenizer.train("abab").encode("ab" + strange)


def test_an_empty_text_makes_no_tokenizer():
    with pytest.raises(ValueError, match="text is empty"):
        CharTokenizer.train("")


def test_gpt2_survives_saving_and_reads_the_same_in_tokenizers(gpt2_files, tmp_path):
    gpt2 = BPETokenizer.gpt2()
    assert (gpt2.vocab_size, gpt2.eot_id) == (50257, 50256)
    assert gpt2.encode("Hello world").tolist() == [15496, 995]  # as published with GPT-2
    gpt2.save(tmp_path)
    again = tokenizer.load(tmp_path)
    plain = MIXED.replace("<|endoftext|>", "")
    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert reference.encode(plain).ids == gpt2.encode(plain).tolist() == again.encode(plain).tolist()
    assert again.decode(again.encode(MIXED)) == MIXED
    assert (again.name, again.vocab_size, again.eot_id) == ("gpt2", 50257, 50256)
    assert 50256 not in gpt2.encode(MIXED)  # written out, a special token is plain text


def test_merges_are_those_that_gpt2_was_published_with(gpt2_files):
    merges = tokenizer.merges(BPETokenizer.gpt2().encoding._mergeable_ranks)
    assert len(merges) == 50000
    assert merges[:3] == [(b" ", b"t"), (b" ", b"a"), (b"h", b"e")]


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "tokenizer.json is missing"),
        ("{", "is damaged"),
        (json.dumps({"model": {"type": "Unigram"}, "decoder": {"type": "Metaspace"}}), "holds a Unigram tokenizer"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        tokenizer.load(tmp_path)
