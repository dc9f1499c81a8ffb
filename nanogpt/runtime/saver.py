"""Writes checkpoints in a thread while training goes on, one at a time.

The loop hands over a copy of the state in ordinary memory and takes the next step. What went wrong is told at the step
after. Where there is no memory for a copy, or no thread, the loop waits for the disk.
"""

import time
from collections.abc import Callable
from threading import Thread


class Saver:
    """On the main process; elsewhere nothing is ever handed over, and all methods return at once."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.step = 0  # of the last checkpoint handed over
        self.thread: Thread | None = None
        self.error: Exception | None = None
        self.unsaved: str | None = None  # what went wrong with the last checkpoint
        self.failed = 0  # saves in a row that went wrong
        self.seconds = 0.0  # that the last one took

    def save(self, step: int, write: Callable[[], object], background: bool) -> None:
        """Calls `write()`, which saves `step`. Waits for the save before it and, unless `background`, for this one."""
        self.wait()
        self.step, self.error = step, None

        def timed() -> None:
            start = time.perf_counter()
            write()
            self.seconds = time.perf_counter() - start

        self._start(timed)
        if not background:
            self.wait()

    def add(self, write: Callable[[], object]) -> None:
        """Calls `write()`, which adds something to the checkpoint handed over last, when it is saved; if it is."""
        self.check()
        if self.thread is not None or self.unsaved is None:
            self._start(write)

    def _start(self, write: Callable[[], object]) -> None:
        # not a daemon: however the run ends, Python waits for it
        self.thread = Thread(target=self._work, args=(write, self.thread), name="saver")
        try:
            self.thread.start()
        except RuntimeError as error:
            self.say(f"warning: training waits for the checkpoint of step {self.step}: {error}")
            self._work(write, None)

    def _work(self, write: Callable[[], object], before: Thread | None) -> None:
        if before is not None:
            before.join()
        try:
            if self.error is None:
                write()
        except Exception as error:  # whatever it is, it belongs to the loop, which is elsewhere
            self.error = error

    def wait(self) -> None:
        """Returns when nothing is being written any more."""
        if self.thread is not None:
            if self.thread.is_alive():
                self.thread.join()
            self.check()

    def check(self) -> None:
        """To be called after every step: tells once how a save ended, if one did."""
        if self.thread is None or self.thread.is_alive():
            return
        self.thread = None
        if self.error is None:
            self.failed, self.unsaved = 0, None
            return
        self.failed += 1
        expected = isinstance(self.error, OSError | ValueError)
        what = str(self.error) if expected else f"{type(self.error).__name__}: {self.error}"
        self.unsaved = f"step {self.step} could not be saved: {what}"
        self.say(f"warning: {self.unsaved}; earlier checkpoints are untouched, and training goes on")
