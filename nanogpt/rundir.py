"""Out directories: a run writes only into an empty directory or its own, one process at a time.

`.run` marks a run's directory. It holds the run's id, which is part of temporary names
(`.tmp-<id>-…`, `.old-<id>-…`): only such leftovers are ever removed. `.lock` is locked by the
process that writes, `.lock.json` names that process.
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

MARK, LOCK = ".run", ".lock"
# errors of read-only directories and of file systems without locks
NO_LOCKS = {errno.EROFS, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
CLAIMED: dict[Path, "Lock"] = {}  # the directories that this process has claimed


class Lock:
    """Locks `directory` until `release` or the end of a `with` block, and creates it if needed.

    The kernel releases the lock when the process ends, however it ends. Does nothing if the
    directory is read-only or its file system has no locks.
    """

    def __init__(self, directory: Path | str, name: str = LOCK):
        """Raises ValueError, naming host and process, if it is locked, also by this process."""
        self.directory = Path(directory)
        self.path = self.directory / name
        self.holder = self.directory / f"{name}.json"
        self.lock = FileLock(self.path, blocking=False, thread_local=False)
        try:
            self.lock.acquire()
            with contextlib.suppress(OSError):
                holder = {"host": socket.gethostname(), "pid": os.getpid()}
                self.holder.write_text(json.dumps(holder))
        except Timeout:
            raise ValueError(
                f"{self.directory} is in use by {self.who()}: wait until that ends, stop it, or "
                "name another directory"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS and os.access(self.directory, os.W_OK):
                raise
        self.inode = inode(self.path)

    def who(self) -> str:
        """The holder, from its file."""
        try:
            held = json.loads(self.holder.read_text(encoding="utf-8"))
            return f"process {held['pid']} on {held['host']}"
        except (OSError, ValueError, KeyError, TypeError):  # it has not written yet
            return "another process"

    def release(self) -> None:
        """Removes both files, then unlocks: no process reads the name of an earlier holder."""
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

    Restores a mark or a lock that was removed. Raises ValueError if the directory holds anything
    but a run, or is locked by another process.
    """
    require_run(directory)
    path = directory.resolve()
    lock = CLAIMED.get(path)
    if lock is None or inode(lock.path) != lock.inode:
        if lock is not None:  # files of that name may belong to another process now
            lock.lock.release()
        CLAIMED[path] = Lock(path)
        atexit.register(CLAIMED[path].release)
    if read_id(directory) is None:
        mark = directory / MARK
        mark.unlink(missing_ok=True)
        mark.write_text(f"{secrets.token_hex(4)}\n")
        sync(mark)


def release(directory: Path) -> None:
    """Unlocks a directory that this process has claimed."""
    if lock := CLAIMED.pop(directory.resolve(), None):
        lock.release()


def require_run(directory: Path) -> None:
    """Raises ValueError if a directory holds anything but a run."""
    if (directory / MARK).is_file() or is_unmarked_run(directory):
        return
    ours = {MARK, LOCK, f"{LOCK}.json"}
    foreign = sorted(path.name for path in directory.iterdir() if path.name not in ours)
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
            found = re.fullmatch(r"([0-9a-f]{8})\n", (directory / MARK).read_text())
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
    if run is None:
        return
    for path in (*directory.glob(f".tmp-{run}-*"), *directory.glob(f".old-{run}-*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_json(path: Path, value: dict) -> None:
    write(path, json.dumps(value, indent=2) + "\n")


def write(path: Path, text: str) -> None:
    """Writes a file atomically: under a temporary name, synced, then renamed."""
    new = temporary(path)
    new.write_text(text, encoding="utf-8")
    sync(new)
    new.replace(path)


def sync(path: Path) -> None:
    """Flushes a file, or a directory's entries, to disk; does nothing on systems that cannot."""
    writable = path.is_file() and os.access(path, os.W_OK)
    descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
    try:
        files.sync(descriptor)
    finally:
        os.close(descriptor)
