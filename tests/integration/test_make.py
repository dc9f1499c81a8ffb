"""The Makefile, as far as it goes without installing anything; .ci/run does what it says."""

import os
import shutil
import subprocess

import pytest
from zygote import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str) -> str:
    """What `make` prints in a clone."""
    clean = {k: v for k, v in os.environ.items() if k not in ("VENV", "FLAGS", "MFLAGS") and k[:4] != "MAKE"}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=clean, capture_output=True, text=True, check=True).stdout


def test_train_makes_the_environment_installs_the_tested_versions_and_passes_flags_on(tmp_path):
    lines = make("-n", "train", f"VENV={tmp_path}/env", "UV=", "FLAGS=--max_iters=10").splitlines()
    assert lines[0] == f"python3 -m venv {tmp_path}/env"
    assert lines[1] == "pip install -e . -c constraints.txt"
    assert "accelerate launch recipes/shakespeare.py --resume=auto --max_iters=10" in lines


def test_what_is_installed_is_not_installed_again(tmp_path):
    (tmp_path / "env" / "bin").mkdir(parents=True)
    for name in ("bin/pip", ".installed", ".installed-dev"):
        (tmp_path / "env" / name).touch()
    assert "pip install" not in make("-n", "train", f"VENV={tmp_path}/env")
    assert "pip install" not in make("-n", "test", f"VENV={tmp_path}/env")
