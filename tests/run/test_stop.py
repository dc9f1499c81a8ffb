"""A signal, a hangup or the time limit ends a run after a step that can be saved."""

import os
import signal
import time
from types import SimpleNamespace

import pytest

from nanogpt import TrainConfig
from nanogpt.checkpoint import State
from nanogpt.run.agree import Peers
from nanogpt.run.stop import Interrupted, Interrupts

ALONE = Peers(SimpleNamespace(num_processes=1), 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_remembered_and_a_second_one_ends_at_once(number):
    mine = lambda *_: None  # noqa: E731
    before = signal.signal(signal.SIGUSR1, mine)
    try:
        with Interrupts(ALONE, 0) as interrupts:
            assert interrupts.due(0, 0) == (0, False, False)
            os.kill(os.getpid(), number)
            assert interrupts.due(0, 0) == (number, False, False)
            for any_kind in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                assert signal.getsignal(any_kind) == signal.SIG_DFL
    finally:
        assert signal.signal(signal.SIGUSR1, before) is mine  # the handlers are put back


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM])
def test_further_hangups_do_not_end_a_run(first):
    """The kernel and the shell both send one; systemd's SendSIGHUP sends one right after SIGTERM."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as without nohup
    try:
        with Interrupts(ALONE, 0) as interrupts:
            for number in (first, signal.SIGHUP, signal.SIGHUP):
                os.kill(os.getpid(), number)
            assert interrupts.due(0, 0) == (first, False, False)
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_under_nohup_a_hangup_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts(ALONE, 0) as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupts.due(0, 0) == (0, False, False)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_time_is_up_before_a_step_and_a_save_pass_the_limit(monkeypatch):
    clock = SimpleNamespace(now=0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    with Interrupts(ALONE, 2) as interrupts:  # 120 s
        clock.now = 60
        interrupts.begin()  # what came before the first step is not a step
        for clock.now, saving, is_up in ((61, 0, False), (81, 0, False), (82, 0, False), (99, 0, False), (99, 2, True)):
            assert interrupts.due(saving, 0) == (0, is_up, False)  # the longest step took 20 s


def test_saves_that_fail_too_often():
    with Interrupts(ALONE, 0) as interrupts:
        assert interrupts.due(0, failed_saves=2) == (0, False, False)
        assert interrupts.due(0, failed_saves=3) == (0, False, True)


def test_between_batches_a_signal_of_any_process_is_raised_on_all(monkeypatch):
    with Interrupts(ALONE, 0) as interrupts:
        interrupts.check()
        monkeypatch.setattr(ALONE, "largest", lambda *values: [max(value, signal.SIGTERM) for value in values])
        with pytest.raises(Interrupted) as interrupted:
            interrupts.check()
        assert interrupted.value.number == signal.SIGTERM


@pytest.mark.parametrize("saved, said", [([], "no step to save"), (["step-000000"], "step 0 is saved")])
def test_fine_tuning_that_is_stopped_at_step_0_has_saved_it(tmp_path, saved, said):
    for name in saved:
        (tmp_path / name).mkdir()
    stop = Interrupts(ALONE, 0).stopped(TrainConfig(), SimpleNamespace(out_dir=tmp_path), State(), signal.SIGTERM)
    assert said in stop.message and stop.code == 143
