"""The processes of a run among themselves: what they agree on, and what becomes of one that waits in vain.

What all must decide alike (to stop, to take smaller batches) goes through a group of processes of its own, on the CPU:
there nobody has to wait for a GPU, and a process that hangs or dies is noticed within `--timeout`.
"""

import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator

# what gloo's and NCCL's errors contain, and what it means
CLOSED = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "remote process",
)
SILENT = ("Timed out", "timed out", "timeout")
MESSAGE = 1000  # bytes of a message that processes share


class Peers:
    """The other processes of a run; with a single process everything returns at once."""

    def __init__(self, accelerator: Accelerator, timeout: float):
        """`timeout` in seconds; `device.make_accelerator` gives the device's own group the same."""
        self.accelerator, self.timeout = accelerator, timeout
        self.many = accelerator.num_processes > 1
        self.group = None  # the default group, where that is on the CPU anyway
        if self.many and accelerator.device.type != "cpu":
            try:
                self.group = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
            except RuntimeError as error:
                raise ValueError(
                    "the processes cannot reach each other by gloo, which they use on the CPU: set GLOO_SOCKET_IFNAME "
                    f"to the network interface between the machines, such as eth0 ({str(error).splitlines()[0]:.200})"
                ) from None

    @contextmanager
    def in_agreement(self, main_first: bool = False):
        """Around what a process may find wrong alone: if one raises an error all do, and none waits for another.

        With `main_first` the others begin after the main process, so that it alone downloads or prepares.
        """
        main, error = self.accelerator.is_main_process, None
        if main_first and not main:
            self.fail_together(None)
        try:
            yield
        except Exception as found:
            error = found
        if main_first and main:
            self.fail_together(error)
        self.fail_together(error)

    def fail_together(self, error: Exception | None) -> None:
        """Raises `error`, and on the processes without one the message of the first that has one."""
        here, nobody = self.accelerator.process_index, self.accelerator.num_processes
        first = -self.largest(-(nobody if error is None else here))[0]
        if first == nobody:
            return
        message = str(error).encode()[:MESSAGE] if here == first else b""
        shared = bytes(self.largest(*message.ljust(MESSAGE, b"\0"))).rstrip(b"\0").decode(errors="ignore")
        raise error or ValueError(shared)

    def largest(self, *values: int) -> list[int]:
        """The largest of each value over all processes."""
        if not self.many:
            return [int(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.int64)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=self.group)
        return tensor.tolist()

    @contextmanager
    def watched(self, before_exit: Callable[[], None]):
        """Around what waits for others: where one of them has died or hangs, one line says so, and exit code 1."""
        try:
            yield
        except RuntimeError as error:
            if not self.many or (reason := lost(str(error), self.timeout)) is None:
                raise
            before_exit()
            saved = "--resume=auto goes on from the last checkpoint"
            me = f"process {self.accelerator.process_index} of {self.accelerator.num_processes}"
            print(f"error: {me} stops: {reason}; {saved}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(1)  # an ordinary exit would wait for the others once more


def lost(error: str, timeout: float) -> str | None:
    """What an error of a collective operation says about the other processes; None if it is about something else."""
    if any(text in error for text in CLOSED):
        return "another process of the run has died"
    if any(text in error for text in SILENT):
        return f"another process of the run has not answered for {timeout:g} s (--timeout)"
    return None
