"""What a data directory must hold: meta.json, the files it describes, a tokenizer."""

import pytest
from directories import change, numbered
from texts import write_data

from nanogpt.data.tokens import TokenDataset
from nanogpt.text.tokenizer import char_tokenizer


def refused(directory, message: str, block_size: int = 16, split: str = "train", **kwargs) -> None:
    with pytest.raises(ValueError, match=message) as error:
        TokenDataset(directory, split, block_size, **kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda d: (d / "meta.json").unlink(), "has no meta.json: name another directory"),
        (lambda d: (d / "meta.json").write_text("{"), "meta.json cannot be read"),
        (lambda d: (d / "meta.json").write_text("{}"), "meta.json is damaged .*KeyError"),
        (lambda d: change(d, None, chat={}), "meta.json is damaged .*KeyError: 'block'"),
        (lambda d: change(d, None, chat={"block": 16, "end": 1}), "meta.json is damaged .*KeyError: 'answer'"),
        (lambda d: (d / "train.bin").unlink(), "train.bin is missing"),
        (lambda d: (d / "train.bin").write_bytes(b"\0" * 4001), "has 4001 bytes, .*truncated"),
    ],
)
def test_damaged_data_is_named(tmp_path, spoil, message):
    numbered(tmp_path, 1000, 16)
    spoil(tmp_path)
    refused(tmp_path, message)


@pytest.mark.parametrize(
    "split, values",
    [
        ("train", {"tokens": True}),
        ("train", {"bytes": 0}),
        ("val", {"largest": -1}),
        ("train", {"documents": 1.5}),
        (None, {"vocab_size": "7"}),
        (None, {"dtype": "O"}),
    ],
)
def test_impossible_values_are_named(tmp_path, split, values):
    numbered(tmp_path, 1000, 16)
    change(tmp_path, split, **values)
    name = next(iter(values))
    refused(tmp_path, f"meta.json is damaged .*{name} is not valid.* prepare the data again")


def test_a_split_that_is_too_short_is_named(tmp_path):
    assert next(numbered(tmp_path, 1000, 999).whole_split(1))[0].shape == (1, 999)
    refused(tmp_path, "block_size=1000 is too long: .* --block_size=999 at most", block_size=1000)
    (tmp_path / "val.bin").write_bytes(bytes(4))
    change(tmp_path, "val", tokens=1)
    refused(tmp_path, "val.bin has 1 tokens, too few; prepare more text$", block_size=1, split="val")


def test_ids_beyond_the_vocabulary_are_found_in_the_tokens(tmp_path):
    numbered(tmp_path, 1000, 16)
    for size in (65, 999):
        refused(tmp_path, f"contains token 999, but the vocabulary has {size} tokens", vocab_size=size)
    TokenDataset(tmp_path, "train", 16, vocab_size=1000)


# The tokenizer beside the tokens


def test_a_tokenizer_that_did_not_make_the_tokens_is_refused(tmp_path):
    text = "to be or not to be "
    written = write_data(tmp_path, text * 20, source="a play")
    char_tokenizer(sorted(set(text.upper()))).save(tmp_path)  # of the same size
    refused(tmp_path, r"tokenizer\.json is not the tokenizer of the tokens")
    char_tokenizer(sorted(set(text))).save(tmp_path)
    assert TokenDataset(tmp_path, "train", 16).meta == written
