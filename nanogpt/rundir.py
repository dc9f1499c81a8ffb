"""Out directories: a run writes into an empty directory or into its own, alone, and removes only what it has marked.

The file `.run` holds the run's id, and temporary names carry it: `.tmp-<id>-…`, `.old-<id>-…`. Nothing else is ever
removed as a leftover. The process that writes holds a lock (`nanogpt.lock`) until it ends.
"""

import atexit
import contextlib
import json
import os
import re
import secrets
import shutil
from pathlib import Path

from nanogpt.data.files import read_json
from nanogpt.lock import Lock

MARK, NEW_MARK = ".run", ".run.new"
LOCKED: dict[Path, tuple[Lock, int | None]] = {}  # by this process; with the inode of the lock's file
READ: dict[Path, int] = {}  # checkpoints that this process reads; with the descriptor that holds the lock


def claim(directory: Path) -> None:
    """Marks and locks an existing directory for the run of this process, until the process ends; again where the
    mark or the lock were taken away.

    Raises ValueError where the directory holds something else than a run, or another process has it.
    """
    check(directory)
    path = directory.resolve()
    lock, file = LOCKED.get(path, (None, None))
    if lock is None or inode(lock.path) != file:
        if lock is not None:
            lock.lock.release()  # of a file that is gone: what has its name now is not ours to remove
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
    """Raises ValueError where a directory holds something, but no run."""
    if (directory / MARK).is_file() or is_unmarked_run(directory):
        return
    ignored = {MARK, NEW_MARK, ".lock", ".lock.json"}
    foreign = sorted(path.name for path in directory.iterdir() if path.name not in ignored)
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise ValueError(
            f"out_dir={str(directory)!r} is not a run's directory, it holds {foreign[0]!r}{more}: "
            "name a new or empty directory with --out_dir"
        )


def is_unmarked_run(directory: Path) -> bool:
    """Whether an earlier version, which left no mark, has written a run there."""
    if any(directory.glob("step-*/trainer_state.json")):
        return True
    with contextlib.suppress(ValueError):
        settings = read_json(directory / "config.json")
        return (directory / "metrics.jsonl").is_file() and {"model", "train"} <= settings.keys()
    return False


def read_id(directory: Path) -> str | None:
    """The id of the run whose directory it is."""
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
    """The name under which something waits until it is `path`; it carries the mark of the run in that directory."""
    return path.with_name("-".join(filter(None, (f".{kind}", read_id(path.parent), path.name))))


def sweep(directory: Path) -> None:
    """Removes what saves of this run that were killed have left behind."""
    run = read_id(directory)
    for left in [*directory.glob(f".tmp-{run}-*"), *directory.glob(f".old-{run}-*")] if run else []:
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def point(link: Path, target: Path) -> None:
    """Makes `link` a symbolic link to its sibling `target`, in one move."""
    new = temporary(link)
    new.unlink(missing_ok=True)
    new.symlink_to(target.name)
    new.replace(link)


def steps(out_dir: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    found = [d for d in out_dir.glob("step-*") if re.fullmatch(r"step-\d{6,18}", d.name) and d.is_dir()]
    return sorted(found, key=number)


def number(checkpoint: Path) -> int:
    """The step in the name of a checkpoint's directory; 0 where somebody has given it another name."""
    found = re.fullmatch(r"step-(\d+)", checkpoint.name)
    return int(found[1]) if found else 0


def prune(out_dir: Path, keep: int) -> None:
    """Removes all but the newest `keep`, `best`, `last`, and what another process reads. What cannot go stays.

    Steps beyond `last`, where a run that went back to its best once was, are the first to go.
    """
    linked = {(out_dir / link).resolve() for link in ("best", "last")}
    with contextlib.suppress(OSError):
        last = (out_dir / "last").resolve()
        found = sorted(steps(out_dir), key=lambda step: number(step) <= number(last))  # stable: oldest first in both
        for old in found[:-keep] if keep else []:
            if old.resolve() not in linked and not is_read(old):
                # first another name: nothing half removed bears a checkpoint's
                old.rename(temporary(old))
        sweep(out_dir)


def write_json(path: Path, value: dict) -> None:
    write(path, json.dumps(value, indent=2) + "\n", temporary(path))


def write(path: Path, text: str, new: Path) -> None:
    """Writes a file under the name `new`, waits for the disk and renames it: nobody ever reads half of it."""
    new.write_text(text, encoding="utf-8")
    sync(new)
    new.replace(path)


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hold(checkpoint: Path) -> None:
    """Keeps a run that trains meanwhile from removing a checkpoint, until this process ends or lets go of it.

    Does nothing where there are no such locks: on Windows, and on some file systems.
    """
    let_go(checkpoint)
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        READ[checkpoint.resolve()] = descriptor = os.open(checkpoint, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def let_go(checkpoint: Path) -> None:
    """Ends a `hold`."""
    if (descriptor := READ.pop(checkpoint.resolve(), None)) is not None:
        os.close(descriptor)


def is_read(checkpoint: Path) -> bool:
    """Whether another process holds a checkpoint."""
    let_go(checkpoint)
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
