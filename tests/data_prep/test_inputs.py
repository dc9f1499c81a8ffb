"""Which files an input means, and how files that are not text are reported."""

import gzip
import os
from pathlib import Path

import datasets
import pytest
from texts import documents, documents_in, put, read, silent

from data_prep import text
from data_prep.documents import Corpus
from data_prep.inputs import find_files


def names(*inputs) -> list[str]:
    """The names of the files that inputs mean."""
    return [os.path.basename(file.name) for file in find_files([str(name) for name in inputs])[0]]


def test_a_folder_means_its_texts_in_the_order_of_names(tmp_path):
    hidden = (".git/c.txt", ".obsidian/app.json", "node_modules/x/package.json", "more/.d.txt")
    for name in ("b.txt", "more/a.md", "a.jsonl.gz", "c.png", *hidden):
        put(tmp_path / name, "{}")
    assert names(tmp_path) == ["a.jsonl.gz", "b.txt", "a.md"]
    assert names(tmp_path / "**" / "*.md", tmp_path / "*.txt") == ["a.md", "b.txt"]
    assert names(tmp_path / "mor*") == ["a.md"]  # a folder that a pattern matches


def test_links_lead_to_a_file_or_folder_once_and_a_cycle_ends(tmp_path):
    a, b = put(tmp_path / "in" / "a.txt", "a"), put(tmp_path / "in" / "b.txt", "b")
    put(tmp_path / "elsewhere" / "c.txt", "c")
    os.symlink(a, tmp_path / "in" / "d.txt")
    os.link(b, tmp_path / "in" / "e.txt")
    os.symlink(tmp_path / "nowhere", tmp_path / "in" / "f.txt")
    os.symlink(tmp_path / "in", tmp_path / "elsewhere" / "back")
    for name in ("link", "link2"):
        os.symlink(tmp_path / "elsewhere", tmp_path / "in" / name)
    assert names(tmp_path / "in", a, tmp_path / "in" / "*.txt") == ["a.txt", "b.txt", "c.txt"]


def test_inputs_without_files_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("nothing.txt", "*.jsonl"):
        with pytest.raises(ValueError, match="does not exist"):
            find_files([str(tmp_path / name)])
    for name in ("folder", "fold*"):
        with pytest.raises(ValueError, match=r"has no files that end with .txt"):
            find_files([str(tmp_path / name)])


def test_other_files_in_a_folder_are_counted_in_the_output(tmp_path):
    others = ("b.PDF", "m/c.pdf", "d.e.pdf", "f.py", "m/g.py", "Makefile", ".git/h.py")
    for name in ("a.txt", *others, "node_modules/i.js"):
        put(tmp_path / name, "Some text.")
    said = []
    for _ in range(2):  # the second time, what the first one wrote is there
        text.prepare([str(tmp_path)], tmp_path / "data", "bytes", say=said.append)
    assert said.count("not read, because of their endings: 3 .pdf, 2 .py, 1 without an ending") == 2


def test_data_prepared_inside_the_input_is_no_input(tmp_path):
    texts = documents(20)
    for i, t in enumerate(texts):
        put(tmp_path / f"{i}.txt", t)
    for out in (tmp_path / "data", tmp_path / "data", tmp_path, tmp_path):  # each twice
        text.prepare([str(tmp_path)], out, "bytes", say=silent)
        assert documents_in(out) == sorted(texts)


LEFT_OUT = {
    "tables without the column": {"metadata.csv": "file\na.txt", "package.json": '{"name": "x"}'},
    "a data set's test split": {
        "data/train-00000-of-1.jsonl": '{"text": "b"}',
        "data/test-00000-of-1.jsonl": '{"text": "c"}',
        "test/d.txt": "d",
    },
    "its card": {"README.md": "---\nlicense: mit\n---\n"},
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_files_that_are_not_training_text_are_left_out_and_reported(tmp_path, what):
    put(tmp_path / "a.txt", "a")
    for name, content in LEFT_OUT[what].items():
        put(tmp_path / name, content)
    corpus = Corpus([str(tmp_path)])
    assert {"a"} <= {piece.text for piece in corpus.pieces()} <= {"a", "b"}
    expect = [Path(name).name for name in LEFT_OUT[what] if "train" not in name]
    assert all(any(name in note for note in corpus.notes) for name in expect)


def test_without_a_training_split_or_tables_nothing_is_a_test_split_or_a_card(tmp_path):
    put(tmp_path / "test" / "a.txt", "a")
    put(tmp_path / "README.md", "b")
    assert names(tmp_path) == ["README.md", "a.txt"]


def test_what_datasets_saved_to_disk_is_read(tmp_path):
    datasets.Dataset.from_dict({"text": documents(20)}).save_to_disk(str(tmp_path / "saved"))
    put(tmp_path / "saved" / "cache-0123456789abcdef.arrow", "a cache")
    assert read(tmp_path / "saved") == documents(20)


NOT_TEXT = {
    "paper.pdf": b"%PDF-1.4\n1 0 obj << /Type /Catalog >> endobj\n",
    "letter.docx": b"PK\3\4" + bytes(100),
    "letter.rtf": rb"{\rtf1 Hello}",
    "page.txt": b"\n <!DOCTYPE html><p>Hello",
    "page.htm": b"<HTML lang=en>",
    "notes.ipynb": b'{\n "cells": [',
    "photo.md": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "picture": b"\x89PNG\r\n",
    "text": gzip.compress(b"text"),
    "wide.txt": "wide".encode("utf-16"),
    "wider.txt": "wider".encode("utf-16-le"),
}


@pytest.mark.parametrize("name", NOT_TEXT)
def test_a_file_that_is_not_text_is_named_in_one_line_or_left_out(tmp_path, name):
    path = put(tmp_path / name, NOT_TEXT[name])
    with pytest.raises(ValueError, match=rf"{name} (is|has).*pdftotext, pandoc") as error:
        read(path)
    assert "\n" not in str(error.value)
    corpus = Corpus([path, put(tmp_path / "good", "good\n")], errors="skip")
    assert "".join(piece.text for piece in corpus.pieces()) == "good\n" and corpus.skipped == 1


def test_a_nul_is_named_where_it_is_and_taken_on_request(tmp_path):
    odd = "some text\n" * 100 + "a NUL: \0\n"
    path = put(tmp_path / "odd.txt", odd)
    with pytest.raises(ValueError, match=r"odd.txt has a NUL at byte 1007"):
        read(path)
    assert read(path, errors="replace") == [odd]
