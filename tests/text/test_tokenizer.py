"""Tokenizers: characters, bytes, tiktoken's, any other; their files; how they are found by name."""

import json
from functools import cache

import pytest
import tiktoken
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from nanogpt.text.tokenizer import (
    END,
    EOT,
    START,
    BPETokenizer,
    byte_tokenizer,
    char_tokenizer,
    from_pretrained,
    get_tokenizer,
    load_tokenizer,
)
from nanogpt.text.tokenizer import Tokenizer as HFTokenizer

MIXED = "Hello wörld 你好 😀 \n\n  def f(x):\t\r\n  it's 1234567 — ROMEO:<|endoftext|>"
NO_SURROGATES = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


@cache
def small_tiktoken() -> tiktoken.Encoding:
    """An encoding with ids that nothing has, as p50k_base and cl100k_base do."""
    ranks = {bytes([b]): b for b in range(256)}
    ranks |= {b"he": 256, b"ll": 257, b"hell": 259, b" w": 260}
    special = {EOT: 258, "<|fim|>": 300}
    pattern = r"\p{N}{1,3}+| ?\w+|\s+|[^\w\s]+"
    return tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


@cache
def trained() -> Tokenizer:
    """A byte-level BPE that `tokenizers` trained, as published models have it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[EOT], initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([MIXED] * 3, trainer)
    return bpe


MAKERS = {
    "char": lambda: char_tokenizer(sorted(set(MIXED))),
    "bytes": byte_tokenizer,
    "gpt2": lambda: BPETokenizer.get("gpt2"),
    "small": lambda: BPETokenizer(small_tiktoken()),
    "trained": lambda: HFTokenizer(trained()),
    "chat": lambda: char_tokenizer(sorted(set(MIXED))).with_special([START, END]),
}


@pytest.fixture(params=MAKERS)
def some(request, gpt2_files):
    return MAKERS[request.param]()


def test_characters_are_numbered_by_code_point_and_gaps_in_the_ids_count():
    chars = char_tokenizer(sorted("cabbac"))  # as nanoGPT's sorted(set(text))
    assert (chars.encode("abc").tolist(), chars.vocab_size, chars.eot_id) == ([0, 1, 2], 3, None)
    assert BPETokenizer(small_tiktoken()).vocab_size == 301


@pytest.mark.parametrize("strange", ["é", "😀", "c", "\ud800"])  # c follows the last known one
def test_an_unknown_character_is_named_with_its_position(strange):
    named = f"character {strange!r} (position 2) is not among the 2".replace("\\", "\\\\")
    with pytest.raises(ValueError, match=named.replace("(", r"\(").replace(")", r"\)")):
        char_tokenizer(sorted(set("abab"))).encode("ab" + strange)


def test_ids_of_gpt2_are_those_published(gpt2_files):
    gpt2 = BPETokenizer.get("gpt2")
    assert (gpt2.name, gpt2.vocab_size, gpt2.eot_id) == ("gpt2", 50257, 50256)
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert gpt2.special == {EOT: 50256}
    merges = gpt2.to_dict()["model"]["merges"]
    assert len(merges) == 50000 and merges[:3] == [["Ġ", "t"], ["Ġ", "a"], ["h", "e"]]


@given(NO_SURROGATES)
def test_every_text_comes_back(text):
    for some in (byte_tokenizer(), HFTokenizer(trained()), BPETokenizer(small_tiktoken())):
        ids = some.encode(text)
        assert ids.dtype == "int64" and some.eot_id not in ids
        assert some.decode(ids) == text
        batch = some.encode_batch([text, "x"])
        assert [a.tolist() for a in batch] == [ids.tolist(), some.encode("x").tolist()]
    assert byte_tokenizer().encode(text).tolist() == list(text.encode())
    if text:
        chars = char_tokenizer(sorted(set(text)))
        assert chars.decode(chars.encode(text)) == text


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=NO_SURROGATES)
def test_tiktoken_gives_the_ids_of_the_library(gpt2_files, text):
    text += MIXED + "\n\n\t x'S don't 3½²\u2003 \xa0 ٣ \r\n" + " " * 70
    for some in (BPETokenizer.get("gpt2"), BPETokenizer(small_tiktoken())):
        library = some.backend.encode(text, add_special_tokens=False)
        assert some.encode(text).tolist() == some.encode_batch([text])[0].tolist() == library.ids


def test_halves_of_surrogate_pairs_are_question_marks_and_ids_without_a_token_are_left_out():
    for some in (byte_tokenizer(), BPETokenizer(small_tiktoken())):
        assert some.decode(some.encode("a\ud800b")) == "a?b"
        assert some.decode([97, 301, 98]) == "ab"


# Special tokens


def test_templates_padding_and_truncation_are_not_used(tmp_path):
    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "to": 3, "be": 4}
    published = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    published.pre_tokenizer = pre_tokenizers.Whitespace()
    published.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    published.add_special_tokens(["[CLS]", "[SEP]"])
    published.enable_padding(length=8)
    published.enable_truncation(4)
    published.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path)
    assert found.encode("to be be be be be").tolist() == [3, 4, 4, 4, 4, 4] and found.eot_id is None
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "[CLS]"}}')
    assert get_tokenizer(str(tmp_path / "tokenizer.json")).eot_id == 1


# Files


def test_a_saved_tokenizer_is_the_same_here_and_in_transformers(tmp_path, some):
    some.save(tmp_path)
    found, hf = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    values = "vocabulary", "vocab_size", "special", "eot_id", "characters"
    assert all(getattr(found, name) == getattr(some, name) for name in values)
    plain = MIXED if some.eot_id is None else MIXED.replace(EOT, "")
    assert found.encode(plain).tolist() == some.encode(plain).tolist() == hf.encode(plain)
    ids = found.encode(MIXED).tolist()  # special tokens in a text are plain text
    assert found.decode(ids) == MIXED and some.eot_id not in ids
    for token, i in some.special.items():
        assert found.decode([i]) == hf.decode([i]) == token
        assert hf.encode(f" {token} ")[1:-1] == [i]  # spaces around it stay


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "tokenizer.json is missing"),
        ("{", "is damaged"),
        ('{"version": "1.0", "model": {"type": "WordLevel", "unk_token": "", "vocab": {}}}', "vocabulary is empty"),
        ('{"version": "1.0", "model": {"type": "BPE", "merges": [], "vocab": {}}, "added_tokens": [7]}', "damaged"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


# Names


def test_tokenizers_are_found_by_name(monkeypatch, gpt2_files, tmp_path):
    assert get_tokenizer("gpt2").vocab_size == 50257
    assert get_tokenizer("bytes").vocab_size == 257
    with pytest.raises(ValueError, match=r"tokenizer 'morse' is not one of bytes, gpt2, .*cl100k_"):
        get_tokenizer("morse")
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing"):
        get_tokenizer(str(tmp_path))

    def no_network(name):
        raise ConnectionError("no network in this test")

    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    with pytest.raises(ValueError, match="tokenizer files of cl100k_base could not be downloaded"):
        get_tokenizer("cl100k_base")


def test_code_beside_a_tokenizer_is_never_run_nor_asked_about(tmp_path, monkeypatch):
    config = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": [None, "evil.Mine"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n"
    (tmp_path / "evil.py").write_text(code)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match="contains custom code") as error:
        from_pretrained(str(tmp_path))
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()


def test_a_text_that_a_tokenizer_cannot_encode_is_an_error_of_one_line():
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]"))  # and no such token
    with pytest.raises(ValueError, match="the tokenizer cannot read this text"):
        HFTokenizer(words).encode("b")
