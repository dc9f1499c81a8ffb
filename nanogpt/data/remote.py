"""Data directories at a URL: `--data hf://datasets/USER/NAME`, s3://BUCKET/DIR, or any other that fsspec reads.

They have the files of a local one. meta.json, tokenizer.json and the validation tokens are downloaded at the start, the
training tokens in shards of 1 MiB, each when a window in it is needed for the first time. All go into a cache:

    $HF_HOME/nanogpt/datasets-USER-NAME-<version>/   meta.json  tokenizer.json  val.bin  train.bin.shards/000000 …

The version stands for the files as they are now: changed files get a cache of their own, and on the Hub a process stays
at the commit that it began with. The windows and their order are those of a local file, so a resumed run needs nothing
but the URL. That order is a permutation of the whole text: each window of a run's beginning is in a shard of its own,
and after as many windows as there are shards most of the text is in the cache.
"""

import errno
import hashlib
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from nanogpt.data.files import first_line, waiting, write_atomic

SHARD = 1 << 20  # bytes, a multiple of the size of a token
THREADS = 16  # that download at a time
PAUSES = (1, 2, 4, 8, 16)  # seconds between attempts to download a shard


class Unreachable(ValueError):
    """Data at a URL that cannot be read; the message is one line for the user."""


class Source(NamedTuple):
    """A directory at a URL."""

    url: str
    fs: Any  # fsspec's file system
    root: str  # the directory in it
    files: dict[str, dict]  # what `fs` says of each file, by name
    cache: Path


def is_url(directory: Path | str) -> bool:
    return "://" in str(directory)


def local(directory: Path | str) -> Path:
    """The directory itself, or the cache of one at a URL, with its meta.json and tokenizer.json. Raises Unreachable."""
    if not is_url(directory):
        return Path(directory)
    source = find(str(directory))
    for name in ("meta.json", "tokenizer.json"):
        download(source, name)
    return source.cache


def token_file(directory: Path | str, name: str, split: str, dtype: np.dtype) -> "Path | Shards":
    """A token file of a data directory; of one at a URL the training tokens are read in shards."""
    if not is_url(directory):
        return Path(directory, name)
    source = find(str(directory))
    return Shards(source, name, dtype) if split == "train" else download(source, name)


@lru_cache
def find(url: str) -> Source:
    """Lists the directory at a URL. Raises Unreachable if there is none, or no meta.json in it."""
    import fsspec
    from huggingface_hub.constants import HF_HOME

    with explained(url), waiting(f"looking for {url}"):
        fs, root = fsspec.core.url_to_fs(url)
        root = pinned(fs, root.rstrip("/"))
        files = {info["name"].rpartition("/")[2]: info for info in fs.ls(root, detail=True)}
    if "meta.json" not in files:
        raise Unreachable(f"{url} has no meta.json: it must hold the files of a data directory (data_prep/README.md)")
    data = [name for name in sorted(files) if name.endswith((".bin", ".ds", ".json"))]  # a README.md may change
    stamps = [[(key, str(value)) for key, value in sorted(files[name].items()) if key != "name"] for name in data]
    version = hashlib.sha256(repr((url, data, stamps)).encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.]+", "-", url.partition("://")[2])[-80:].strip("-")
    return Source(url, fs, root, files, Path(HF_HOME, "nanogpt", f"{name}-{version}"))


def pinned(fs: Any, root: str) -> str:
    """The path in a repository of the Hub at its present commit, so that no upload changes the data of a run."""
    from huggingface_hub import HfApi, HfFileSystem

    at = fs.resolve_path(root) if isinstance(fs, HfFileSystem) else None
    if not hasattr(at, "repo_id"):  # not on the Hub, or in a bucket, which has no commits
        return root
    commit = HfApi().repo_info(at.repo_id, repo_type=at.repo_type, revision=at.revision).sha
    kind = "" if at.repo_type == "model" else f"{at.repo_type}s/"
    return f"{kind}{at.repo_id}@{commit}/{at.path_in_repo}".rstrip("/")


