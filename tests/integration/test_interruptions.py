"""Of two processes, one gets a signal, dies, hangs, or meets what the other does not: both must heed it or end.

That an end comes at once shows in that it comes at all: the timeout of these runs is longer than the test's patience.
"""

import contextlib
import json
import re
import signal
import time
from pathlib import Path

import pytest
from helpers import curve
from test_processes import RUNS
from zygote import PATIENCE

from nanogpt import checkpoint
from nanogpt.run import metrics

LONG = {"max_iters": 100_000, "eval_interval": 100_000, "lr_decay_iters": 100_000, "timeout": 2 * PATIENCE}


def wait_for(condition, pause: float = 0.02) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(pause)


@pytest.fixture
def start(zygote, tmp_path, data):
    """Starts runs on two processes, in a directory with data."""
    return lambda *runs: zygote.ranks(2, RUNS, json.dumps(runs), cwd=tmp_path)


@pytest.fixture
def running(start, tmp_path):
    """Starts a run that would take hours, on two processes; returns them once it has trained its first steps."""
    programs = []

    def running(**settings) -> list:
        programs.extend(start({"out_dir": "out/a", **LONG, **settings}))
        wait_for(lambda: curve(tmp_path / "out/a", "train_loss") or programs[0].poll() is not None)
        return programs

    yield running
    for program in programs:
        with contextlib.suppress(ProcessLookupError):
            program.send_signal(signal.SIGKILL)
        program.wait()


def saved(out_dir: Path, printed: str) -> bool:
    """Whether the step that a run says it has saved is there, whole."""
    stopped = int(re.search(r"stopped: step (\d+) is saved; to resume, .*--resume=auto", printed)[1])
    last = checkpoint.find(out_dir, "last")
    return last.name == f"step-{stopped:06d}" and checkpoint.find_damage(last) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_one_process_saves_and_ends_both_with_its_code(running, tmp_path, number):
    programs = running()
    programs[1].send_signal(number)
    done = [program.wait() for program in programs]
    assert [each.returncode for each in done] == [128 + number] * 2, done[0].stderr
    assert saved(tmp_path / "out/a", done[0].stdout)


def test_a_signal_to_one_process_ends_an_evaluation_on_both(start, tmp_path):
    programs = start({"out_dir": "out/ended", "max_iters": 4, "eval_interval": 2, "terminate": 2})
    assert [program.wait().returncode for program in programs] == [143, 143]
    last = checkpoint.find(tmp_path / "out/ended", "last")
    assert last.name == "step-000002" and checkpoint.read_state(last).evaluated_step == 0


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_at_once_with_a_clear_line(running, victim):
    programs = running()
    programs[victim].send_signal(signal.SIGKILL)
    done = programs[1 - victim].wait()
    expected = f"error: process {1 - victim} of 2 stops: another process has died, or has not answered"
    assert done.returncode == 1 and expected in done.stderr


def test_a_process_that_hangs_ends_the_run_within_the_timeout(running):
    programs = running(timeout=2)
    programs[1].send_signal(signal.SIGSTOP)
    done = programs[0].wait()
    expected = "error: process 0 of 2 stops: another process has died, or has not answered for 2 s (--timeout)"
    assert done.returncode == 1 and expected in done.stderr


def test_both_heed_what_one_process_meets(start, tmp_path):
    """Both skip a step for a loss that is not finite, and five in a row end both."""
    six = {"out_dir": "out/once", "max_iters": 6, "eval_interval": 6, "poison": [3]}
    done = [p.wait() for p in start(six, {"out_dir": "out/often", **LONG, "poison": [3, 4, 5, 6, 7]})]
    assert [each.returncode for each in done] == [1, 1]
    lines = [line for line in metrics.read(tmp_path / "out/once/metrics.jsonl") if "lr" in line]
    assert [line["skipped_steps"] for line in lines] == [0, 0, 0, 1, 1, 1]
    assert [line["step"] for line in lines if "train_loss" in line] == [1, 2, 3, 5, 6]
    message = r"error: no finite gradient in the last 5 steps up to step 8, at "
    assert [len(re.findall(message, each.stderr)) for each in done] == [1, 0]


def test_what_the_main_process_finds_wrong_ends_both(start):
    """transformers has no class for RMSNorm with learned positions, which only the main process looks up."""
    programs = start({"out_dir": "out/odd", "require_exportable": True, "model": {"norm": "rmsnorm"}, **LONG})
    assert [program.wait().returncode for program in programs] == [2, 2]
