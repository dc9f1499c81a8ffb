"""What ends a run between two steps, before max_iters: a signal, --max_minutes, or saves that keep failing."""

import signal
import time
from dataclasses import dataclass

from nanogpt.runtime.processes import Peers

# Slurm sends SIGUSR1 some time before its limit, where it is asked to (accelerate_configs/README.md)
SIGNALS = [number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGUSR1")]


@dataclass
class Stop:
    """Why a run ends before max_iters, with the exit code (1: an error), and whether a checkpoint is saved first."""

    message: str
    code: int
    save: bool = False


class Interrupts:
    """Used around the loop. Signals are remembered, so that a step can be finished; a second one ends at once."""

    def __init__(self, peers: Peers, max_minutes: float, max_failed_saves: int):
        """`max_minutes` count from here, where all that precedes the first step counts as well; 0 is no limit."""
        self.peers, self.max_failed_saves = peers, max_failed_saves
        self.number = 0  # of the signal that came
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
        number, *reasons = self.peers.largest(self.number, time_is_up, failed_saves >= self.max_failed_saves)
        return number, *map(bool, reasons)
