"""What a data directory must hold: meta.json, the files it describes, a tokenizer; nanoGPT's."""

import pytest
from directories import change, nanogpts, numbered
from texts import write_data

from nanogpt.data import meta
from nanogpt.data.meta import read_meta
from nanogpt.data.tokenizer import BPETokenizer, char_tokenizer, load_tokenizer
from nanogpt.data.tokens import TokenDataset


def refused(directory, message: str, block_size: int = 16, split: str = "train", **kwargs) -> None:
    with pytest.raises(ValueError, match=message) as error:
        TokenDataset(directory, split, block_size, **kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda d: (d / "meta.json").unlink(), "every second token of .*train.bin is 0"),
        (lambda d: (d / "meta.json").write_text("{"), "meta.json cannot be read"),
        (lambda d: (d / "meta.json").write_text("{}"), "meta.json is damaged .*KeyError"),
        (lambda d: change(d, None, chat={}), "meta.json is damaged .*KeyError: 'block'"),
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
    refused(tmp_path, "val.bin has 1 tokens, too few; give more text", block_size=1, split="val")


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


# Directories of nanoGPT


def test_nanogpts_directory_of_characters_serves_as_it_is(tmp_path):
    nanogpts(tmp_path, "ab你😀", train=[0, 1, 2, 3] * 25 + [0], val=[2] * 99)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    data = TokenDataset(tmp_path, "train", block_size=16)
    assert data.meta["vocab_size"] == 4 and len(data.tokens) == 101
    assert data.bytes_per_token == (25 * (1 + 1 + 3 + 4) + 1) / 101
    assert TokenDataset(tmp_path, "val", block_size=16).bytes_per_token == 3
    assert load_tokenizer(tmp_path).decode([3, 0, 2]) == "😀a你"
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_without_meta_pkl_its_tokens_are_gpt2s(tmp_path, text, gpt2_files):
    gpt2, text = BPETokenizer.get("gpt2"), text + " wörld 你好 😀\n\n"
    ids = [*gpt2.encode(text), gpt2.eot_id]  # the end of a document is no text
    found = read_meta(nanogpts(tmp_path, train=ids, val=ids))
    counts = {"tokens": len(ids), "bytes": len(text.encode())}
    assert found["vocab_size"] == 50257 and found["splits"] == {"train": counts, "val": counts}
    assert load_tokenizer(tmp_path).vocab_size == 50257


def test_the_bytes_of_long_texts_are_estimated_from_their_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(meta, "SAMPLE", 100)
    found = read_meta(nanogpts(tmp_path, "a你", train=[0, 1] * 500, val=[0] * 50))
    assert found["splits"] == {"train": {"tokens": 1000, "bytes": 2000}, "val": {"tokens": 50, "bytes": 50}}


def test_tokens_of_another_width_are_refused(tmp_path):
    nanogpts(tmp_path, "ab", dtype="<u4", train=[0, 1] * 50, val=[0, 1] * 50)
    refused(tmp_path, r"train\.bin is 0 when read as uint16")
