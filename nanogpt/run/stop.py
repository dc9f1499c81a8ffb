"""Reasons to end a run early: signals, --time_limit, failing saves, bad gradients."""

import math
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

from nanogpt.checkpoint import State
from nanogpt.config import TrainConfig
from nanogpt.run.agree import Peers
from nanogpt.train import Parts, log_is_due, logger

# Slurm can send SIGUSR1 before its time limit; SIGHUP: the terminal closes
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
FAILED_SAVES = 3  # in a row that end a run
BAD_STEPS = 5  # steps in a row without a finite gradient that end a run
SCALER_STEPS = 16  # fp16 allows this many more: the scaler halves its initial scale of 2^16


@dataclass
class Stop(Exception):
    """Why a run ends early, and its exit code. 1 is an error; with others the run saves first."""

    reason: str
    code: int


class Interrupts:
    """Context manager around the loop: the first signal lets the step finish, a second does not."""

    def __init__(self, peers: Peers, minutes: float):
        """`minutes` count from here, before anything is loaded; 0 means no limit."""
        self.peers = peers
        self.number = 0  # of the signal received
        self.saved_step = 0  # of the last save, even if it failed
        self.save_error: str | None = None  # of the last save
        self.failed_saves = 0  # in a row
        self.save_seconds = 0.0  # duration of the last save
        self.end = time.monotonic() + 60 * (minutes or math.inf)
        self.last = time.monotonic()  # end of the last step
        self.longest = 0.0  # longest time in seconds from the end of a step to the end of the next
        self.before: dict = {}  # the handlers that were there

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self  # Python lets only the main thread handle signals
        for number in SIGNALS:
            # nohup has SIGHUP ignored: the run outlives its terminal
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self.before[number] = signal.signal(number, self.remember)
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
            signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else signal.SIG_DFL)

    def ignore(self) -> None:
        """Ignores signals from now on, if there are several processes.

        The launcher sends SIGTERM to the others when one ends, which would change their exit code.
        """
        if self.peers.many and self.before:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
                self.before[number] = signal.SIG_IGN

    @contextmanager
    def saving(self, step: int):
        """Context manager around saving `step`: an error becomes a warning, as the run goes on."""
        start = time.perf_counter()
        self.saved_step, self.save_error = step, None
        try:
            yield
            self.failed_saves = 0
        except Exception as error:  # a full disk, most likely: the run is worth more
            self.failed_saves += 1
            reason = str(error) if isinstance(error, OSError | ValueError) else repr(error)
            self.save_error = f"step {step} could not be saved: {reason}"
            logger.warning(
                f"{self.save_error}; earlier checkpoints are untouched, and training continues"
            )
        self.save_seconds = time.perf_counter() - start

    def save_failed(self) -> bool:
        """Whether the last save failed on any process."""
        return bool(self.peers.all_max(self.save_error is not None)[0])

    def check(self, seconds: float = 0.0, failure: str | None = None) -> None:
        """Raises Stop on all processes: after a signal or a failure, or if time runs out.

        That is, if there is no time left to save after the next `seconds`. All must call this
        equally often. A step whose evaluation it ends is saved without a result.
        """
        late = time.monotonic() + seconds + self.save_seconds > self.end
        number, late, failed = self.peers.all_max(self.number, late, failure is not None)
        if failed:
            raise Stop(failure, code=1)
        if number:
            raise Stop("stopped", code=128 + number)
        if late:
            raise Stop("stopped by the time limit", code=0)

    def check_step(self, config: TrainConfig, parts: Parts, state: State) -> None:
        """Raises Stop if the run has to end before the next step, on all processes alike."""
        tally = parts.tally
        allowed = BAD_STEPS if parts.accelerator.scaler is None else BAD_STEPS + SCALER_STEPS
        if log_is_due(config, state.step) and tally.bad_in_a_row >= allowed:
            muon = " and --muon_learning_rate" if config.optimizer == "muon" else ""
            fp32 = "" if parts.accelerator.mixed_precision == "no" else " or --precision=fp32"
            raise Stop(
                f"no finite gradient in the last {int(tally.bad_in_a_row)} steps up to step "
                f"{state.step}, at learning rate {tally.lr:.2e}. None of these steps was applied: "
                "resume with --resume=best, or start again, with a lower "
                f"--learning_rate{muon}{fp32}",
                code=1,
            )
        now = time.monotonic()
        self.longest, self.last = max(self.longest, now - self.last), now
        self.check(self.longest, self.save_error if self.failed_saves >= FAILED_SAVES else None)
