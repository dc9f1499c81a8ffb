"""Agreement among the processes of a run, and detection of those that hang or die.

Decisions that must be the same everywhere (to stop, to halve the batch) go through a process group
on the CPU: it does not wait for the GPU, and it notices within `--timeout` that a process hangs or
has died.
"""

import os
import re
import sys
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator

# texts in the errors of gloo and NCCL
LOST = re.compile("Connection (closed|reset|refused)|Broken pipe|remote process|[Tt]imed? ?out")


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
            self.group = torch.distributed.new_group(backend="gloo", timeout=limit)

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
        messages = [None if error is None else str(error)]
        if self.many:
            mine, messages = messages[0], [None] * self.accelerator.num_processes
            torch.distributed.all_gather_object(messages, mine, group=self.group)
        for message in messages:
            if message is not None:
                raise error or ValueError(message)

    def all_max(self, *values: int) -> list[int]:
        """The largest of each value over all processes; RuntimeError if one takes too long."""
        tensor = torch.tensor(values, dtype=torch.int64)
        if self.many:
            torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=self.group)
        return tensor.tolist()

    @contextmanager
    def watched(self):
        """Ends this process with one line and code 1 if a different process hangs or has died."""
        try:
            yield
        except RuntimeError as error:
            if not self.many or not LOST.search(str(error)):
                raise
            me = f"process {self.accelerator.process_index} of {self.accelerator.num_processes}"
            lost = f"another process has died, or has not answered for {self.timeout:g} s"
            line = f"error: {me} stops: {lost} (--timeout); start it again with --resume=auto"
            print(line, file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(1)  # an ordinary exit would wait for the others
