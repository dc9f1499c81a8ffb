"""The examples in docstrings, module by module, in a directory that has the files they mention."""

import doctest
import gzip
import importlib

import pytest
from pages import ROOT

MODULES = [f"{folder}.{p.stem}" for folder in ("nanogpt", "data_prep") for p in sorted((ROOT / folder).glob("*.py"))]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__")])
def test_examples_in_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, file in (("books", "one.txt"), ("notes", "two.md")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("to be or not to be")
    with gzip.open("crawl.jsonl.gz", "wt") as crawl:
        crawl.write('{"text": "that is the question"}\n')
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = [t for name in MODULES for t in finder.find(importlib.import_module(name.removesuffix(".__init__")))]
    assert sum(len(test.examples) for test in examples) >= 6
