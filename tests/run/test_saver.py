import threading
import time

import pytest

from nanogpt.run.saver import Saver


def test_the_loop_goes_on_while_a_checkpoint_is_written():
    said, go, done = [], threading.Event(), []
    saver = Saver(said.append)
    saver.save(1, lambda: (go.wait(10), done.append(1)), background=True)
    saver.check()
    assert not done
    go.set()
    saver.wait()
    assert done == [1] and said == [] and saver.unsaved is None


def test_a_save_waits_for_the_one_before_and_in_the_foreground_for_itself():
    order = []
    saver = Saver(print)
    saver.save(1, lambda: (time.sleep(0.3), order.append(1)), background=True)
    saver.save(2, lambda: order.append(2), background=False)
    assert order == [1, 2]
    assert saver.seconds < 0.3


def test_a_failure_is_told_at_the_next_step_and_once():
    said = []
    saver = Saver(said.append)

    def full():
        raise OSError(28, "No space left on device")

    saver.save(5, full, background=True)
    while saver.thread is not None:
        saver.check()
    saver.check()
    assert len(said) == 1
    assert said[0].startswith("warning: step 5 could not be saved: [Errno 28] No space left on device; earlier")
    assert saver.failed == 1
    saver.save(6, full, background=False)
    assert saver.failed == 2 and saver.unsaved.startswith("step 6")
    saver.save(7, lambda: None, background=False)
    assert saver.failed == 0 and saver.unsaved is None


def test_whatever_goes_wrong_is_told_and_never_lost():
    said = []
    saver = Saver(said.append)
    saver.save(5, lambda: {}["nothing"], background=False)
    assert "step 5 could not be saved: KeyError: 'nothing'" in said[0]


def test_without_a_thread_it_saves_while_training_waits(monkeypatch):
    said, done = [], []
    monkeypatch.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no new thread")))
    saver = Saver(said.append)
    saver.save(5, lambda: done.append("saved"), background=True)
    saver.add(lambda: done.append("added"))
    saver.wait()
    assert done == ["saved", "added"] and saver.failed == 0 and saver.unsaved is None
    assert said[0] == "warning: training waits for the checkpoint of step 5: no new thread"


def test_what_is_added_comes_after_the_save_without_waiting_for_it():
    order, go, saver = [], threading.Event(), Saver(print)
    saver.save(1, lambda: (go.wait(10), order.append("saved")), background=True)
    saver.add(lambda: order.append("added"))
    assert order == []
    go.set()
    saver.wait()
    saver.add(lambda: order.append("added later"))
    saver.wait()
    assert order == ["saved", "added", "added later"]


@pytest.mark.parametrize("told_before", [True, False])
def test_nothing_is_added_to_a_checkpoint_that_could_not_be_saved(told_before):
    said, added, go = [], [], threading.Event()

    def full():
        go.wait(10)
        raise OSError(28, "No space left on device")

    saver = Saver(said.append)
    if told_before:
        go.set()
    saver.save(5, full, background=not told_before)
    saver.add(lambda: added.append(1))
    go.set()
    saver.wait()
    assert not added and len(said) == 1 and saver.failed == 1 and saver.unsaved.startswith("step 5")
    saver.save(6, lambda: None, background=True)
    saver.add(lambda: added.append(2))
    saver.wait()
    assert added == [2] and saver.unsaved is None
