"""The Makefile's two commands, as far as they go without installing anything; .ci/run does what they say."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str, path: str = "", **env: str) -> str:
    """What `make` prints in a clone, with the directory `path` first in PATH."""
    clean = {k: v for k, v in os.environ.items() if k not in ("VENV", "FLAGS", "MFLAGS") and k[:4] != "MAKE"}
    clean |= {"PATH": f"{path}:{clean['PATH']}", **env}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=clean, capture_output=True, text=True, check=True).stdout


def test_make_alone_says_what_there_is():
    shown = make()
    assert (
        all(f"make {target} " in shown for target in ("train", "test", "bench")) and 'FLAGS="--max_iters=10"' in shown
    )


def test_train_makes_the_environment_installs_the_tested_versions_and_passes_flags_on(tmp_path):
    lines = make("-n", "train", f"VENV={tmp_path}/env", "UV=", "FLAGS=--max_iters=10").splitlines()
    assert lines[0] == f"python3 -m venv {tmp_path}/env"
    assert lines[1] == "pip install -e . -c constraints.txt"
    assert "accelerate launch recipes/shakespeare.py --resume=auto --max_iters=10" in lines


def test_bench_measures_this_machine(tmp_path):
    lines = make("-n", "bench", f"VENV={tmp_path}/env", "FLAGS=--nanogpt nanoGPT").splitlines()
    assert lines[-1] == "python tests/performance/table.py --nanogpt nanoGPT"


def test_uv_is_used_where_it_is_installed(tmp_path):
    (tmp_path / "uv").write_text("#!/bin/sh\n")
    (tmp_path / "uv").chmod(0o755)
    lines = make("-n", "train", f"VENV={tmp_path}/env", path=str(tmp_path)).splitlines()
    assert lines[0].startswith("uv venv --seed ") and lines[1] == "uv pip install -e . -c constraints.txt"


def test_test_runs_all_that_the_readme_lists(tmp_path):
    lines = make("-n", "test", f"VENV={tmp_path}/env", "UV=").splitlines()
    lines = [line for line in lines if not line.startswith("touch ")]
    block = (ROOT / "README.md").read_text().split("pip install -e '.[dev]' -c constraints.txt\n")[1].split("```")[0]
    assert lines[1:] == ["pip install -e '.[dev]' -c constraints.txt", *block.splitlines()] and "mypy" in lines


def test_what_is_installed_is_not_installed_again(tmp_path):
    (tmp_path / "env" / "bin").mkdir(parents=True)
    for name in ("bin/pip", ".installed", ".installed-dev"):
        (tmp_path / "env" / name).touch()
    assert "pip install" not in make("-n", "train", f"VENV={tmp_path}/env")
    assert "pip install" not in make("-n", "test", f"VENV={tmp_path}/env")
