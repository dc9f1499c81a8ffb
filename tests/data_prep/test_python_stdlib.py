"""The data of `recipes/python_stdlib.py`: which texts, and that the tokens give them back."""

import sysconfig
from pydoc_data.topics import topics

import numpy as np
import pytest
from texts import put, silent

from data_prep import python_stdlib
from nanogpt.data.tokenizer import load_tokenizer
from nanogpt.data.tokens import read_meta


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


def test_every_document_comes_back_from_the_tokens(library, tmp_path, monkeypatch):
    monkeypatch.setattr(python_stdlib, "VOCAB_SIZE", 300)
    meta = python_stdlib.prepare(tmp_path / "data", say=silent)
    assert meta["vocab_size"] == 300 and meta == read_meta(tmp_path / "data")
    bpe = load_tokenizer(tmp_path / "data")
    ids = np.concatenate([np.fromfile(tmp_path / "data" / f"{split}.bin", "<u2") for split in ("train", "val")])
    texts = sorted(bpe.decode(part[:-1]) for part in np.split(ids, np.flatnonzero(ids == bpe.eot_id) + 1)[:-1])
    expected = sorted(text for _, text in python_stdlib.documents(tmp_path / "lib"))
    assert texts == expected
    assert sum(split["bytes"] for split in meta["splits"].values()) == sum(len(text.encode()) for text in expected)
