"""`data_prep.text` as a command and from Python, and the scripts of known data sets that are made of it."""

import contextlib
import importlib
import random
import runpy
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
import pytest
from texts import documents, expected, save_as, silent, small_bpe, tokens, write_jsonl

from data_prep import text
from nanogpt.data.tokenizer import CharTokenizer, load_tokenizer


def test_the_summary_tells_counts_and_first_tokens(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", documents())
    said = []
    meta = text.prepare([path], tmp_path / "data", small_bpe(), 0.1, say=said.append)
    shown = said[-1]
    train, val = (meta["splits"][s] for s in ("train", "val"))
    assert f"{train['tokens']:,} training tokens, {val['tokens']:,} for validation" in shown
    rate = (train["bytes"] + val["bytes"]) / (train["tokens"] + val["tokens"])
    assert f"300 documents, {train['bytes'] + val['bytes']:,} bytes, {rate:.2f} bytes per token" in shown
    first = tokens(tmp_path / "data", "train")[:10]
    assert all(f"{i}={small_bpe().decode([i])!r}" in shown for i in first.tolist())


@pytest.mark.parametrize("name", ["openwebtext", "fineweb_edu", "tinystories"])
def test_scripts_of_known_data_sets_read_local_copies(tmp_path, monkeypatch, capsys, name):

    source = importlib.import_module(f"data_prep.{name}").__file__
    with open(source) as file:
        assert len(file.readlines()) < 60
    (tmp_path / "copy").mkdir()
    save_as("parquet", tmp_path / "copy", documents())
    arguments = ["--source", str(tmp_path / "copy"), "--out", str(tmp_path / "data"), "--tokenizer", "bytes"]
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--val_fraction", "0.1"])
    with contextlib.suppress(RuntimeWarning):
        runpy.run_path(source, run_name="__main__")
    assert tokens(tmp_path / "data", "train").tolist() == expected(documents(), 0.1, False)
    assert "accelerate launch recipes/own_text.py" in capsys.readouterr().out


def test_characters_are_trained_on_all_shards(tmp_path):
    inputs = [write_jsonl(tmp_path / "a.jsonl", ["abc"] * 50), write_jsonl(tmp_path / "b.jsonl", ["xyz"] * 50)]
    text.prepare(inputs, tmp_path / "data", "char", 0.1, shard=(1, 2), say=silent)
    chars = load_tokenizer(tmp_path / "data")
    assert isinstance(chars, CharTokenizer)
    assert chars.characters == "\nabcxyz"


def test_the_tokenizer_of_the_readme_works_as_it_stands(tmp_path, monkeypatch):
    readme = (Path(__file__).parents[2] / "data_prep" / "README.md").read_text()
    code = next(block for block in readme.split("```python\n") if "class Codons" in block).split("```")[0]
    chance = random.Random(0)
    genes = ["".join(chance.choices("ACGT", k=3 * chance.randint(10, 100))) for _ in range(300)]
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "genes.jsonl", genes)
    there: dict = {}
    exec(code, there)
    codons, loaded = there["Codons"](), load_tokenizer(tmp_path / "data" / "genes")
    assert (loaded.vocab_size, loaded.eot_id) == (65, 64)
    for gene in genes[:10]:
        assert loaded.encode(gene).tolist() == codons.encode(gene).tolist()
        assert loaded.decode(loaded.encode(gene)) == codons.decode(codons.encode(gene)) == gene
    ids = np.concatenate([tokens(tmp_path / "data" / "genes", split) for split in ("train", "val")])
    assert sorted(loaded.decode(ids).split("<|endoftext|>")) == sorted([*genes, ""])
    assert len(code.split("class Codons")[1].splitlines()) <= 32


def test_a_shard_is_one_of_its_number():
    assert text.read_shard("2/4") == (2, 4)
    for wrong in ("0/4", "5/4", "1", "1/0", "a/b"):
        with pytest.raises(ArgumentTypeError, match="is not I/N"):
            text.read_shard(wrong)
