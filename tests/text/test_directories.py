"""Data by name: the directories that nanoGPT wrote serve as they are (tests/data/test_mixture.py: mixtures)."""

import pytest
from directories import nanogpts

from nanogpt.text import directories
from nanogpt.text.directories import load_meta, open_data
from nanogpt.text.tokenizer import BPETokenizer, load_tokenizer


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
