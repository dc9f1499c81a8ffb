"""Writes checkpoints in a background thread, one at a time.

The loop passes a copy of the state and continues with the next step, after which a failed save is reported. If there is
no memory for a copy, or no thread can be started, the loop waits for the disk.
"""

import time
from collections.abc import Callable
from threading import Thread


class Saver:
    """Used on the main process; on the others nothing is passed to it, and all methods return immediately."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.step = 0  # of the last checkpoint passed to save
        self.thread: Thread | None = None
        self.error: Exception | None = None
        self.unsaved: str | None = None  # what went wrong with the last checkpoint
        self.failed = 0  # saves in a row that failed
        self.seconds = 0.0  # duration of the last save

    def save(self, step: int, write: Callable[[], object], background: bool) -> None:
        """Calls `write()`, which saves `step`. Waits for the previous save and, unless `background`, for this one."""
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
        """Calls `write()`, which adds to the last checkpoint, after that has been saved; not if saving it failed."""
        self.check()
        if self.thread is not None or self.unsaved is None:
            self._start(write)

    def _start(self, write: Callable[[], object]) -> None:
        # not a daemon, so that Python waits for it when the run ends
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
        except Exception as error:  # reported by the loop in `check`
            self.error = error

    def wait(self) -> None:
        """Waits until nothing is being written."""
        if self.thread is not None:
            if self.thread.is_alive():
                self.thread.join()
            self.check()

    def check(self) -> None:
        """Reports a save that has failed, once. Called after every step."""
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
        self.say(f"warning: {self.unsaved}; earlier checkpoints are untouched, and training continues")
