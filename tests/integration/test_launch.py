"""`accelerate launch` itself: the README's command, mistakes, signals, and what a recipe needs to be imported.

Each launch takes seconds, so there are few; what processes compute is tested in test_processes.py.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys

import psutil
import pytest
from helpers import curve
from test_interruptions import LONG, saved, wait_for
from test_processes import RUNS
from zygote import PATIENCE, ROOT, clean_environment

RECIPE, CLASSIC = ROOT / "recipes" / "shakespeare.py", ROOT / "recipes" / "shakespeare_nanogpt.py"
SMALL = "--n_layer=1 --n_head=2 --n_embd=16 --n_inner=32 --block_size=16 --batch_size=4".split()
# the way to start two processes on a CPU (accelerate_configs/README.md), with ACCELERATE_USE_CPU=true
TWO = "--multi_gpu --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0 --num_processes 2"
TWO = TWO.split()
ON_CPU = {"ACCELERATE_USE_CPU": "true"}
MISTAKE = "error: unknown flag --n_leyer: did you mean --n_layer? --help lists them all"


@pytest.fixture
def start(tmp_path, text):
    """Starts a program in a directory like a new user's, with a text of the right name; ends it after the test."""
    (tmp_path / "data" / "shakespeare_char").mkdir(parents=True)
    (tmp_path / "data" / "shakespeare_char" / "input.txt").write_text(text)
    started = []

    def start(*command, **env: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        env = clean_environment(tmp_path) | env
        started.append(subprocess.Popen(list(map(str, command)), cwd=tmp_path, env=env, **pipes))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(psutil.Error):
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()


@pytest.fixture
def launch(start):
    """Launches a program and waits for its end: (exit code, stdout, stderr)."""

    def launch(*arguments, **env: str) -> tuple[int, str, str]:
        process = start("accelerate", "launch", *arguments, **env)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err

    return launch


def test_a_launch_prepares_trains_and_samples_at_full_speed_without_a_warning(launch):
    code, out, err = launch(RECIPE, *SMALL, "--max_iters=20", "--eval_interval=10", "--report_to=none")
    assert code == 0, err
    assert "input.txt" in out
    assert f"1 process with {len(os.sched_getaffinity(0))} threads, " in out  # the launcher asks for one
    assert re.findall(r"step +(\d+)  validation loss \d\.\d{4}", out) == ["0", "10", "20"]
    assert "Warning" not in err and err.partition("run `accelerate config`.\n")[2] == "", err


def test_a_mistake_is_one_line_before_what_the_launcher_says(launch):
    code, _, err = launch(CLASSIC, "--n_leyer=3")
    assert code == 1 and f"\n{MISTAKE}\n" in f"\n{err}"


@pytest.fixture
def running(start, tmp_path, data):
    """Launches two processes and returns the launcher, once they have begun to train."""

    def running(**env: str):
        run = {"out_dir": "out/a", "data": str(data), **LONG}
        launcher = start("accelerate", "launch", *TWO, RUNS, json.dumps([run]), **ON_CPU, **env)
        wait_for(lambda: curve(tmp_path / "out/a", "train_loss") or launcher.poll() is not None)
        return launcher

    return running


def test_a_signal_of_slurms_to_the_launcher_reaches_both(running, tmp_path):
    """With the variable that accelerate_configs/README.md sets under Slurm."""
    launcher = running(PET_SIGNALS_TO_HANDLE="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    launcher.send_signal(signal.SIGUSR1)
    out, err = launcher.communicate(timeout=PATIENCE)
    codes = [int(code) for code in re.findall(r"exitcode +: (-?\d+)", err)]
    assert codes in ([], [138, 138]), err  # a launcher that the signal ends first tells nothing
    assert saved(tmp_path / "out/a", out)


HIDDEN = "datasets gradio markdown_it matplotlib onnx pandas pyarrow tensorboard trackio wandb"
BARE = f"""
import runpy, sys
sys.modules |= dict.fromkeys("{HIDDEN}".split())  # importing them raises ImportError
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_recipe_runs_from_a_checkout_with_the_packages_of_a_stock_image(start):
    """With what torch, accelerate, transformers, tiktoken and numpy need; other packages are hidden from it."""
    flags = "--max_iters=2 --eval_interval=2 --eval_iters=1 --sample_tokens=2 --device=cpu --report_to=wandb".split()
    process = start(sys.executable, "-c", BARE, RECIPE, *SMALL, *flags)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "2 steps in " in out and "warning: wandb is not installed" in out
    assert err == ""
