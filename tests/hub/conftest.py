"""An export for transformers of each shape, made once."""

from functools import lru_cache

import pytest
from shapes import CASES, CHARACTERS, make_checkpoint

from nanogpt.hub import export
from nanogpt.text.tokenizer import char_tokenizer


@pytest.fixture(scope="session")
def make_export(tmp_path_factory):
    """Exports a run with a model of that shape; returns the directory of both, to be read only."""

    @lru_cache
    def make(case: str):
        place = tmp_path_factory.mktemp("exported")
        make_checkpoint(place / "run", CASES[case], char_tokenizer(CHARACTERS))
        export.export(place / "run", place / "export", say=lambda text: None)
        return place

    return make
