"""One process at a time in a directory: two that write the same files would destroy each other's work.

    >>> with Lock("data/mine"):
    ...     print("nobody else has it")
    nobody else has it

The lock is the kernel's, on the file `.lock` (by the package `filelock`), and so ends with the process that holds it,
however that ends. The file `.lock.json` beside it says who holds it.
"""

import contextlib
import errno
import json
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

# of a read-only directory, where nobody writes, and of a file system that has no locks
WITHOUT = {errno.EROFS, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class Lock:
    """Locks `directory`, which is created if need be, from now to `release`, or to the end of a `with` block.

    Where the directory is read-only, or its file system has no locks, nothing is locked.
    """

    def __init__(self, directory: Path | str, name: str = ".lock"):
        """Raises ValueError, naming host and process, if a lock of that name is held there, be it in this process."""
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
        """The holder, as it wrote it down."""
        try:
            held = json.loads(self.holder.read_text(encoding="utf-8"))
            return f"process {held['pid']} on {held['host']}"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # it has not written yet
            return "another process"

    def release(self) -> None:
        """Unlocks and removes both files, in an order in which nobody finds the name of another."""
        if self.lock.is_locked:
            for path in (self.holder, self.path):
                with contextlib.suppress(OSError):
                    path.unlink()
            self.lock.release()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *exception) -> None:
        self.release()
