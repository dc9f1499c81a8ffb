"""Out directories: a run writes only into an empty directory or its own, one process at a time.

`.run` marks a run's directory and holds its id. `.lock` is locked by the process that writes there.
"""

import errno
import secrets
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

MARK, LOCK = ".run", ".lock"
CLAIMED: dict = {}  # this process's locks by directory and inode of the lock file


def lock(directory: Path):
    """Locks a directory, creating it if needed, until a `with` block or the process ends.

    Raises ValueError if it is locked already. Does nothing on a file system without locks.
    """
    try:
        return FileLock(directory / LOCK, blocking=False, fallback_to_soft=False).acquire()
    except Timeout:
        ways_out = "wait until it ends, or name another directory"
        raise ValueError(f"{directory} is in use by another process: {ways_out}") from None
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            return nullcontext()
        raise


def claim(directory: Path) -> None:
    """Marks and locks an existing directory for this process's run, until `release`.

    Raises ValueError if it holds anything but a run, or if another process has locked it.
    """
    # a copy of a run may lack the mark: `cp run/*` leaves it out
    if not (directory / MARK).exists() and not any(directory.glob("step-*/trainer_state.json")):
        foreign = sorted(path.name for path in directory.iterdir() if path.name != LOCK)
        if foreign:
            why = f"is not a run's directory, it has {foreign[0]!r}"
            raise ValueError(f"out_dir={str(directory)!r} {why}: name a new or empty directory")
    path = directory.resolve()
    if (path, inode(path / LOCK)) not in CLAIMED:  # the directory is new, or was replaced
        claimed = lock(path)
        CLAIMED[path, inode(path / LOCK)] = claimed
    if not (directory / MARK).exists():
        (directory / MARK).write_text(f"{secrets.token_hex(4)}\n")


def release() -> None:
    """Unlocks the directories that this process has claimed."""
    while CLAIMED:
        _, claimed = CLAIMED.popitem()
        claimed.__exit__(None, None, None)


def read_id(directory: Path) -> str | None:
    """The id of the run in a directory."""
    mark = directory / MARK
    return mark.read_text().strip() if mark.exists() else None


def inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None
