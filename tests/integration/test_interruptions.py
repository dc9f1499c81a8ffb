"""Two processes, really launched, of which one gets a signal, dies, hangs, or sees a loss that is not a number."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_processes import RUNS, curve, start, train

from data_prep import writer
from nanogpt import checkpoint
from nanogpt.run import metrics

LONG = {"max_iters": 100_000, "eval_interval": 100_000, "lr_decay_iters": 100_000}


@pytest.fixture
def home(tmp_path, text) -> Path:
    writer.write(tmp_path / "data", text, "char", 0.1, "made up")
    return tmp_path


@contextlib.contextmanager
def running(home: Path, **settings):
    """A launch of two processes that has begun to train; yields it and its workers by rank."""
    launcher = start(home, 2, RUNS, json.dumps([{"out_dir": "out/a", **LONG, **settings}]))
    workers = {}
    try:
        for _ in range(600):
            if curve(home, "a", "train_loss"):
                break
            time.sleep(0.1)
        for worker in psutil.Process(launcher.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                workers[worker.environ().get("RANK")] = worker
        yield launcher, [workers["0"], workers["1"]]
    finally:
        for process in [*workers.values(), launcher]:
            with contextlib.suppress(psutil.Error):
                process.kill()


def end(launcher: subprocess.Popen) -> tuple[str, str, list[int]]:
    """What a launch printed, and the exit codes that the launcher tells of its workers."""
    out, err = launcher.communicate(timeout=60)
    return out, err, [int(code) for code in re.findall(r"exitcode +: (-?\d+)", err)]


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_one_process_saves_and_ends_both_with_its_code(home, number, code):
    with running(home) as (launcher, workers):
        workers[1].send_signal(number)
        out, err, codes = end(launcher)
    assert codes == [code, code], err
    stopped = int(re.search(r"stopped: step (\d+) is saved; to resume: accelerate launch .*--resume=auto", out)[1])
    last = checkpoint.find(home / "out" / "a", ("last",))
    assert last.name == f"step-{stopped:06d}" and checkpoint.check(last) is None


@pytest.mark.slow
def test_a_signal_of_slurms_to_the_launcher_reaches_both(home, monkeypatch):
    """With the variable that accelerate_configs/README.md sets under Slurm."""
    monkeypatch.setenv("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    with running(home) as (launcher, _):
        launcher.send_signal(signal.SIGUSR1)
        out, err, codes = end(launcher)
    assert codes in ([], [138, 138]), err  # the launcher itself ended by the signal tells nothing
    assert "stopped: step" in out
    assert checkpoint.check(checkpoint.find(home / "out" / "a", ("last",))) is None


@pytest.mark.slow
def test_a_terminal_that_is_closed_saves_the_run(home):
    command = [sys.executable, RUNS, json.dumps([{"out_dir": "out/a", **LONG}])]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(home)
        os.execv(sys.executable, [str(word) for word in command])
    try:
        for _ in range(600):
            if curve(home, "a", "train_loss"):
                break
            if select.select([terminal], [], [], 0.1)[0]:
                os.read(terminal, 10_000)
        os.close(terminal)
        for _ in range(300):
            if os.waitpid(pid, os.WNOHANG)[0]:
                break
            time.sleep(0.1)
        else:
            pytest.fail("it did not end")
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    last = checkpoint.find(home / "out" / "a", ("last",))
    assert last.name > "step-000000" and checkpoint.check(last) is None
    assert json.loads((home / "out" / "a" / "result.json").read_text())["reason"] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_at_once_with_a_clear_line(home, victim):
    with running(home, timeout=60) as (launcher, workers):
        begin = time.monotonic()
        workers[victim].kill()
        _, err, _ = end(launcher)
        assert time.monotonic() - begin < 20
    expected = f"error: process {1 - victim} of 2 stops: another process of the run has died; --resume=auto resumes"
    assert expected in err
    assert launcher.returncode != 0


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run_within_the_timeout(home):
    with running(home, timeout=4) as (launcher, workers):
        begin = time.monotonic()
        workers[1].suspend()
        assert workers[0].wait(timeout=15) is None or not workers[0].is_running()
        assert time.monotonic() - begin < 12
        workers[1].kill()  # what the launcher does after 30 s
        _, err, _ = end(launcher)
    assert "error: process 0 of 2 stops: another process of the run has not answered for 4 s (--timeout)" in err


@pytest.mark.slow
def test_what_one_process_meets_alone_both_heed(home):
    """A loss that is not finite: both skip the step, and five in a row end both. Too little memory: both halve."""
    runs = [{"out_dir": "out/whole", "max_iters": 6, "eval_interval": 6}]
    runs += [{"out_dir": "out/narrow", "max_iters": 6, "eval_interval": 6, "room": 2}]
    runs += [{"out_dir": "out/once", "max_iters": 6, "eval_interval": 6, "poison": [3]}]
    runs += [{"out_dir": "out/often", "max_iters": 50, "eval_interval": 50, "poison": [3, 4, 5, 6, 7]}]
    begin = time.monotonic()
    out, err = train(home, 2, *runs, code=1)
    assert time.monotonic() - begin < 60
    assert [int(code) for code in re.findall(r"exitcode +: (-?\d+)", err)] == [1, 1]
    skipped = [line["skipped_steps"] for line in metrics.read(home / "out/once/metrics.jsonl") if "lr" in line]
    assert skipped == [0, 0, 0, 1, 1, 1]
    assert curve(home, "whole", "val_loss").keys() == {0, 6} == curve(home, "narrow", "val_loss").keys()
    assert "out of memory with batch_size=4: now --batch_size=2 --gradient_accumulation_steps=8" in out
    assert checkpoint.load_configs(home / "out" / "narrow" / "last")[1].batch_size == 2
    assert list(curve(home, "once", "train_loss")) == [1, 2, 3, 5, 6]
    message = r"error: no finite gradient in the last 5 steps up to step 8, at .*; the last finite gradient norm was \d"
    assert len(re.findall(message, err)) == 1


@pytest.mark.slow
def test_a_launcher_that_is_killed_ends_its_processes_and_the_run_goes_on_later(home):
    """By SIGKILL, so that the launcher can tell its processes nothing."""
    with running(home) as (launcher, workers):
        launcher.kill()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert alive == []
        out, _ = launcher.communicate(timeout=10)
    stopped = int(re.search(r"the launcher died: stopped: step (\d+) is saved; to resume: accelerate launch", out)[1])
    last = checkpoint.find(home / "out" / "a", ("last",))
    assert last.name == f"step-{stopped:06d}" and checkpoint.check(last) is None
