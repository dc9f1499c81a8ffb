"""Reasons to end a run before max_iters: a signal, a dead launcher, --max_minutes, or repeated failures to save."""

import os
import signal
import time
from dataclasses import dataclass

from nanogpt.run.agree import Peers

# Slurm can send SIGUSR1 before its time limit (accelerate_configs/README.md)
SIGNALS = [number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGUSR1")]
LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")  # set by torchrun and accelerate launch


@dataclass
class Stop:
    """Why a run ends before max_iters, its exit code (1: an error), and whether it saves a checkpoint first."""

    message: str
    code: int
    save: bool = False


class Interrupted(Exception):
    """A signal arrived during an evaluation or a sample; `number` is the same on all processes."""

    def __init__(self, number: int):
        self.number = number


class Interrupts:
    """Context manager around the loop. The first signal lets the current step finish; the second ends the process."""

    def __init__(self, peers: Peers, max_minutes: float, max_failed_saves: int):
        """`max_minutes` count from here, before anything is loaded; 0 means no limit."""
        self.peers, self.max_failed_saves = peers, max_failed_saves
        self.number = 0  # of the signal received
        self.launcher = os.getppid() if any(name in os.environ for name in LAUNCHED) else None
        self.end = time.monotonic() + 60 * max_minutes if max_minutes else None
        self.longest = 0.0  # longest time in seconds from the end of a step to the end of the next

    def __enter__(self):
        self.before = {number: signal.signal(number, self.remember) for number in SIGNALS}
        self.begin()
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def begin(self) -> None:
        """Marks the start of the first step. The time before it, such as compiling, does not count as a step."""
        self.last = time.monotonic()

    def remember(self, number: int, frame) -> None:
        self.number = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def pending(self) -> int:
        """The number of the signal that this process received, or 0; SIGHUP's if the launcher died."""
        if not self.number and self.launcher not in (None, os.getppid()):
            self.number = signal.SIGHUP
        return self.number

    def why(self, number: int) -> str:
        """Describes a run that the signal `number` ends."""
        return "the launcher died: stopped" if number == signal.SIGHUP else "stopped"

    def check(self) -> None:
        """Raises Interrupted on all processes if one of them has received a signal.

        Called between the batches of an evaluation and the tokens of a sample, equally often on all processes.
        """
        if number := self.peers.largest(self.pending())[0]:
            raise Interrupted(number)

    def ignore(self) -> None:
        """Ignores signals from now on if there are several processes.

        When one process ends, the launcher sends SIGTERM to the others, which would change their exit code.
        """
        if self.peers.many:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
                self.before[number] = signal.SIG_IGN

    def due(self, saving: float, failed_saves: int) -> tuple[int, bool, bool]:
        """Returns the number of a signal or 0, whether the time is up, and whether saving has failed too often.

        Called after each step; the result is the same on all processes. `saving` is the duration of a save in seconds,
        for which there must be time as well.
        """
        now = time.monotonic()
        self.longest, self.last = max(self.longest, now - self.last), now
        time_is_up = self.end is not None and now + self.longest + saving > self.end
        number, *reasons = self.peers.largest(self.pending(), time_is_up, failed_saves >= self.max_failed_saves)
        return number, *map(bool, reasons)
