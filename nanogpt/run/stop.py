"""Reasons to end a run early: signals, --time_limit, failing saves, bad gradients."""

import signal
import time
from dataclasses import dataclass

from nanogpt.checkpoint import State, list_checkpoints
from nanogpt.config import TrainConfig
from nanogpt.run.agree import Peers
from nanogpt.run.guard import diagnosis
from nanogpt.run.resume import resume_command
from nanogpt.train import Parts, log_is_due

HANGUP = signal.SIGHUP  # the terminal closes
# Slurm can send SIGUSR1 before its time limit
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, HANGUP)
FAILED_SAVES = 3  # in a row that end a run
BAD_STEPS = 5  # steps in a row without a finite gradient that end a run
SCALER_STEPS = 16  # fp16: as many more, while the scaler halves its initial scale of 2^16 to 1


@dataclass
class Stop(Exception):
    """Why a run ends early, its exit code (1: an error), and whether it saves first."""

    message: str
    code: int
    save: bool = False


class Interrupted(Exception):
    """A signal arrived during an evaluation; `number` is the same on all processes."""

    def __init__(self, number: int):
        self.number = number


def hangup_is_ignored() -> bool:
    """Whether this process was started to outlive its terminal, as by nohup."""
    return signal.getsignal(HANGUP) == signal.SIG_IGN


class Interrupts:
    """Context manager around the loop: the first signal lets the step finish, a second does not."""

    def __init__(self, peers: Peers, minutes: float):
        """`minutes` count from here, before anything is loaded; 0 means no limit."""
        self.peers = peers
        self.number = 0  # of the signal received
        self.end = time.monotonic() + 60 * minutes if minutes else None
        self.last = time.monotonic()  # end of the last step
        self.longest = 0.0  # longest time in seconds from the end of a step to the end of the next
        self.before: dict = {}  # the handlers that were there

    def __enter__(self):
        handled = [number for number in SIGNALS if number != HANGUP or not hangup_is_ignored()]
        self.before = {number: signal.signal(number, self.remember) for number in handled}
        self.begin()
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def begin(self) -> None:
        """Marks the start of the first step: compiling, for example, is not part of it."""
        self.last = time.monotonic()

    def remember(self, number: int, frame) -> None:
        self.number = number
        for each in self.before:  # SIGHUP often comes several times, or after SIGTERM
            signal.signal(each, signal.SIG_IGN if each == HANGUP else signal.SIG_DFL)

    def check(self) -> None:
        """Raises Interrupted on all processes if one of them has received a signal.

        Called between the batches of an evaluation, equally often on all processes.
        """
        if number := self.peers.largest(self.number)[0]:
            raise Interrupted(number)

    def ignore(self) -> None:
        """Ignores signals from now on if there are several processes.

        The launcher sends SIGTERM to the others when one ends, which would change their exit code.
        """
        if self.peers.many:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
                self.before[number] = signal.SIG_IGN

    def check_step(self, config: TrainConfig, parts: Parts, state: State) -> None:
        """Raises Stop if the run has to end before the next step, on all processes alike."""
        tally, saves = parts.tally, parts.saves
        allowed = BAD_STEPS if parts.accelerator.scaler is None else BAD_STEPS + SCALER_STEPS
        if log_is_due(config, state.step) and tally.bad_in_a_row >= allowed:
            raise Stop(diagnosis(tally, state.step, config), code=1)
        now = time.monotonic()
        self.longest, self.last = max(self.longest, now - self.last), now
        # there must be time for another step and a save
        time_is_up = self.end is not None and now + self.longest + saves.seconds > self.end
        number, time_is_up, fails = self.peers.largest(
            self.number, time_is_up, saves.failed >= FAILED_SAVES
        )
        if fails:
            raise Stop(saves.error, code=1)
        if number or time_is_up:
            raise self.stopped(config, parts, state, number)

    def stopped(self, config: TrainConfig, parts: Parts, state: State, number: int) -> Stop:
        """The end by a signal, or because the time is up (0)."""
        why = "stopped" if number else f"stopped after {config.time_limit:g} minutes"
        saved = state.step or list_checkpoints(parts.out_dir)  # fine-tuning saves step 0
        what = f"step {state.step} is saved" if saved else "there was no step to save"
        message = f"{why}: {what}; to resume: {resume_command(config, self.peers.many)}"
        return Stop(message, code=128 + number if number else 0, save=True)
