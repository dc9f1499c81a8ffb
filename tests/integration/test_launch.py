"""`accelerate launch` itself: the README's command, mistakes and signals.

Each launch takes seconds, so there are few; what processes compute is tested in test_processes.py.
"""

import contextlib
import json
import re
import signal
import subprocess

import psutil
import pytest
from helpers import curve
from test_interruptions import LONG, saved, wait_for
from test_processes import RUNS
from zygote import PATIENCE, ROOT, clean_environment

from nanogpt.run.device import default_threads

RECIPE = ROOT / "recipes" / "shakespeare.py"
SMALL = "--n_layer=1 --n_head=2 --n_embd=16 --n_inner=32 --block_size=16 --batch_size=4".split()
# the way to start two processes on a CPU (accelerate_configs/README.md), with ACCELERATE_USE_CPU=true
TWO = "--multi_gpu --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0 --num_processes 2"


@pytest.fixture
def launch(tmp_path, text):
    """Launches a program in a directory like a new user's, with a text of the right name; ends it after the test."""
    (tmp_path / "data" / "shakespeare_char").mkdir(parents=True)
    (tmp_path / "data" / "shakespeare_char" / "input.txt").write_text(text)
    launched = []

    def launch(*words, **env: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command, env = ["accelerate", "launch", *map(str, words)], clean_environment(tmp_path) | env
        launched.append(subprocess.Popen(command, cwd=tmp_path, env=env, **pipes))
        return launched[-1]

    yield launch
    for process in launched:
        with contextlib.suppress(psutil.Error):
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()


def test_a_launch_prepares_trains_and_samples_at_full_speed_without_a_warning(launch, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    process = launch(RECIPE, *SMALL, "--max_iters=20", "--eval_interval=10", "--report_to=none")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "input.txt" in out
    assert f"threads: {default_threads(1)}\n" in out  # the launcher asks for one
    assert re.findall(r"step +(\d+)  validation loss \d\.\d{4}", out) == ["0", "10", "20"]
    assert "Warning" not in err and err.partition("run `accelerate config`.\n")[2] == "", err


def test_a_mistake_is_one_line_before_what_the_launcher_says(launch):
    process = launch(ROOT / "recipes" / "shakespeare_nanogpt.py", "--n_leyer=3")
    err = process.communicate(timeout=PATIENCE)[1]
    mistake = "error: unknown flag --n_leyer: did you mean --n_layer? --help lists them all"
    assert process.returncode == 1 and mistake in err.splitlines()


def test_a_signal_of_slurms_to_the_launcher_reaches_both(launch, tmp_path, data):
    """slurm.sh sends SIGTERM, which the launcher of every torch passes on."""
    runs = json.dumps([{"out_dir": "out/a", "data": str(data), **LONG}])
    launcher = launch(*TWO.split(), RUNS, runs, ACCELERATE_USE_CPU="true")
    wait_for(lambda: curve(tmp_path / "out/a", "train_loss") or launcher.poll() is not None)
    launcher.send_signal(signal.SIGTERM)
    out, err = launcher.communicate(timeout=PATIENCE)
    codes = [int(code) for code in re.findall(r"exitcode +: (-?\d+)", err)]
    assert codes in ([], [143, 143]), err  # a launcher that the signal ends first tells nothing
    assert saved(tmp_path / "out/a", out)
