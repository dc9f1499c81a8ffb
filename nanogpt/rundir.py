"""Out directories: a run writes only into an empty directory or its own, and one process at a time.

`.run` marks a run's directory. It holds the run's id, which is part of temporary names (`.tmp-<id>-…`, `.old-<id>-…`):
only such leftovers are ever removed. `.lock` is locked by the process that writes, `.lock.json` names that process.
"""

import atexit
import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from nanogpt.data import files
from nanogpt.data.files import read_json

MARK, NEW_MARK, LOCK = ".run", ".run.new", ".lock"
# errors of read-only directories and of file systems without locks
NO_LOCKS = {errno.EROFS, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
CLAIMED: dict[
    Path, tuple["Lock", int | None]
] = {}  # by this process, with the inode of the lock's file


class Lock:
    """Locks `directory` until `release` or the end of a `with` block, and creates it if needed.

    The kernel releases the lock when the process ends, however it ends. Does nothing if the directory is read-only or
    its file system has no locks.
    """

    def __init__(self, directory: Path | str, name: str = LOCK):
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
            if error.errno not in NO_LOCKS and os.access(self.directory, os.W_OK):
                raise
            return
        with contextlib.suppress(OSError):
            self.holder.write_text(
                json.dumps({"host": socket.gethostname(), "pid": os.getpid()}), encoding="utf-8"
            )

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


def claim(directory: Path) -> None:
    """Marks and locks an existing directory for this process's run, until the process ends.

    Restores a mark or a lock that was removed. Raises ValueError if the directory holds anything but a run, or is
    locked by another process.
    """
    require_run(directory)
    path = directory.resolve()
    lock, file = CLAIMED.get(path, (None, None))
    if lock is None or inode(lock.path) != file:
        if lock is not None:
            lock.lock.release()  # without removing files: those of that name may belong to another process
        lock = Lock(path)
        CLAIMED[path] = lock, inode(lock.path)
        atexit.register(lock.release)
    if read_id(directory) is None:
        write(directory / MARK, f"{secrets.token_hex(4)}\n", directory / NEW_MARK)


def release(directory: Path) -> None:
    """Unlocks a directory that this process has claimed."""
    if found := CLAIMED.pop(directory.resolve(), None):
        found[0].release()


def require_run(directory: Path) -> None:
    """Raises ValueError if a directory holds anything but a run."""
    if (directory / MARK).is_file() or is_unmarked_run(directory):
        return
    ignored = {MARK, NEW_MARK, LOCK, f"{LOCK}.json"}
    foreign = sorted(path.name for path in directory.iterdir() if path.name not in ignored)
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise ValueError(
            f"out_dir={str(directory)!r} is not a run's directory, it has {foreign[0]!r}{more}: "
            "name a new or empty directory with --out_dir"
        )


def is_unmarked_run(directory: Path) -> bool:
    """Whether it holds a run of an earlier version, which wrote no mark."""
    if any(directory.glob("step-*/trainer_state.json")):
        return True
    with contextlib.suppress(ValueError):
        settings = read_json(directory / "config.json")
        return (directory / "metrics.jsonl").is_file() and {"model", "train"} <= settings.keys()
    return False


def read_id(directory: Path) -> str | None:
    """The id of the run in a directory."""
    with contextlib.suppress(OSError, ValueError):
        if (directory / MARK).is_file():
            found = re.fullmatch(r"([0-9a-f]{8})\n", (directory / MARK).read_text(encoding="utf-8"))
            return found and found[1]
    return None


def inode(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return path.stat().st_ino
    return None


def temporary(path: Path, kind: str = "tmp") -> Path:
    """A temporary name for `path`, with the id of the run in that directory."""
    return path.with_name("-".join(filter(None, (f".{kind}", read_id(path.parent), path.name))))


def remove_leftovers(directory: Path) -> None:
    """Removes what this run's killed saves left behind."""
    run = read_id(directory)
    for left in [*directory.glob(f".tmp-{run}-*"), *directory.glob(f".old-{run}-*")] if run else []:
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def write_json(path: Path, value: dict) -> None:
    write(path, json.dumps(value, indent=2) + "\n", temporary(path))


def write(path: Path, text: str, new: Path) -> None:
    """Writes a file atomically: under the name `new`, synced, then renamed."""
    new.write_text(text, encoding="utf-8")
    sync(new)
    new.replace(path)


def sync(path: Path) -> None:
    """Flushes a file, or the entries of a directory, to disk; does nothing on systems that cannot."""
    writable = path.is_file() and os.access(path, os.W_OK)
    try:
        descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
    except PermissionError:  # Windows opens no directory
        return
    try:
        files.sync(descriptor)
    finally:
        os.close(descriptor)
