"""Agreement among the processes of a run, and detection of those that hang or die.

Decisions that must be the same everywhere (to stop, to halve the batch) go through a process group
on the CPU: it does not wait for the GPU, and it notices within `--timeout` that a process hangs or
has died.
"""

import os
import sys
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import torch
from accelerate import Accelerator

# texts in the errors of gloo and NCCL
CLOSED = ("Connection closed by peer", "Connection reset by peer", "Connection refused")
CLOSED += ("Broken pipe", "remote process")
SILENT = ("Timed out", "timed out", "timeout")
MESSAGE = 1000  # bytes of a message that processes share


class Peers:
    """The other processes of a run; with a single process everything returns immediately."""

    def __init__(self, accelerator: Accelerator, timeout: float):
        """`timeout` in seconds; `device.make_accelerator` sets the same for the device's group."""
        self.accelerator = accelerator
        self.timeout = timeout
        self.many = accelerator.num_processes > 1
        self.group = None  # the default group, if that is on the CPU
        if self.many and accelerator.device.type != "cpu":
            limit = timedelta(seconds=timeout)
            try:
                self.group = torch.distributed.new_group(backend="gloo", timeout=limit)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise ValueError(
                    "the processes cannot reach each other by gloo, which they use on the CPU: set "
                    "GLOO_SOCKET_IFNAME to the network interface between the machines, such as "
                    f"eth0 ({reason:.200})"
                ) from None

    @contextmanager
    def in_agreement(self, main_first: bool = False):
        """If this code fails on one process, all raise its error, so none waits for another.

        With `main_first` the others start after the main process, so that only it downloads.
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
        """Raises `error`; without one, the message of the first process that has one, if any."""
        here, nobody = self.accelerator.process_index, self.accelerator.num_processes
        first = -self.largest(-(nobody if error is None else here))[0]
        if first == nobody:
            return
        message = str(error).encode()[:MESSAGE] if here == first else b""
        shared = bytes(self.largest(*message.ljust(MESSAGE, b"\0"))).rstrip(b"\0")
        raise error or ValueError(shared.decode(errors="ignore"))

    def largest(self, *values: int, patience: float | None = None) -> list[int]:
        """The largest of each value over all processes.

        Raises RuntimeError if one does not call this within `patience` seconds (default: timeout).
        """
        if not self.many:
            return [int(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.int64)
        largest = torch.distributed.ReduceOp.MAX
        work = torch.distributed.all_reduce(tensor, largest, group=self.group, async_op=True)
        if patience is None:
            work.wait()
        else:
            work.wait(timedelta(seconds=patience))
        return tensor.tolist()

    @contextmanager
    def watched(self):
        """Ends this process with one line and code 1 if the code in this context cannot go on.

        It waits for a process that hangs or has died.
        """
        try:
            yield
        except RuntimeError as error:
            if not self.many or not (reason := lost(str(error), self.timeout)):
                raise
            self.leave(f"{reason}; start it again with --resume=auto")

    def leave(self, reason: str) -> NoReturn:
        """Ends this process with one line and code 1, while the others wait for it."""
        me = f"process {self.accelerator.process_index} of {self.accelerator.num_processes}"
        print(f"error: {me} stops: {reason}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)  # an ordinary exit would wait for the others


def lost(error: str, timeout: float) -> str | None:
    """The cause of a failed collective operation; None if other processes are not the cause."""
    if any(text in error for text in CLOSED):
        return "another process of the run has died"
    if any(text in error for text in SILENT):
        return f"another process of the run has not answered for {timeout:g} s (--timeout)"
    return None
