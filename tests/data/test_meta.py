"""What a data directory must hold: meta.json, the files it describes, a tokenizer; nanoGPT's."""

import json
import os

import numpy as np
import pytest
from directories import change, nanogpts, numbered

from data_prep import writer
from nanogpt.data.meta import read_meta
from nanogpt.data.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, load_tokenizer
from nanogpt.data.tokens import TokenDataset


def refused(directory, message: str, block_size: int = 16, split: str = "train", **kwargs) -> None:
    with pytest.raises(ValueError, match=message) as error:
        TokenDataset(directory, split, block_size, **kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda d: (d / "meta.json").unlink(), "every second token of .*train.bin is 0"),
        (lambda d: (d / "meta.json").write_text("{"), "meta.json is damaged .* prepare the data"),
        (lambda d: (d / "meta.json").write_text("{}"), "meta.json is damaged .*KeyError"),
        (lambda d: (d / "train.bin").unlink(), "train.bin is missing"),
        (lambda d: (d / "train.bin").write_bytes(b"\0" * 4001), "has 4001 bytes, .*truncated"),
        (lambda d: (d / "train.bin").write_bytes(b"\0" * 400), "has 400 bytes, .*truncated"),
    ],
)
def test_damaged_data_is_named(tmp_path, spoil, message):
    numbered(tmp_path, 1000, 16)
    spoil(tmp_path)
    refused(tmp_path, message)


def test_a_missing_directory_is_named(tmp_path):
    refused(tmp_path / "nowhere", "nowhere' does not exist")


FILES = ["/dev/zero", "../train.bin", "a/../train.bin", "..", "", 5, "a/train.bin"]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"tokens": True}, "tokens is 'True'"),
        ({"tokens": 10**30}, "tokens is '1000000"),
        ({"bytes": -1}, "bytes is '-1'"),
        ({"bytes": 0}, "bytes is '0'"),
        ({"largest": [3]}, r"largest is '\[3\]'"),
        ({"files": []}, r"files .* is '\[\]'"),
        ({"sha256": 5}, "sha256 is '5'"),
        *(({"files": [file]}, "files .names in this directory. is") for file in FILES),
    ],
)
def test_odd_counts_and_files_outside_the_directory_are_named(tmp_path, values, message):
    numbered(tmp_path, 1000, 16)
    change(tmp_path, "train", **values)
    refused(tmp_path, f"meta.json is damaged .*train: {message}.* prepare the data again")


@pytest.mark.parametrize(
    "values",
    [
        {"vocab_size": 10**9},
        {"vocab_size": "7"},
        {"vocab_size": 0},
        {"dtype": "O"},
        {"dtype": ["uint16"]},
    ],
)
def test_a_vocabulary_or_dtype_that_cannot_be_is_named(tmp_path, values):
    numbered(tmp_path, 1000, 16)
    CharTokenizer("ab").save(tmp_path)
    change(tmp_path, **({"vocab_size": 300} | values))
    refused(tmp_path, f"meta.json is damaged .*{next(iter(values))} is ")


@pytest.mark.parametrize("chat", [{"block": 4}, {"answer": [], "end": 3}, {"answer": [1, -2], "end": 3}, {"end": "x"}])
def test_damaged_meta_data_of_conversations_is_named(tmp_path, chat):
    numbered(tmp_path, 17, block_size=16)
    for split in ("train", "val"):
        change(tmp_path, split, answers={"tokens": 5, "bytes": 5})
    good = {"block": 16, "answer": [1, 2, 3, 4], "end": 5}
    change(tmp_path, chat=good)
    targets = TokenDataset(tmp_path, "train", 16).batch(0, 0, 1)[1]
    assert targets.tolist() == [[-1] * 4 + [5] + [-1] * 11]
    refused(tmp_path, "conversations in .* fill blocks of 16 tokens", block_size=8)
    change(tmp_path, chat=good | chat)
    refused(tmp_path, r"meta\.json is damaged .*chat is")
    change(tmp_path, chat=good)
    change(tmp_path, "val", answers={"tokens": 5, "bytes": 0})
    refused(tmp_path, r"val: answers is")


