import os
import signal
import time
from types import SimpleNamespace

import pytest

from nanogpt.run.agree import Peers
from nanogpt.run.stop import LAUNCHED, Interrupted, Interrupts

ALONE = Peers(SimpleNamespace(num_processes=1), 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_remembered_and_a_second_one_of_any_kind_would_end_at_once(number):
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts(ALONE, 0, 3) as interrupts:
        assert interrupts.due(0, 0) == (0, False, False)
        os.kill(os.getpid(), number)
        assert interrupts.due(0, 0) == (number, False, False)
        for any_kind in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            assert signal.getsignal(any_kind) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_hangup_is_remembered_and_more_of_them_do_not_end_the_run():
    with Interrupts(ALONE, 0, 3) as interrupts:
        for _ in range(3):  # the kernel's and the shell's
            os.kill(os.getpid(), signal.SIGHUP)
        assert interrupts.due(0, 0) == (signal.SIGHUP, False, False)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert interrupts.why(signal.SIGHUP) == "the terminal was closed: stopped"


def test_a_hangup_after_another_signal_does_not_end_the_run():
    """systemd's SendSIGHUP sends one right after SIGTERM."""
    with Interrupts(ALONE, 0, 3) as interrupts:
        for number in (signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert interrupts.due(0, 0) == (signal.SIGTERM, False, False)


def test_under_nohup_a_hangup_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts(ALONE, 0, 3) as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupts.due(0, 0) == (0, False, False)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_time_is_up_before_a_step_and_a_save_would_pass_the_limit():
    with Interrupts(ALONE, 2 / 60, 3) as interrupts:  # 2 s
        time.sleep(0.1)
        assert interrupts.due(saving=1.0, failed_saves=0) == (0, False, False)
        assert interrupts.due(saving=1.9, failed_saves=0) == (0, True, False)


def test_what_came_before_the_first_step_is_not_taken_for_a_step():
    with Interrupts(ALONE, 2 / 60, 3) as interrupts:  # 2 s
        time.sleep(1)
        interrupts.begin()
        assert interrupts.due(saving=0.5, failed_saves=0) == (0, False, False)  # 1 + 0.5 s of 2
        assert interrupts.longest < 0.5


def test_saves_that_fail_too_often():
    with Interrupts(ALONE, 0, 3) as interrupts:
        assert interrupts.due(0, failed_saves=2) == (0, False, False)
        assert interrupts.due(0, failed_saves=3) == (0, False, True)


def test_the_longest_step_so_far_is_kept_in_reserve(monkeypatch):
    now = iter([0, 0, 0, 50, 52, 70, 71])  # seconds: made, entered, begun, then the ends of steps
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    with Interrupts(ALONE, 2, 3) as interrupts:  # 120 s
        interrupts.begin()
        assert [interrupts.due(0, 0)[1] for _ in range(4)] == [False, False, False, True]  # 71 + 50 s


def test_handlers_are_put_back():
    mine = lambda *_: None  # noqa: E731
    before = signal.signal(signal.SIGUSR1, mine)
    with Interrupts(ALONE, 0, 3):
        assert signal.getsignal(signal.SIGUSR1) != mine
    assert signal.signal(signal.SIGUSR1, before) is mine


def test_a_launcher_that_died_stops_the_run_as_a_hangup(monkeypatch):
    parent = os.getppid()
    for name, noticed in (("TORCHELASTIC_RUN_ID", True), ("ACCELERATE_MIXED_PRECISION", True), ("NOHUP", False)):
        monkeypatch.setattr(os, "getppid", lambda: parent)
        for other in LAUNCHED:
            monkeypatch.delenv(other, raising=False)
        monkeypatch.setenv(name, "x")
        with Interrupts(ALONE, 0, 3) as interrupts:
            interrupts.check()
            assert interrupts.due(0, 0) == (0, False, False)
            monkeypatch.setattr(os, "getppid", lambda: -1)
            if not noticed:  # started from a shell, which may end
                interrupts.check()
                continue
            with pytest.raises(Interrupted) as interrupted:
                interrupts.check()
            assert interrupted.value.number == signal.SIGHUP
            assert interrupts.due(0, 0) == (signal.SIGHUP, False, False)
            assert interrupts.why(signal.SIGHUP) == "the launcher died: stopped"


def test_between_batches_a_signal_of_any_process_is_raised_on_all(monkeypatch):
    with Interrupts(ALONE, 0, 3) as interrupts:
        interrupts.check()
        monkeypatch.setattr(ALONE, "largest", lambda *values: [max(value, signal.SIGTERM) for value in values])
        with pytest.raises(Interrupted) as interrupted:
            interrupts.check()
        assert interrupted.value.number == signal.SIGTERM
