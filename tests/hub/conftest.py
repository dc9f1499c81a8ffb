"""An export for transformers of each shape, made once and handed out as a copy."""

import shutil
from functools import lru_cache

import pytest
from shapes import CASES, CHARACTERS, make_checkpoint

from nanogpt.data.tokenizer import CharTokenizer
from nanogpt.hub import export


@pytest.fixture(scope="session")
def make_export(tmp_path_factory):
    """Exports a run with a model of that shape; returns the directory of both, to be read only."""

    @lru_cache
    def make(case: str):
        place = tmp_path_factory.mktemp("exported")
        make_checkpoint(place / "run", CASES[case], CharTokenizer(CHARACTERS))
        export.export(place / "run", place / "export", say=lambda text: None)
        return place

    return make


@pytest.fixture
def exported(tmp_path, make_export):
    """The directory of an export, a copy; its run is beside it."""

    def copy(case: str = "qwen3"):
        for name in ("run", "export"):
            shutil.copytree(make_export(case) / name, tmp_path / name, symlinks=True)
        return tmp_path / "export"

    return copy
