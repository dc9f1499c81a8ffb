"""The examples in docstrings, module by module, in a directory that has the files they mention."""

import doctest
import gzip
import importlib
import re

import pytest
from pages import ROOT

PATHS = [path for folder in ("nanogpt", "data_prep") for path in sorted((ROOT / folder).rglob("*.py"))]
EXAMPLE = re.compile(r">>> (?!.*\+SKIP)")
WITH_EXAMPLES = [path.relative_to(ROOT) for path in PATHS if EXAMPLE.search(path.read_text(encoding="utf-8"))]
MODULES = [".".join(path.with_suffix("").parts) for path in WITH_EXAMPLES]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, file in (("books", "one.txt"), ("notes", "two.md")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("to be or not to be")
    with gzip.open("crawl.jsonl.gz", "wt") as crawl:
        crawl.write('{"text": "that is the question"}\n')
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0
