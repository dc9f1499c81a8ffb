"""What ends a run before max_iters: a signal, a launcher that died, --max_minutes, or saves that keep failing."""

import os
import signal
import time
from dataclasses import dataclass

from nanogpt.runtime.processes import Peers

# Slurm sends SIGUSR1 some time before its limit, where it is asked to (accelerate_configs/README.md)
SIGNALS = [number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGUSR1")]


LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")  # which torchrun and accelerate launch set


@dataclass
class Stop:
    """Why a run ends before max_iters, with the exit code (1: an error), and whether a checkpoint is saved first."""

    message: str
    code: int
    save: bool = False


class Interrupted(Exception):
    """A signal came during an evaluation or a sample; `number` is the same on all processes."""

    def __init__(self, number: int):
        self.number = number


class Interrupts:
    """Used around the loop. Signals are remembered, so that a step can be finished; a second one ends at once."""

    def __init__(self, peers: Peers, max_minutes: float, max_failed_saves: int):
        """`max_minutes` count from here, where all that precedes the first step counts as well; 0 is no limit."""
        self.peers, self.max_failed_saves = peers, max_failed_saves
        self.number = 0  # of the signal that came
        self.launcher = os.getppid() if any(name in os.environ for name in LAUNCHED) else None
        self.end = time.monotonic() + 60 * max_minutes if max_minutes else None
        self.longest = 0.0  # seconds from the end of a step to the end of the next, with all that came between

    def __enter__(self):
        self.before = {number: signal.signal(number, self.remember) for number in SIGNALS}
        self.begin()
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def begin(self) -> None:
        """The first step begins; what came before it, compiling for instance, says nothing about the steps to come."""
        self.last = time.monotonic()

    def remember(self, number: int, frame) -> None:
        self.number = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def pending(self) -> int:
        """The number of the signal that came to this process or 0; SIGHUP's where the launcher died."""
        if not self.number and self.launcher not in (None, os.getppid()):
            self.number = signal.SIGHUP
        return self.number

    def why(self, number: int) -> str:
        """What to say of a run that `number` ends."""
        return "the launcher died: stopped" if number == signal.SIGHUP else "stopped"

    def check(self) -> None:
        """Between batches of an evaluation and tokens of a sample: raises Interrupted on all processes if one has a
        signal. All must call it equally often."""
        if number := self.peers.largest(self.pending())[0]:
            raise Interrupted(number)

    def ignore(self) -> None:
        """At the very end: where there are several processes, signals do nothing any more. A launcher that sees one
        process end sends SIGTERM to the others, which have their own exit code to end with."""
        if self.peers.many:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
                self.before[number] = signal.SIG_IGN

    def due(self, saving: float, failed_saves: int) -> tuple[int, bool, bool]:
        """After a step, the same on all processes: the number of a signal or 0, whether the time is up, whether saves
        failed too often. `saving` is how many seconds a save takes: the last one must end in time as well."""
        now = time.monotonic()
        self.longest, self.last = max(self.longest, now - self.last), now
        time_is_up = self.end is not None and now + self.longest + saving > self.end
        number, *reasons = self.peers.largest(self.pending(), time_is_up, failed_saves >= self.max_failed_saves)
        return number, *map(bool, reasons)
