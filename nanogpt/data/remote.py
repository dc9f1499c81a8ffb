"""Data directories at a URL: `--data hf://datasets/USER/NAME`, s3://BUCKET/DIR, whatever fsspec reads.

They have the files of a local one, which are downloaded before the data is opened, once for all
processes of a machine and for later runs. A repository on the Hub is downloaded by huggingface_hub
into its cache, other directories into $HF_HOME/nanogpt/BUCKET-DIR-<version>/. The version is a hash
of the file list (sizes, dates), so changed files get a new directory.
"""

import errno
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from nanogpt.data.files import first_line, write_atomic

PATTERNS = ("*.bin", "*.ds", "*.json")  # a README.md may change


class Unreachable(ValueError):
    """Data at a URL that cannot be read; the message is one line for the user."""


def local(directory: Path | str) -> Path:
    """The directory itself; of one at a URL, the copy of its files here. Raises Unreachable."""
    return download(str(directory)) if "://" in str(directory) else Path(directory)


@lru_cache  # a process keeps the files that it began with
def download(url: str) -> Path:
    """Downloads the files of the directory at a URL that are not here yet; returns the copy.

    Raises Unreachable if the directory does not exist or has no meta.json.
    """
    import fsspec
    from huggingface_hub import HfFileSystem

    with one_line_errors(url):
        fs, root = fsspec.core.url_to_fs(url)
        at = fs.resolve_path(root) if isinstance(fs, HfFileSystem) else None
        on_the_hub = hasattr(at, "repo_id")  # not so in a bucket
        directory = from_hub(at) if on_the_hub else from_elsewhere(fs, root.rstrip("/"), url)
    if not (directory / "meta.json").is_file():
        raise Unreachable(
            f"{url} has no meta.json: it must hold the files of a data directory (data_prep/README.md)"
        )
    return directory


def from_hub(at) -> Path:
    """Downloads a directory of a repository, at its present commit; `at` is its HfFileSystem path."""
    from huggingface_hub import snapshot_download

    prefix = f"{at.path_in_repo}/" if at.path_in_repo else ""
    snapshot = snapshot_download(
        at.repo_id,
        repo_type=at.repo_type,
        revision=at.revision,
        allow_patterns=[prefix + pattern for pattern in PATTERNS],
    )
    return Path(snapshot, prefix)


def from_elsewhere(fs, root: str, url: str) -> Path:
    """Downloads the directory `root` of an fsspec file system, and anew what was changed here.

    A copy gets a time of modification made from the version; a file with another one was changed.
    """
    from filelock import FileLock
    from huggingface_hub.constants import HF_HOME

    infos = [info for info in fs.ls(root, detail=True) if info["type"] == "file"]
    files = {Path(info["name"]).name: info for info in infos}
    files = {name: files[name] for name in sorted(files) if any(map(Path(name).match, PATTERNS))}
    stamps = [sorted((key, str(value)) for key, value in info.items()) for info in files.values()]
    version = hashlib.sha256(repr((url, stamps)).encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.]+", "-", url.partition("://")[2])[-80:].strip("-")
    cache = Path(HF_HOME, "nanogpt", f"{name}-{version}")
    cache.mkdir(parents=True, exist_ok=True)
    stamp = int(version, 16) % 10**9 * 10**9  # ns
    with FileLock(cache / ".lock"):  # of several processes one downloads
        for name, info in files.items():
            copy = cache / name
            found = copy.stat() if copy.is_file() else None
            if found is None or (found.st_size, found.st_mtime_ns) != (info["size"], stamp):
                print(f"downloading {url}: {name} ...", file=sys.stderr)
                with fs.open(f"{root}/{name}", "rb") as remote, write_atomic(copy) as file:
                    shutil.copyfileobj(remote, file, 1 << 20)
                    if file.tell() != info["size"]:
                        raise ValueError(f"{name} was changed while it was downloaded")
                os.utime(copy, ns=(stamp, stamp))
    return cache


@contextmanager
def one_line_errors(url: str) -> Iterator[None]:
    """Turns whatever fsspec's file systems raise into one line."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise Unreachable(
                f"the disk has no room for {url}: set HF_HOME to a directory on a larger one"
            ) from None
        raise Unreachable(
            f"{url} cannot be read ({first_line(error)}): check the address and the network; "
            "`hf auth login` gives access to private data on the Hub"
        ) from None
