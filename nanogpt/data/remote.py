"""Data directories at a URL: `--data hf://datasets/USER/NAME`, or s3://BUCKET/DIR for fsspec.

A repository on the Hub is downloaded into the cache of huggingface_hub, other directories into
$HF_HOME/nanogpt, whose names end with a hash of the file list, so changed files get a new one.
"""

import hashlib
from functools import lru_cache
from pathlib import Path

from nanogpt.data.files import first_line


def local(directory: Path | str) -> Path:
    """The directory itself, or the local copy of one at a URL. Raises ValueError."""
    return download(str(directory)) if "://" in str(directory) else Path(directory)


@lru_cache  # a process keeps the files that it began with
def download(url: str) -> Path:
    """The local copy of the directory at a URL, downloaded once for all processes of a machine.

    Raises ValueError if it cannot be read.
    """
    import fsspec
    from filelock import FileLock
    from huggingface_hub import HfFileSystem, constants, snapshot_download

    try:
        fs, root = fsspec.url_to_fs(url)
        at = fs.resolve_path(root) if isinstance(fs, HfFileSystem) else None
        if hasattr(at, "repo_id"):  # a bucket has none
            folder = f"{at.path_in_repo}/" if at.path_in_repo else ""
            where = {"repo_type": at.repo_type, "revision": at.revision}
            return Path(snapshot_download(at.repo_id, **where, allow_patterns=f"{folder}*"), folder)
        version = hashlib.sha256(repr((url, fs.ls(root, detail=True))).encode()).hexdigest()[:12]
        copy = Path(constants.HF_HOME, "nanogpt", f"{Path(root).name}-{version}")
        copy.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{copy}.lock"):
            if not copy.exists():
                fs.get(f"{root}/", f"{copy}.part/", recursive=True)
                Path(f"{copy}.part").rename(copy)
        return copy
    except Exception as error:  # file systems raise whatever they like
        advice = "check the address, the network, the room on the disk, and `hf auth login`"
        raise ValueError(f"{url} cannot be read ({first_line(error)}): {advice}") from None