@contextmanager
def explained(what: object) -> Iterator[None]:
    """Turns whatever fsspec's file systems raise into one line."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise Unreachable(f"the disk has no room for {what}: let HF_HOME name a larger one for its cache") from None
        hint = "check the address and the network; `hf auth login` gives access to private data on the Hub"
        raise Unreachable(f"{what} cannot be read ({first_line(error)}): {hint}") from None


def download(source: Source, name: str) -> Path:
    """The path of a file in the cache; it is downloaded if the directory has it and the cache has no whole copy."""
    path, what = source.cache / name, f"{source.url}/{name}"
    if name in source.files and not is_whole(path):
        with (
            explained(what),
            waiting(f"downloading {what}"),
            write_atomic(path) as file,
            source.fs.open(f"{source.root}/{name}", "rb") as remote,
        ):
            shutil.copyfileobj(remote, file, SHARD)
        record(path)
    return path


def record(path: Path) -> None:
    """Records the checksum of a file in the cache, by which `is_whole` finds later damage."""
    with explained(path), open(path, "rb") as file, write_atomic(checksum(path)) as written:
        written.write(hashlib.file_digest(file, "sha256").hexdigest().encode())
    is_whole.cache_clear()


def checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


@lru_cache
def is_whole(path: Path) -> bool:
    """Whether a file in the cache is what was downloaded; a process checks each file once."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == checksum(path).read_text(encoding="ascii")
    except (OSError, ValueError):
        return False


class Shards:
    """A token file at a URL. It has what `Tokens` asks of a path, and is an array of tokens: len(), [start:stop]."""

    def __init__(self, source: Source, name: str, dtype: np.dtype):
        self.source, self.name, self.dtype = source, name, dtype
        self.size = int(source.files.get(name, {}).get("size") or 0)  # bytes
        self.each = SHARD // dtype.itemsize  # tokens in a shard
        self.there: set[int] = set()  # shards that are known to be in the cache

    def __str__(self) -> str:
        return f"{self.source.url}/{self.name}"

    def __fspath__(self) -> str:
        raise Unreachable(f"{self} is read in shards: for this, download it and name the local data directory")

    def is_file(self) -> bool:
        return self.name in self.source.files

    def stat(self) -> SimpleNamespace:
        return SimpleNamespace(st_size=self.size, st_mtime_ns=0)

    def __len__(self) -> int:
        return self.size // self.dtype.itemsize

    def __getitem__(self, place: slice) -> np.ndarray:
        start, stop, _ = place.indices(len(self))
        self.fetch([start], stop - start)
        parts = [np.zeros(0, self.dtype)]
        while start < stop:
            k, skipped = divmod(start, self.each)
            count = min(self.each - skipped, stop - start)
            parts.append(np.fromfile(self.path(k), self.dtype, count, offset=skipped * self.dtype.itemsize))
            if len(parts[-1]) < count:
                raise Unreachable(f"{self.path(k)} was changed while it was read: resume, and it is downloaded again")
            start += count
        return np.concatenate(parts)

    def path(self, k: int) -> Path:
        return self.source.cache / f"{self.name}.shards" / f"{k:06}"

    def fetch(self, starts, length: int) -> None:
        """Downloads, side by side, the shards of windows that the cache lacks; windows may lie outside this file."""
        spans = [(max(start, 0), min(start + length, len(self))) for start in map(int, starts)]
        ranges = [range(start // self.each, -(-stop // self.each)) for start, stop in spans if start < stop]
        needed = {k for shards in ranges for k in shards} - self.there
        missing = [k for k in sorted(needed) if not is_whole(self.path(k))]
        if missing:
            with ThreadPoolExecutor(min(THREADS, len(missing))) as pool:
                list(pool.map(self.download, missing))
        self.there |= needed

    def download(self, k: int) -> None:
        """Downloads shard `k`. Raises Unreachable if all attempts fail, or if the file has become shorter."""
        for pause in (*PAUSES, None):
            try:
                data = self.read(k)
                break
            except Unreachable:
                if pause is None:
                    raise
                time.sleep(pause)
        if len(data) != min(SHARD, self.size - k * SHARD):
            raise Unreachable(f"{self} has changed while it was read: start again, with --resume=auto")
        with explained(self), write_atomic(self.path(k)) as file:
            file.write(data)
        record(self.path(k))

    def read(self, k: int) -> bytes:
        # some file systems would read ahead
        with explained(self), self.source.fs.open(f"{self.source.root}/{self.name}", "rb", cache_type="none") as file:
            file.seek(k * SHARD)
            return file.read(min(SHARD, self.size - k * SHARD))
