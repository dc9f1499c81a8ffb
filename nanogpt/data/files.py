"""Reads small files of unknown origin, writes files atomically, finds data on the Hub."""

import errno
import json
import os
import re
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

# hf://datasets/USER/NAME[@REVISION][/FOLDER], and what a data directory there may have
HUB_URL = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/\w+/\w+|[^/]+))?(?:/(.*?))?/*")
DATA_FILES = (
    "train.bin val.bin meta.json meta.pkl tokenizer.json tokenizer_config.json config.json "
    "vocab.json merges.txt added_tokens.json special_tokens_map.json"
).split()


@lru_cache  # one commit of the data for a whole process
def local_copy(directory: Path | str) -> Path:
    """The directory itself, or the copy of hf://datasets/USER/NAME in the Hub's cache.

    Raises ValueError if it cannot be downloaded.
    """
    url = str(directory)
    if "://" not in url:
        return Path(directory)
    from huggingface_hub import snapshot_download

    advice = "check the address (hf://datasets/USER/NAME), the network, and `hf auth login`"
    with one_line_errors(f"{url} cannot be read", advice):
        match = HUB_URL.fullmatch(url)
        if not match:
            raise ValueError("it is not the address of a data set")
        name, revision, folder = match.groups("")
        files = [f"{folder}/{file}".lstrip("/") for file in DATA_FILES]
        version = unquote(revision) or None
        copy = snapshot_download(name, repo_type="dataset", revision=version, allow_patterns=files)
        return Path(copy, folder)


def read_json(path: Path) -> dict:
    """Reads a JSON object. Raises ValueError if it is something else or unreadable."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
        return value
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} cannot be read ({why})") from None


def write_json(path: Path, value: dict) -> None:
    """Writes a JSON file, as `write_atomic`."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name beside `path`, synced, then renamed.

    An OSError, such as a full disk, names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync(file: Path | int) -> None:
    """Flushes a file, open or not, or a directory to disk; does nothing on systems that cannot."""
    descriptor = file if isinstance(file, int) else os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise
    finally:
        if descriptor != file:
            os.close(descriptor)


def follow(path: Path | str) -> Path:
    """`path`, or the checkpoint that it names if it is a text file in place of a link.

    These are `best` and `last` on file systems without symbolic links.
    """
    path = Path(path)
    if path.name in ("best", "last") and path.is_file():
        with open(path, encoding="utf-8", errors="replace") as file:
            name = file.read(64).strip()
        if re.fullmatch(r"step-\d+", name):
            return path.with_name(name)
    return path


@contextmanager
def one_line_errors(what: str, advice: str):
    """Context manager: what a library raises becomes a ValueError, `what (exception): advice`."""
    try:
        yield
    except Exception as error:  # damaged files and the network raise nearly anything
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOSPC:
            raise  # neither the file nor the network is at fault
        raise ValueError(f"{what} ({first_line(error)}): {advice}") from None


def first_line(error: Exception) -> str:
    """An exception in one short line, for the message of another."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300].rstrip(" :")
