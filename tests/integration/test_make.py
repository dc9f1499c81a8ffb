"""The Makefile's commands, as far as they go without installing anything; .ci/run does what they say."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def lines(*arguments: str) -> list[str]:
    """What `make` would run, with pip."""
    clean = {k: v for k, v in os.environ.items() if k not in ("VENV", "FLAGS", "MFLAGS") and k[:4] != "MAKE"}
    made = subprocess.check_output(["make", "-n", *arguments, "UV="], cwd=ROOT, env=clean, text=True)
    return [line for line in made.splitlines() if not line.startswith("touch ")]


def test_train_makes_the_environment_installs_the_tested_versions_and_passes_flags_on(tmp_path):
    found = lines("train", f"VENV={tmp_path}/env", "FLAGS=--max_iters=10")
    assert found[:2] == [f"python3 -m venv {tmp_path}/env", "pip install -e . -c constraints.txt"]
    assert "accelerate launch recipes/shakespeare.py --resume=auto --max_iters=10" in found


def test_test_runs_all_that_the_readme_lists(tmp_path):
    install = "pip install -e '.[dev]' -c constraints.txt"
    block = (ROOT / "README.md").read_text().split(f"{install}\n")[1].split("```")[0]
    assert lines("test", f"VENV={tmp_path}/env")[1:] == [install, *block.splitlines()]
