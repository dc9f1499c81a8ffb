"""Whatever is typed or a file holds: no traceback, exit code 0 or 2, and at most three lines on stderr."""

import contextlib
import io
from collections.abc import Callable
from datetime import date

import pytest
from conftest import TINY
from fresh import reset_accelerate

from data_prep import writer
from nanogpt import TrainConfig
from nanogpt.train import Run

TEXT = "To be, or not to be: that is the question.\n" * 40


def seeds(count: int):
    """Each seed is another case: in `make test` always the same ones, at night 2,000 new ones every day."""
    tonight = pytest.param(date.today().toordinal() * 2000, 2000, marks=pytest.mark.nightly)
    return pytest.mark.parametrize("first, count", [(0, count), tonight])


def make_run() -> None:
    """Tiny data and a tiny run of them, as `data` and `run` in the current directory."""
    reset_accelerate()
    writer.write("data", TEXT, "char", 0.1, "made up")
    settings = {"out_dir": "run", "data": "data", "device": "cpu", "batch_size": 4, "max_iters": 2, "threads": 1}
    Run(TINY, TrainConfig(**settings, sample_tokens=2), quiet=True).train()


def outcome(program: Callable[[], None]) -> tuple[int, str]:
    """Exit code and stderr of a program in this process."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            program()
        except SystemExit as exit:
            return exit.code or 0, said.getvalue()
    return 0, said.getvalue()


def check(code: int, said: str, *case: object) -> None:
    assert code in (0, 2), (*case, said)
    assert code == 0 or said.splitlines()[-1].startswith("error: "), (*case, said)
    assert said.count("\n") <= 3 and len(said) < 4000, (*case, said)
    assert not any(ord(c) < 32 for c in said.replace("\n", "")), (*case, said)
