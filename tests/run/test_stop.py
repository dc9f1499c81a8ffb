"""A signal, a hangup or the time limit ends a run after a step that can be saved."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanogpt import TrainConfig
from nanogpt.checkpoint import State
from nanogpt.run.agree import Peers
from nanogpt.run.stop import Interrupts, Stop

ALONE = Peers(SimpleNamespace(num_processes=1), 1)


def code(interrupts: Interrupts, saving: float = 0, failed: int = 0, bad: int = 0, scaler=None) -> int | None:
    """The exit code of a run that ends after a step; None if it goes on."""
    tally = SimpleNamespace(bad_in_a_row=bad, lr=0.1)
    accelerator = SimpleNamespace(scaler=scaler, mixed_precision="no")
    parts = SimpleNamespace(accelerator=accelerator, tally=tally, out_dir=Path("nowhere"))
    interrupts.save_seconds, interrupts.failed_saves = saving, failed
    interrupts.save_error = "step 1 could not be saved"
    try:
        interrupts.check_step(TrainConfig(log_interval=1), parts, State(step=1))
    except Stop as stop:
        return stop.code


@contextmanager
def handled_by(number: int, handler):
    before = signal.signal(number, handler)
    try:
        yield
        assert signal.getsignal(number) == handler  # it is put back
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_remembered_and_a_second_one_ends_at_once(number):
    with handled_by(signal.SIGUSR1, lambda *_: None), Interrupts(ALONE, 0) as interrupts:
        assert code(interrupts) is None
        os.kill(os.getpid(), number)
        assert code(interrupts) == 128 + number
        for any_kind in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            assert signal.getsignal(any_kind) == signal.SIG_DFL


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM])
def test_further_hangups_do_not_end_a_run(first):
    """The kernel and the shell both send one; systemd's SendSIGHUP sends one right after SIGTERM."""
    with handled_by(signal.SIGHUP, signal.SIG_DFL), Interrupts(ALONE, 0) as interrupts:  # as without nohup
        for number in (first, signal.SIGHUP, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert code(interrupts) == 128 + first


def test_under_nohup_a_hangup_is_ignored():
    with handled_by(signal.SIGHUP, signal.SIG_IGN), Interrupts(ALONE, 0) as interrupts:
        os.kill(os.getpid(), signal.SIGHUP)
        assert code(interrupts) is None


def test_the_time_is_up_before_a_step_and_a_save_pass_the_limit(monkeypatch):
    clock = SimpleNamespace(now=0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    with Interrupts(ALONE, 2) as interrupts:  # 120 s
        clock.now = 60
        interrupts.begin()  # what came before the first step is not a step
        for clock.now in (61, 81, 82, 99):
            assert code(interrupts) is None
        assert code(interrupts, saving=2) == 0  # the longest step took 20 s


def test_the_time_limit_ends_an_evaluation_before_a_save_passes_it(monkeypatch):
    clock = SimpleNamespace(now=0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    with Interrupts(ALONE, 2) as interrupts:  # 120 s
        assert code(interrupts, saving=30) is None
        clock.now = 89
        interrupts.check()
        clock.now = 91
        with pytest.raises(Stop) as stop:
            interrupts.check()
    assert stop.value.code == 0


def test_a_run_in_a_thread_leaves_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(Interrupts(ALONE, 0).__enter__).result().before == {}
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("scaler, most", [(None, 5), ("of fp16", 21)])
def test_so_many_bad_steps_in_a_row_end_a_run(scaler, most):
    with Interrupts(ALONE, 0) as interrupts:
        assert code(interrupts, bad=most - 1, scaler=scaler) is None
        assert code(interrupts, bad=most, scaler=scaler) == 1


def test_saves_that_fail_too_often():
    with Interrupts(ALONE, 0) as interrupts:
        assert code(interrupts, failed=2) is None and code(interrupts, failed=3) == 1


def test_between_batches_a_signal_of_any_process_is_raised_on_all(monkeypatch):
    with Interrupts(ALONE, 0) as interrupts:
        interrupts.check()
        monkeypatch.setattr(ALONE, "all_max", lambda *values: [max(values[0], signal.SIGTERM), *values[1:]])
        with pytest.raises(Stop) as stop:
            interrupts.check()
        assert stop.value.code == 128 + signal.SIGTERM


def test_a_failing_save_is_a_warning_and_several_in_a_row_end_the_run(caplog):
    interrupts = Interrupts(ALONE, 0)
    for error, said in ((OSError("no space"), "no space"), (KeyError("x"), "KeyError('x')")):
        with interrupts.saving(7):
            raise error
        assert interrupts.save_error == f"step 7 could not be saved: {said}" and interrupts.save_failed()
    assert (interrupts.saved_step, interrupts.failed_saves) == (7, 2)
    with interrupts.saving(8):
        pass
    assert (interrupts.saved_step, interrupts.failed_saves) == (8, 0) and not interrupts.save_failed()
    with pytest.raises(KeyboardInterrupt), interrupts.saving(9):
        raise KeyboardInterrupt
