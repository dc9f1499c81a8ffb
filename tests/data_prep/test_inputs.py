"""Which files an input means, and how files that are not text are reported."""

import gzip
import json
import os

import datasets
import pytest
from texts import documents, documents_in, silent, written

from data_prep import text
from data_prep.documents import Corpus
from data_prep.inputs import find_inputs


def put(path, content: bytes | str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_hidden_and_installed_files_in_a_folder_are_not_read(tmp_path):
    put(tmp_path / "a.txt", "a")
    put(tmp_path / "more" / "b.md", "b")
    for hidden in (
        ".git/c.txt",
        ".obsidian/app.json",
        "node_modules/x/package.json",
        "more/.d.txt",
    ):
        put(tmp_path / hidden, "{}")
    assert [*find_inputs([str(tmp_path)])] == [str(tmp_path / "a.txt"), str(tmp_path / "more" / "b.md")]


def test_other_files_in_a_folder_are_counted_in_the_output(tmp_path):
    others = ("b.PDF", "more/c.pdf", "d.e.pdf", "f.py", "more/g.py", "Makefile", ".git/h.py", "node_modules/i.js")
    for name in ("a.txt", *others):
        put(tmp_path / "in" / name, "Some text.")
    said = []
    for _ in range(2):  # the second time, what the first one wrote is there
        text.prepare([str(tmp_path / "in")], tmp_path / "in" / "data", "bytes", say=said.append)
    assert said.count("not read, because of their endings: 3 .pdf, 2 .py, 1 without an ending") == 2


def test_data_prepared_inside_the_input_is_no_input(tmp_path):
    texts = documents(20)
    for i, t in enumerate(texts):
        put(tmp_path / f"{i}.txt", t)
    for out in (tmp_path / "data", tmp_path / "data", tmp_path, tmp_path):  # each twice
        text.prepare([str(tmp_path)], out, "bytes", say=silent)
        assert documents_in(out) == sorted(texts)


def test_a_file_is_read_once_whatever_links_lead_to_it(tmp_path):
    a, b = put(tmp_path / "a.txt", "a"), put(tmp_path / "b.txt", "b")
    os.symlink(a, tmp_path / "c.txt")
    os.link(b, tmp_path / "d.txt")
    os.symlink(tmp_path / "nowhere", tmp_path / "e.txt")
    os.symlink(tmp_path, tmp_path / "loop")
    assert [*find_inputs([str(tmp_path), str(a), str(tmp_path / "*.txt")])] == [str(a), str(b)]


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
    path = str(put(tmp_path / name, NOT_TEXT[name]))
    with pytest.raises(ValueError, match=rf"{name} (is|has).*pdftotext, pandoc") as error:
        text.prepare([path], tmp_path / "data", "bytes", say=silent)
    assert "\n" not in str(error.value)
    good, said = str(put(tmp_path / "good", "good\n")), []
    text.prepare([path, good], tmp_path / "data", "bytes", errors="skip", say=said.append)
    assert written(tmp_path / "data") == b"good\n"
    assert "1 lines, records or files without a text in UTF-8 were left out" in said


def test_a_nul_is_named_where_it_is_and_taken_on_request(tmp_path):
    odd = b"some text\n" * 100 + b"a NUL: \0\n"
    path = str(put(tmp_path / "odd.txt", odd))
    with pytest.raises(ValueError, match=r"odd.txt has a NUL at byte 1007"):
        text.prepare([path], tmp_path / "data", "bytes", say=silent)
    text.prepare([path], tmp_path / "data", "bytes", errors="replace", say=silent)
    assert written(tmp_path / "data") == odd


def test_an_array_of_objects_is_read_like_an_object_a_line(tmp_path):
    texts = documents(30)
    for indent in (None, 2):
        path = put(tmp_path / f"{indent}.json", json.dumps([{"text": t, "id": 1} for t in texts], indent=indent))
        text.prepare([str(path)], tmp_path / f"{indent}", "bytes", say=silent)
        assert documents_in(tmp_path / f"{indent}") == sorted(texts)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[" * 100_000, "line 1: it is not JSON .maximum recursion"),
        ('["a", "b"]', "record 0: expected an object with a column 'text', not a str"),
        ('{"a": {\n"text": "b"}}', "no column 'text' .it has: a"),
        ('{"a": {\n"text": "b"}', "line 1: it is not JSON .*one object per line, as jq -c . "),
        ('{"text": ["a"]}', "record 0: column 'text' holds list, not text"),
        ('{"a\\nb": 1}', "no column 'text' .it has: a"),
    ],
)
def test_other_json_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        text.prepare([str(put(tmp_path / "in.json", content))], tmp_path / "data", "bytes", say=silent)


def test_a_linked_folder_is_read_once_and_a_cycle_ends(tmp_path):
    put(tmp_path / "elsewhere" / "b.txt", "b")
    put(tmp_path / "in" / "a.txt", "a")
    for name in ("link", "link2"):
        os.symlink(tmp_path / "elsewhere", tmp_path / "in" / name)
    os.symlink(tmp_path / "in", tmp_path / "elsewhere" / "back")
    assert [os.path.basename(name) for name in find_inputs([str(tmp_path / "in")])] == ["a.txt", "b.txt"]


def test_metadata_beside_texts_is_left_out_and_reported(tmp_path):
    put(tmp_path / "a.txt", "some text")
    put(tmp_path / "metadata.csv", "file,author\na.txt,me\n")
    put(tmp_path / "package.json", '{\n "name": "x"\n}\n')
    corpus = Corpus([str(tmp_path)])
    assert [os.path.basename(name) for name in corpus.inputs] == ["a.txt"]
    assert any("metadata.csv" in note and "package.json" in note for note in corpus.notes)


def test_what_datasets_saved_to_disk_is_read(tmp_path):
    texts = documents(20)
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / "saved"))
    text.prepare([str(tmp_path / "saved")], tmp_path / "data", "bytes", say=silent)
    assert documents_in(tmp_path / "data") == sorted(texts)


def test_the_card_and_the_test_split_of_a_data_set_are_left_out(tmp_path):
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        put(tmp_path / "data" / f"{name}.jsonl", json.dumps({"text": name}))
    put(tmp_path / "README.md", "---\nlicense: mit\n---\n")
    corpus = Corpus([str(tmp_path)])
    assert [piece.text for piece in corpus.pieces()] == ["train-00000-of-00001"]
    assert any("test-00000" in note for note in corpus.notes) and any("README.md" in note for note in corpus.notes)


def test_a_pattern_that_matches_folders_means_their_files(tmp_path):
    put(tmp_path / "a1" / "b.txt", "b")
    assert [*find_inputs([str(tmp_path / "a*")])] == [str(tmp_path / "a1" / "b.txt")]
