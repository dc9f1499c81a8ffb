"""Locks: a second process is told the holder, and a process that dies leaves nothing locked."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from filelock import FileLock

from nanogpt.rundir import Lock

HOLD = "import sys; from nanogpt.rundir import Lock; lock = Lock(sys.argv[1]); print('held', flush=True); input()"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a directory."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_process_is_told_the_host_and_the_process_id_of_the_first(tmp_path, holder):
    message = f"{tmp_path} is in use by process {holder.pid} on {socket.gethostname()}: wait until"
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        Lock(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_killed_process_holds_nothing(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".lock").exists()
    with Lock(tmp_path) as lock:
        assert lock.who() == f"process {os.getpid()} on {socket.gethostname()}"


def test_a_released_lock_can_be_taken_again_and_leaves_no_file(tmp_path):
    directory = tmp_path / "new" / "directory"
    for _ in range(2):
        with Lock(directory), pytest.raises(ValueError, match=f"in use by process {os.getpid()} "):
            Lock(directory)
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOLCK])
def test_a_directory_that_cannot_be_locked_is_used_without(tmp_path, monkeypatch, number):
    def fail(self):
        raise OSError(number, os.strerror(number), str(tmp_path / ".lock"))

    monkeypatch.setattr(FileLock, "acquire", fail)
    with Lock(tmp_path):
        pass
    number = errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):
        Lock(tmp_path)
