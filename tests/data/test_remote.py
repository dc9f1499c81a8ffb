"""Data at a URL: the same windows as those of the local directory."""

from types import SimpleNamespace

import fsspec
import huggingface_hub
import numpy as np
import pytest
import torch
from directories import change, numbered
from huggingface_hub import constants

from nanogpt.data.remote import download
from nanogpt.data.tokens import TokenDataset, read_meta

URL = "memory://bucket/mine"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own, and no memory of earlier URLs."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    download.cache_clear()
    fsspec.filesystem("memory").store.clear()
    return tmp_path / "hf" / "nanogpt"


def put(directory, url: str) -> str:
    """Uploads the files of a directory; returns the URL."""
    fs, root = fsspec.url_to_fs(url)
    fs.makedirs(root, exist_ok=True)
    for path in directory.iterdir():
        fs.pipe_file(f"{root}/{path.name}", path.read_bytes())
    download.cache_clear()
    return url


@pytest.fixture
def numbers(tmp_path):
    """A data directory whose training tokens count up, in two files."""
    directory = tmp_path / "numbers"
    directory.mkdir()
    whole = numbered(directory, 1009, 16).tokens[:]
    names = ["train-00001.bin", "train-00002.bin"]
    for name, part in zip(names, (whole[:410], whole[410:]), strict=True):
        part.tofile(directory / name)
    change(directory, "train", files=names)
    return directory


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_the_windows_at_a_url_are_those_of_the_local_directory(tmp_path, numbers, protocol):
    url = put(numbers, URL if protocol == "memory" else f"file://{tmp_path}/elsewhere")
    for split in ("train", "val"):
        here, there = TokenDataset(numbers, split, 16), TokenDataset(url, split, 16)
        assert torch.equal(here.batch(5, 0, 150)[0], there.batch(5, 0, 150)[0])


def test_files_are_downloaded_once_and_changed_ones_into_a_new_directory(cache, numbers, monkeypatch):
    before = TokenDataset(put(numbers, URL), "train", 16).batch(5, 0, 40)[0]
    download.cache_clear()  # as in a new process
    with monkeypatch.context() as patched:
        patched.setattr(type(fsspec.filesystem("memory")), "get_file", None)
        assert torch.equal(TokenDataset(URL, "train", 16).batch(5, 0, 40)[0], before)
    np.zeros(410, "<u4").tofile(numbers / "train-00001.bin")
    changed = TokenDataset(put(numbers, URL), "train", 16)
    assert torch.equal(changed.batch(5, 0, 40)[0], TokenDataset(numbers, "train", 16).batch(5, 0, 40)[0])
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize("url", ["memory://nothing", "nonsense://a", "http://127.0.0.1:9/x"])
def test_what_is_wrong_with_a_url_is_one_line(url):
    with pytest.raises(ValueError) as error:
        read_meta(url)
    assert str(error.value).startswith(f"{url} cannot be read (") and "\n" not in str(error.value)


def test_a_repository_on_the_hub_is_read_at_one_commit(numbers, monkeypatch):
    """Found at a revision, its files are fetched at the same one, once."""
    at = {"repo_id": "alice/data", "repo_type": "dataset", "revision": "1a2b"}
    asked = []

    def snapshot_download(repo_id, **options):
        asked.append({"repo_id": repo_id} | options)
        return str(numbers.parent)

    resolved = SimpleNamespace(**at, path_in_repo=numbers.name)
    monkeypatch.setattr(huggingface_hub.HfFileSystem, "resolve_path", lambda fs, path: resolved)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    data = TokenDataset(f"hf://datasets/alice/data/{numbers.name}", "train", 16)
    assert torch.equal(data.batch(5, 0, 20)[0], TokenDataset(numbers, "train", 16).batch(5, 0, 20)[0])
    assert asked == [at | {"allow_patterns": f"{numbers.name}/*"}]
