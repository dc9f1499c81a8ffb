"""Data directories at a URL that fsspec reads: `--data hf://datasets/USER/NAME`, s3://BUCKET/DIR.

Their files are downloaded before the data is opened, once for all processes of a machine and for
later runs. A repository on the Hub is downloaded by huggingface_hub into its cache, other
directories into $HF_HOME/nanogpt/BUCKET-DIR-<version>/. The version is a hash of the file list
(sizes, dates), so changed files get a new directory.
"""

import errno
import hashlib
import re
import shutil
import sys
from functools import lru_cache
from pathlib import Path

from nanogpt.data.files import first_line, write_atomic

PATTERNS = ("*.bin", "*.ds", "*.json")  # a README.md may change


class Unreachable(ValueError):
    """Data at a URL that cannot be read; the message is one line for the user."""


def local(directory: Path | str) -> Path:
    """The directory itself, or the local copy of one at a URL. Raises Unreachable."""
    return download(str(directory)) if "://" in str(directory) else Path(directory)


@lru_cache  # a process keeps the files that it began with
def download(url: str) -> Path:
    """Downloads the files of the directory at a URL that are not here yet; returns the copy.

    Raises Unreachable if the directory does not exist or has no meta.json.
    """
    import fsspec
    from huggingface_hub import HfFileSystem

    try:
        fs, root = fsspec.core.url_to_fs(url)
        at = fs.resolve_path(root) if isinstance(fs, HfFileSystem) else None
        on_the_hub = hasattr(at, "repo_id")  # a bucket has none
        directory = from_hub(at) if on_the_hub else from_elsewhere(fs, root.rstrip("/"), url)
    except Exception as error:  # file systems raise whatever they like
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            why = f"the disk has no room for {url}: set HF_HOME to a directory on a larger one"
            raise Unreachable(why) from None
        raise Unreachable(
            f"{url} cannot be read ({first_line(error)}): check the address and the network; "
            "`hf auth login` gives access to private data on the Hub"
        ) from None
    if not (directory / "meta.json").is_file():
        must = "it must hold the files of a data directory (data_prep/README.md)"
        raise Unreachable(f"{url} has no meta.json: {must}")
    return directory


def from_hub(at) -> Path:
    """Downloads a directory of a repository at its present commit; `at` is HfFileSystem's path."""
    from huggingface_hub import snapshot_download

    prefix = f"{at.path_in_repo}/" if at.path_in_repo else ""
    patterns = [prefix + pattern for pattern in PATTERNS]
    where = {"repo_type": at.repo_type, "revision": at.revision}
    return Path(snapshot_download(at.repo_id, **where, allow_patterns=patterns), prefix)


def from_elsewhere(fs, root: str, url: str) -> Path:
    """Downloads what is not here yet of the directory `root` of an fsspec file system."""
    from filelock import FileLock
    from huggingface_hub.constants import HF_HOME

    infos = {Path(i["name"]).name: i for i in fs.ls(root, detail=True) if i["type"] == "file"}
    names = sorted(name for name in infos if any(map(Path(name).match, PATTERNS)))
    stamps = [sorted((key, str(value)) for key, value in infos[name].items()) for name in names]
    version = hashlib.sha256(repr((url, stamps)).encode()).hexdigest()[:12]
    readable = re.sub(r"[^\w.]+", "-", url.partition("://")[2])[-80:].strip("-")
    cache = Path(HF_HOME, "nanogpt", f"{readable}-{version}")
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".lock"):  # of several processes one downloads
        for name in names:
            copy, size = cache / name, infos[name]["size"]
            if copy.is_file() and copy.stat().st_size == size:
                continue
            print(f"downloading {url}: {name} ...", file=sys.stderr)
            with fs.open(f"{root}/{name}", "rb") as remote, write_atomic(copy) as file:
                shutil.copyfileobj(remote, file, 1 << 20)
                if file.tell() != size:
                    raise ValueError(f"{name} was changed while it was downloaded")
    return cache
