"""A lock on a directory, so that two processes do not write the same files.

    >>> with Lock("data/mine"):
    ...     print("nobody else has it")
    nobody else has it

The kernel holds the lock on the file `.lock` (package `filelock`) and releases it when the process ends, however it
ends. The file `.lock.json` names the holder.
"""

import contextlib
import errno
import json
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

# errors of read-only directories and of file systems without locks
WITHOUT = {errno.EROFS, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class Lock:
    """Locks `directory` until `release` or the end of a `with` block, and creates it if needed.

    Does nothing if the directory is read-only or its file system has no locks.
    """

    def __init__(self, directory: Path | str, name: str = ".lock"):
        """Raises ValueError, naming host and process, if a lock of that name is held there, also by this process."""
        self.directory = Path(directory)
        self.path, self.holder = self.directory / name, self.directory / f"{name}.json"
        self.lock = FileLock(self.path, blocking=False, thread_local=False)
        try:
            self.lock.acquire()
        except Timeout:
            raise ValueError(
                f"{self.directory} is in use by {self.who()}: wait until that ends, stop it, or name another directory"
            ) from None
        except OSError as error:
            if error.errno not in WITHOUT and os.access(self.directory, os.W_OK):
                raise
            return
        with contextlib.suppress(OSError):
            self.holder.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}), encoding="utf-8")

    def who(self) -> str:
        """The holder, from its file."""
        try:
            held = json.loads(self.holder.read_text(encoding="utf-8"))
            return f"process {held['pid']} on {held['host']}"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # it has not written yet
            return "another process"

    def release(self) -> None:
        """Removes both files, then unlocks: in this order no process reads the name of an earlier holder."""
        if self.lock.is_locked:
            for path in (self.holder, self.path):
                with contextlib.suppress(OSError):
                    path.unlink()
            self.lock.release()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *exception) -> None:
        self.release()
