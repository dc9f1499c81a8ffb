"""The data of `recipes/python_stdlib.py`: which texts, and that the tokens give them back."""

import sysconfig
from pydoc_data.topics import topics

import pytest
from texts import put, silent

from data_prep import python_stdlib
from nanogpt.data.meta import read_meta


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library of six files, two of which are wanted."""
    files = {
        "json/decoder.py": "".join(f"def scan_{i}(text):\n    return {i}\n" for i in range(99)),
        "old.py": "# -*- coding: latin-1 -*-\nname = 'Löwis'\n",
        "test/test_json.py": "a test",
        "idlelib/idle_test/htest.py": "a test",
        "encodings/cp037.py": "a table",
        "site-packages/numpy.py": "another's",
    }
    for name, text in files.items():
        put(tmp_path / "lib" / name, text.encode("latin-1"))
    monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(tmp_path / "lib")}.get)
    return {name: text for name, text in files.items() if not text.startswith("a t")}


def test_sources_without_tests_and_tables_then_the_manual(library, tmp_path):
    del library["site-packages/numpy.py"]
    found = list(python_stdlib.documents(tmp_path / "lib"))
    assert dict(found[:2]) == library
    assert len(found) == 2 + len(topics)
    assert dict(found)["help('comparisons')"] == topics["comparisons"]


def test_every_document_is_tokenized(library, tmp_path, monkeypatch):
    monkeypatch.setattr(python_stdlib, "VOCAB_SIZE", 300)
    meta = python_stdlib.prepare(tmp_path / "data", say=silent)
    assert meta["vocab_size"] == 300 and meta == read_meta(tmp_path / "data")
    expected = [text for _, text in python_stdlib.documents(tmp_path / "lib")]
    assert sum(split["bytes"] for split in meta["splits"].values()) == sum(len(text.encode()) for text in expected)
    assert sum(split["documents"] for split in meta["splits"].values()) == len(expected)
