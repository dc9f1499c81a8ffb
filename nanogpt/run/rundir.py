"""Out directories: a run writes only into an empty directory or its own, and removes only its own files.

The file `.run` holds the run's id, which is part of temporary names: `.tmp-<id>-…`, `.old-<id>-…`. No other leftovers
are ever removed. The process that writes holds a lock (`nanogpt.run.lock`) until it ends.
"""

import atexit
import contextlib
import json
import os
import re
import secrets
import shutil
from pathlib import Path

from nanogpt.data import files
from nanogpt.data.files import follow, read_json
from nanogpt.run.lock import Lock

MARK, NEW_MARK = ".run", ".run.new"
LOCKED: dict[Path, tuple[Lock, int | None]] = {}  # by this process, with the inode of the lock's file
READ: dict[Path, int] = {}  # checkpoints that this process holds, with the descriptor that has the lock


def claim(directory: Path) -> None:
    """Marks and locks an existing directory for this process's run, until the process ends.

    Restores a mark or a lock that was removed. Raises ValueError if the directory holds anything but a run, or is
    locked by another process.
    """
    check(directory)
    path = directory.resolve()
    lock, file = LOCKED.get(path, (None, None))
    if lock is None or inode(lock.path) != file:
        if lock is not None:
            lock.lock.release()  # without removing files: those of that name may belong to another process
        lock = Lock(path)
        LOCKED[path] = lock, inode(lock.path)
        atexit.register(lock.release)
    if read_id(directory) is None:
        write(directory / MARK, f"{secrets.token_hex(4)}\n", directory / NEW_MARK)


def release(directory: Path) -> None:
    """Unlocks a directory that this process has claimed."""
    if found := LOCKED.pop(directory.resolve(), None):
        found[0].release()


def check(directory: Path) -> None:
    """Raises ValueError if a directory holds anything but a run."""
    if (directory / MARK).is_file() or is_unmarked_run(directory):
        return
    ignored = {MARK, NEW_MARK, ".lock", ".lock.json"}
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


def sweep(directory: Path) -> None:
    """Removes leftovers of this run's killed saves."""
    run = read_id(directory)
    for left in [*directory.glob(f".tmp-{run}-*"), *directory.glob(f".old-{run}-*")] if run else []:
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def point(link: Path, target: Path) -> None:
    """Makes `link` name its sibling `target`, atomically: a symbolic link, or if that fails a text file (`follow`)."""
    new = temporary(link)
    new.unlink(missing_ok=True)
    try:
        new.symlink_to(target.name)
    except OSError:  # the file system has no links, or Windows does not allow them
        write(link, target.name + "\n", new)
    else:
        new.replace(link)


def steps(out_dir: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    found = [d for d in out_dir.glob("step-*") if re.fullmatch(r"step-\d{6,18}", d.name) and d.is_dir()]
    return sorted(found, key=number)


def number(checkpoint: Path) -> int:
    """The step in the name of a checkpoint's directory; 0 if it has another name."""
    found = re.fullmatch(r"step-(\d+)", checkpoint.name)
    return int(found[1]) if found else 0


def prune(out_dir: Path, keep: int) -> None:
    """Removes all checkpoints but the newest `keep`, `best`, `last`, and those that another process reads.

    Steps after `last`, from before the run was resumed at its best one, are removed first. Errors are ignored.
    """
    with contextlib.suppress(OSError):
        best, last = (follow(out_dir / link).resolve() for link in ("best", "last"))
        found = sorted(steps(out_dir), key=lambda step: number(step) <= number(last))  # stable: oldest first in both
        for old in found[:-keep] if keep else []:
            if old.resolve() not in (best, last) and not is_read(old):
                # renamed first, so that no half-removed directory has a checkpoint's name
                old.rename(temporary(old))
        sweep(out_dir)


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


def hold(checkpoint: Path) -> None:
    """Keeps a run in training from removing a checkpoint until this process ends or calls `unhold`.

    Does nothing where flock is unavailable: on Windows and on some file systems.
    """
    unhold(checkpoint)
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        READ[checkpoint.resolve()] = descriptor = os.open(checkpoint, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def unhold(checkpoint: Path) -> None:
    """Ends a `hold`."""
    if (descriptor := READ.pop(checkpoint.resolve(), None)) is not None:
        os.close(descriptor)


def is_read(checkpoint: Path) -> bool:
    """Whether another process holds a checkpoint."""
    unhold(checkpoint)
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        descriptor = os.open(checkpoint, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False
