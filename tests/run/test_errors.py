"""Mistakes that end any program; those of commands and flags are in cli/test_mistakes.py."""

import subprocess
import sys
from functools import partial

import pytest

from nanogpt import GPTConfig, TrainConfig, cli, train


@pytest.mark.parametrize(
    "program",
    [partial(train.main, GPTConfig(), TrainConfig(), argv=[]), partial(cli.main, ["train", "--processes=2", "x.py"])],
    ids=["a recipe", "a command"],
)
def test_windows_is_refused_in_one_line_that_names_wsl2(monkeypatch, refused, program):
    monkeypatch.setattr(sys, "platform", "win32")
    assert "WSL2" in refused(program)


def test_windows_is_refused_before_modules_that_cannot_be_imported_there():
    """nanogpt/run/stop.py needs signals that Windows lacks."""
    code = "import sys; import nanogpt.train, nanogpt.cli; print('nanogpt.run.stop' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.stdout == "False\n", shown.stderr
