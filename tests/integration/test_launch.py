"""`accelerate launch` itself: the README's commands, mistakes, signals, and what a recipe needs to be imported.

Each launch takes seconds, so there are few; what processes compute is tested in test_processes.py.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_interruptions import LONG, saved
from test_processes import RUNS, curve
from zygote import PATIENCE, ROOT, clean_environment

RECIPE, CLASSIC = ROOT / "recipes" / "shakespeare.py", ROOT / "recipes" / "shakespeare_nanogpt.py"
SMALL = "--n_layer=1 --n_head=2 --n_embd=16 --n_inner=32 --block_size=16 --batch_size=4 --report_to=none".split()
# the way to start two processes on a CPU (accelerate_configs/README.md), with ACCELERATE_USE_CPU=true
TWO = "--multi_gpu --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0 --num_processes 2"
TWO = TWO.split()
ON_CPU = {"ACCELERATE_USE_CPU": "true"}
MISTAKE = "error: unknown flag --n_leyer: did you mean --n_layer? --help lists them all"


@pytest.fixture
def home(tmp_path, text) -> Path:
    """A directory like a new user's, with a text of the right name so that nothing is downloaded."""
    (tmp_path / "data" / "shakespeare_char").mkdir(parents=True)
    (tmp_path / "data" / "shakespeare_char" / "input.txt").write_text(text)
    return tmp_path


