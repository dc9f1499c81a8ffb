"""`data_prep.text` as a command and from Python, and the scripts of known data sets that are made of it."""

import contextlib
import gzip
import importlib
import io
import json
import random
import runpy
import sys
from argparse import ArgumentTypeError
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import documents, expected, save_as, silent, small_bpe, tokens, write_jsonl

from data_prep import text
from nanogpt.data.tokenizer import load_tokenizer


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


def run(*argv: str) -> tuple[int, list[str]]:
    """The exit code of `python -m data_prep.text`, in this process, and what it says on stderr."""
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(sys, "argv", ["text", *argv])
        try:
            text.main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code or 0
    stderr.seek(0)
    return code, stderr.read().splitlines()


def check_run(*argv: str) -> None:
    code, lines = run(*argv)
    assert code in (0, 2)
    if code == 2:
        assert 1 <= len(lines) <= 3
        assert lines[-1].startswith("error: ")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["text", "a\nb", ""]), inner, max_size=3)
    ),
    max_leaves=8,
)
LINES = st.lists(VALUES.map(json.dumps), max_size=5).map("\n".join)
DEEP = st.sampled_from(["[" * 50_000, '{"text":' * 50_000, '{"text": 1' + "0" * 5000 + "}"])
BEGINNINGS = st.sampled_from(
    [b"", b"%PDF-1", b"PK\3\4", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"PAR1", b"ARROW1\0\0", b"["]
)
PACKED = (
    st.binary(max_size=200).map(gzip.compress).flatmap(lambda data: st.integers(0, len(data)).map(lambda n: data[:n]))
)
CONTENTS = (
    st.text(max_size=300).map(lambda t: t.encode("utf-8", "surrogatepass"))
    | st.text(max_size=100).map(lambda t: t.encode("utf-16", "surrogatepass"))
    | (LINES | DEEP).map(str.encode)
    | st.tuples(BEGINNINGS, st.binary(max_size=300)).map(b"".join)
    | st.text('text,"\n\r;', max_size=100).map(lambda t: b"text,b\n" + t.encode())
    | PACKED
)
NAMES = [
    f"in{kind}"
    for kind in (".txt", "", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt.gz", ".jsonl.zst")
]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.sampled_from(NAMES),
    CONTENTS,
    st.sampled_from(["char", "bytes", "itself"]),
    st.sampled_from(["strict", "skip", "replace"]),
)
def test_no_file_ends_the_command_with_a_traceback(tmp_path_factory, name, content, kind, errors):
    folder = tmp_path_factory.mktemp("odd")
    path = folder / name
    path.write_bytes(content)
    kind = str(path) if kind == "itself" else kind
    check_run(str(path), "--out", str(folder / "out"), "--tokenizer", kind, "--errors", errors)


ODD = [
    "",
    " ",
    "\udcff",
    "-1",
    "nan",
    "1e-320",
    "9" * 5000,
    "1/2",
    "0/1",
    "2/1",
    "1/2/3",
    "é",
    "a" * 300,
    "hf:",
    "hf:a/b",
    "-",
]
FLAGS = [
    "--tokenizer",
    "--val_fraction",
    "--text_column",
    "--errors",
    "--shard",
    "--dedup",
    "--out",
    "--hlp",
    "--help",
    "--",
]
WORD = st.sampled_from([*FLAGS, *FLAGS, *ODD, "IN", "IN", "DIR", "[a", "*.none", "gpt3", "bytes", "0.5", "/dev/null"])


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.lists(WORD, max_size=7), st.booleans())
def test_no_command_line_ends_with_a_traceback(tmp_path_factory, words, complete):
    folder = tmp_path_factory.mktemp("odd")
    path = write_jsonl(folder / "in.jsonl", documents(20))
    argv = [{"IN": path, "DIR": str(folder)}.get(word, word) for word in words]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets, "load_dataset", lambda *args, **kwargs: {}["no such data set"])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"some text\n")))
        check_run(*argv, *([path, "--out", "data"] if complete else []))


def test_characters_are_trained_on_all_shards(tmp_path):
    inputs = [write_jsonl(tmp_path / "a.jsonl", ["abc"] * 50), write_jsonl(tmp_path / "b.jsonl", ["xyz"] * 50)]
    text.prepare(inputs, tmp_path / "data", "char", 0.1, shard=(1, 2), say=silent)
    chars = load_tokenizer(tmp_path / "data")
    assert chars.name == "char"
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
