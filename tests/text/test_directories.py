"""Data by name: mixtures, and directories written by nanoGPT, which work unchanged."""

import re

import pytest
from directories import nanogpts

from nanogpt.text import directories
from nanogpt.text.directories import load_meta, open_data, read_shares
from nanogpt.text.tokenizer import BPETokenizer, load_tokenizer


@pytest.mark.parametrize(
    "data, shares",
    [
        ("data/a", {"data/a": 1}),
        ("2024", {"2024": 1}),
        ("a:3,b:1", {"a": 0.75, "b": 0.25}),
        ("C:/x:0.5, b:0.5", {"C:/x": 0.5, "b": 0.5}),
    ],
)
def test_shares_are_read_and_add_up_to_one(data, shares):
    assert read_shares(data) == shares


@pytest.mark.parametrize("name", ["v1:2", "a:1,b:2"])
def test_a_directory_that_exists_is_not_a_mixture_whatever_its_name(tmp_path, name):
    (tmp_path / name).mkdir()
    assert read_shares(str(tmp_path / name)) == {str(tmp_path / name): 1}


@pytest.mark.parametrize("data", "a,b a:1,b a:0,b:1 a:-1,b:2 a:1,a:1 a:nan,b:1 :1,b:1".split())
def test_what_is_not_a_mixture_is_refused(data):
    with pytest.raises(ValueError, match=re.escape(f"data={data!r}: a mixture is DIR:SHARE")):
        read_shares(data)


def test_nanogpts_directory_of_characters_serves_as_it_is(tmp_path):
    nanogpts(tmp_path, "ab你😀", train=[0, 1, 2, 3] * 25 + [0], val=[2] * 99)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    data = open_data(str(tmp_path), "train", 16)
    assert data.meta["vocab_size"] == 4 and len(data.tokens) == 101
    assert data.bytes_per_token == (25 * (1 + 1 + 3 + 4) + 1) / 101
    assert open_data(str(tmp_path), "val", 16).bytes_per_token == 3
    assert load_tokenizer(tmp_path).decode([3, 0, 2]) == "😀a你"
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_without_meta_pkl_its_tokens_are_gpt2s(tmp_path, text, gpt2_files):
    gpt2, text = BPETokenizer.get("gpt2"), text + " wörld 你好 😀\n\n"
    ids = [*gpt2.encode(text), gpt2.eot_id]  # the end of a document is no text
    found = load_meta(nanogpts(tmp_path, train=ids, val=ids))
    counts = {"tokens": len(ids), "bytes": len(text.encode())}
    assert found["vocab_size"] == 50257 and found["splits"] == {"train": counts, "val": counts}
    assert load_tokenizer(tmp_path).vocab_size == 50257


def test_the_bytes_of_long_texts_are_estimated_from_their_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(directories, "SAMPLE", 100)
    found = load_meta(nanogpts(tmp_path, "a你", train=[0, 1] * 500, val=[0] * 50))
    assert found["splits"] == {"train": {"tokens": 1000, "bytes": 2000}, "val": {"tokens": 50, "bytes": 50}}


def test_tokens_of_another_width_are_refused(tmp_path):
    nanogpts(tmp_path, "ab", dtype="<u4", train=[0, 1] * 50, val=[0, 1] * 50)
    with pytest.raises(ValueError, match=r"every second token of .*train\.bin is 0 when read as uint16"):
        open_data(str(tmp_path), "train", 16)