def start(home: Path, *command, env=None) -> subprocess.Popen:
    env, pipes = clean_environment(home) | (env or {}), {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(list(map(str, command)), cwd=home, env=env, text=True, **pipes)


def launch(home: Path, *arguments, env=None) -> subprocess.CompletedProcess:
    process = start(home, "accelerate", "launch", *arguments, env=env)
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def test_a_launch_prepares_trains_and_samples_at_full_speed_without_a_warning(home, cli):
    done = launch(home, RECIPE, *SMALL, "--max_iters=20", "--eval_interval=10")
    assert done.returncode == 0, done.stderr
    cores = len(os.sched_getaffinity(0))
    assert "input.txt, which is already here" in done.stdout
    assert f"1 process with {cores} threads, " in done.stdout  # the launcher asks for one
    assert re.findall(r"step +(\d+)  validation loss \d\.\d{4}", done.stdout) == ["0", "10", "20"]
    _, _, rest = done.stderr.partition("run `accelerate config`.\n")
    assert "Warning" not in done.stderr and rest == "", done.stderr

    sampled = cli("sample", "out/shakespeare", "--prompt", "FIRST:", "--max_new_tokens", "20")
    assert sampled.returncode == 0 and sampled.stdout.startswith("FIRST:") and sampled.stderr == ""
    final = float(re.findall(r"best validation loss (\d\.\d{4})", done.stdout)[0])
    again = float(re.findall(r"loss (\d\.\d{4}) nats per token", cli("eval", "out/shakespeare").stdout)[0])
    assert again == pytest.approx(final, abs=2e-3)  # this one in fp32, the run perhaps in bf16


def test_two_processes_are_what_launch_check_says_and_meet_at_the_launchers_port(home):
    done = launch(home, *TWO, "-m", "nanogpt", "launch-check", "--precision", "fp32", env=ON_CPU)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("2 processes by gloo, a copy of the model on each; fp32, torch ")
    assert [line.split(" on ")[0] for line in lines[1:3]] == ["process 0: cpu:0 (cpu)", "process 1: cpu:0 (cpu)"]


def test_a_mistake_is_one_line_and_ends_a_launcher_without_its_traceback(home):
    done = launch(home, CLASSIC, "--n_leyer=3")
    assert done.returncode == -signal.SIGTERM
    assert done.stderr.endswith(f"{MISTAKE}\n") and "Traceback" not in done.stderr


@pytest.mark.nightly
def test_a_mistake_of_several_processes_is_the_last_that_the_launcher_says(home):
    """Elastic launchers print a report of their own, whose last line repeats the mistake."""
    done = launch(home, *TWO, CLASSIC, "--n_leyer=3", env=ON_CPU)
    assert done.returncode == 1
    assert f"\n{done.stderr}".count(f"\n{MISTAKE}\n") == 1  # by the main process alone
    assert done.stderr.splitlines()[-2].strip() == f"traceback : {MISTAKE}"


@pytest.mark.nightly
@pytest.mark.parametrize(
    "flags, message",
    [
        (TWO, "started 2 processes, but each trains on its own"),
        (["--cpu", *TWO[1:]], "the launcher was asked for several processes, but started one"),
    ],
    ids=["two replicas", "one process"],
)
def test_a_launch_that_became_something_else_stops_with_the_right_command(home, flags, message):
    done = launch(home, *flags, CLASSIC, *SMALL, "--max_iters=2", "--gradient_accumulation_steps=2")
    assert done.returncode != 0 and message in done.stderr
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes" in done.stderr
    assert not (home / "out").exists()


@pytest.mark.nightly
def test_the_cpu_configuration_launches(home):
    config = ROOT / "accelerate_configs" / "cpu.yaml"
    done = launch(home, "--config_file", config, CLASSIC, *SMALL, "--max_iters=2")
    assert done.returncode == 0, done.stderr
    assert "device  cpu, 1 process" in done.stdout


@contextlib.contextmanager
def running(home: Path, data: Path, env=None):
    """A launch of two processes that has begun to train; yields the launcher and its workers."""
    run = {"out_dir": "out/a", "data": str(data), **LONG}
    launcher, workers = start(home, "accelerate", "launch", *TWO, RUNS, json.dumps([run]), env=ON_CPU | (env or {})), []
    try:
        end = time.monotonic() + PATIENCE
        while not curve(home, "a", "train_loss"):
            assert launcher.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        workers = psutil.Process(launcher.pid).children(recursive=True)
        yield launcher, workers
    finally:
        for process in [*workers, launcher]:
            with contextlib.suppress(psutil.Error):
                process.kill()


def test_a_signal_of_slurms_to_the_launcher_reaches_both(home, data):
    """With the variable that accelerate_configs/README.md sets under Slurm."""
    with running(home, data, {"PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"}) as (launcher, _):
        launcher.send_signal(signal.SIGUSR1)
        out, err = launcher.communicate(timeout=PATIENCE)
    codes = [int(code) for code in re.findall(r"exitcode +: (-?\d+)", err)]
    assert codes in ([], [138, 138]), err  # the launcher itself ended by the signal tells nothing
    assert saved(home / "out" / "a", out)


def test_a_launcher_that_is_killed_ends_its_processes_and_the_run_goes_on_later(home, data):
    """By SIGKILL, so that the launcher can tell its processes nothing."""
    with running(home, data) as (launcher, workers):
        launcher.kill()
        _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
        assert alive == []
        out, _ = launcher.communicate(timeout=PATIENCE)
    assert "the launcher died: stopped: step " in out and saved(home / "out" / "a", out)


BARE = """
import contextlib, importlib.metadata as metadata, re, runpy, sys

def normal(name):
    return re.sub("[-_.]+", "-", name).lower()

wanted, there = ["torch", "accelerate", "transformers", "tiktoken", "numpy"], {"nanogpt"}
while wanted:  # and what they need
    name = normal(wanted.pop())
    if name not in there:
        there.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError):
            needs = [line for line in metadata.requires(name) or [] if "extra ==" not in line]
            wanted += [re.match(r"[\\w.-]+", line)[0] for line in needs]
found = metadata.packages_distributions().items()
hidden = {module for module, names in found if not there & {normal(name) for name in names}}
assert {"matplotlib", "pyarrow", "trackio", "wandb", "datasets"} <= hidden

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *args):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, *args)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_recipe_runs_from_a_checkout_with_the_packages_of_a_stock_image(home):
    """torch, accelerate, transformers, tiktoken, numpy and what they need; all else is hidden from the process."""
    flags = "--max_iters=2 --eval_interval=2 --eval_iters=1 --sample_tokens=2 --device=cpu --report_to=wandb".split()
    process = start(home, sys.executable, "-c", BARE, RECIPE, *SMALL[:-1], *flags)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "2 steps in " in out and "warning: wandb is not installed" in out
    assert err == ""