@pytest.mark.parametrize("name", ["meta.json", "train.bin"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_regular_files_are_read(tmp_path, name, make):
    numbered(tmp_path, 1000, 16)
    (tmp_path / name).unlink()
    make(tmp_path / name)
    refused(tmp_path, f"{name} is (missing|damaged .*not a regular file)")


def test_a_split_that_is_too_short_is_named(tmp_path):
    assert numbered(tmp_path, 1000, 999).windows_per_epoch == 1
    refused(tmp_path, "block_size=1000 is too long: .* --block_size=999 at most", block_size=1000)
    (tmp_path / "val.bin").write_bytes(bytes(4))
    change(tmp_path, "val", tokens=1)
    refused(tmp_path, "val.bin has 1 tokens, too few; give more text", block_size=1, split="val")


def test_ids_beyond_the_vocabulary_are_found_in_the_tokens(tmp_path):
    numbered(tmp_path, 1000, 16)
    refused(tmp_path, "contains token 999, but the vocabulary has 65 tokens", vocab_size=65)
    TokenDataset(tmp_path, "train", 16, vocab_size=1000)


def test_tokens_newer_than_what_meta_json_says_of_them_are_looked_through(tmp_path):
    numbered(tmp_path, 1000, 16)
    change(tmp_path, "train", largest=3)
    for nanoseconds, found in ((1, 3), (3, 999)):
        os.utime(tmp_path / "meta.json", ns=(0, 2))
        os.utime(tmp_path / "train.bin", ns=(0, nanoseconds))
        refused(tmp_path, f"contains token {found}, but the vocabulary has 3", vocab_size=3)


# The tokenizer beside the tokens


@pytest.mark.parametrize("recorded", [True, False])  # earlier versions wrote no SHA-256
def test_a_tokenizer_that_did_not_make_the_tokens_is_refused(tmp_path, recorded):
    text = "to be or not to be "
    written = writer.write(tmp_path, text * 20, "char", 0.1, "a play")
    if not recorded:
        del written["tokenizer_sha256"]
        (tmp_path / "meta.json").write_text(json.dumps(written))
    for other in (ByteTokenizer(), CharTokenizer("abc")):  # ids up to 7 are in use
        other.save(tmp_path)
        refused(tmp_path, r"tokenizer\.json is not the tokenizer of the .*source: a play")
    CharTokenizer.train(text).save(tmp_path)
    assert TokenDataset(tmp_path, "train", 16).meta == written
    CharTokenizer.train(text.upper()).save(tmp_path)  # of the same size
    if recorded:
        refused(tmp_path, r"tokenizer\.json is not the tokenizer of the tokens")


# Directories of nanoGPT


def test_nanogpts_directory_of_characters_serves_as_it_is(tmp_path):
    nanogpts(tmp_path, "ab你😀", train=[0, 1, 2, 3] * 25 + [0], val=[2] * 99)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    data = TokenDataset(tmp_path, "train", block_size=16)
    assert data.meta["vocab_size"] == 4 and len(data.tokens) == 101
    assert data.bytes_per_token == 25 * (1 + 1 + 3 + 4) / 100  # the first token is not a target
    assert TokenDataset(tmp_path, "val", block_size=16).bytes_per_token == 3
    assert load_tokenizer(tmp_path).decode([3, 0, 2]) == "😀a你"
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_new_tokens_in_nanogpts_directory_are_noticed(tmp_path):
    for tokens in ([0] * 40, [1] * 50):
        nanogpts(tmp_path, "ab", train=tokens, val=tokens)
        assert read_meta(tmp_path)["splits"]["val"]["tokens"] == len(tokens)
    nanogpts(tmp_path, "ab", train=[2] * 50)
    refused(tmp_path, "contains token 2, but the vocabulary has 2 tokens")


@pytest.mark.parametrize("by_line", [False, True])
def test_without_meta_pkl_its_tokens_are_gpt2s(tmp_path, text, gpt2_files, by_line):
    gpt2, text = BPETokenizer.gpt2(), text + " wörld 你好 😀\n\n"
    documents = text.splitlines(True) if by_line else [text]
    ids = [i for document in documents for i in (*gpt2.encode(document), gpt2.eot_id)]
    found = read_meta(nanogpts(tmp_path, train=ids, val=ids))
    # the end of a document is no text
    counts = {"tokens": len(ids), "bytes": len(text.encode()), "largest": gpt2.eot_id}
    assert found["vocab_size"] == 50257 and found["splits"] == {"train": counts, "val": counts}
    assert load_tokenizer(tmp_path).vocab_size == 50257


@pytest.mark.parametrize("vocab_size, dtype", [(16_000, "<u2"), (50_257, "<u2"), (50_257, ">u2")])
def test_ids_of_another_vocabulary_are_not_taken_for_gpt2s(tmp_path, gpt2_files, vocab_size, dtype):
    ids = np.minimum(np.random.default_rng(0).zipf(1.2, 20_000) - 1, vocab_size - 1)
    refused(nanogpts(tmp_path, dtype=dtype, train=ids, val=ids), r"meta\.json is missing")


@pytest.mark.parametrize("dtype", ["<u4", "<i8"])
@pytest.mark.parametrize("characters", [True, False])
def test_tokens_of_another_width_are_refused(tmp_path, text, gpt2_files, dtype, characters):
    tokenizer = CharTokenizer.train(text) if characters else BPETokenizer.gpt2()
    ids = tokenizer.encode(text)
    nanogpts(tmp_path, tokenizer.characters, dtype, train=ids, val=ids)
    refused(tmp_path, r"train\.bin is 0 when read as uint16")
