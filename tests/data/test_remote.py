import errno
import io
import json
import os

import fsspec
import numpy as np
import pytest
import torch
from huggingface_hub import constants

from nanogpt.data.remote import Unreachable, download, local
from nanogpt.data.tokenizer import load_tokenizer, sha256
from nanogpt.data.tokens import TokenDataset, read_meta

URL = "memory://bucket/mine"
TOKENS = 1009  # 63 windows of 16 in an epoch


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own, and no memory of earlier URLs."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(os, "fsync", lambda file: None)
    download.cache_clear()
    fsspec.filesystem("memory").store.clear()
    return tmp_path / "hf" / "nanogpt"


def put(directory, url: str) -> str:
    """Uploads the files of a directory; returns the URL."""
    fs, root = fsspec.core.url_to_fs(url)
    fs.makedirs(root, exist_ok=True)
    for path in directory.iterdir():
        if path.is_file():
            fs.pipe_file(f"{root}/{path.name}", path.read_bytes())
    download.cache_clear()
    return url


@pytest.fixture
def numbers(tmp_path, data):
    """A data directory whose training tokens count up, in two files."""
    directory = tmp_path / "numbers"
    directory.mkdir()
    tokens = np.arange(TOKENS, dtype="<u4")
    names = ("train-00001.bin", "train-00002.bin")
    for name, part in zip(names, (tokens[:410], tokens[410:]), strict=True):
        part.tofile(directory / name)
    tokens[:100].tofile(directory / "val.bin")
    splits = {"train": {"tokens": TOKENS, "bytes": TOKENS, "largest": TOKENS - 1, "files": list(names)}}
    splits["val"] = {"tokens": 100, "bytes": 100, "largest": 99}
    (directory / "tokenizer.json").write_bytes((data / "tokenizer.json").read_bytes())
    meta = {"vocab_size": TOKENS, "dtype": "uint32", "splits": splits}
    meta["tokenizer_sha256"] = sha256(directory)  # as if it had made these tokens
    (directory / "meta.json").write_text(json.dumps(meta))
    return directory


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_the_windows_at_a_url_are_those_of_the_local_directory(tmp_path, numbers, protocol):
    url = put(numbers, URL if protocol == "memory" else f"file://{tmp_path}/elsewhere")
    here, there = TokenDataset(numbers, "train", 16), TokenDataset(url, "train", 16)
    for first in range(0, 2 * here.windows_per_epoch, 7):
        for a, b in zip(here.batch(5, first, 7), there.batch(5, first, 7), strict=True):
            assert torch.equal(a, b)
    assert there.tokens[400:420].tolist() == list(range(400, 420))
    val = zip(TokenDataset(numbers, "val", 16).whole_split(4), TokenDataset(url, "val", 16).whole_split(4), strict=True)
    assert all(torch.equal(a[0], b[0]) for a, b in val)
    assert load_tokenizer(url).vocab_size == load_tokenizer(numbers).vocab_size


def test_changed_files_get_a_cache_of_their_own(cache, numbers):
    TokenDataset(put(numbers, URL), "train", 16).batch(5, 0, 40)
    fsspec.filesystem("memory").pipe_file("/bucket/mine/README.md", b"a page, no data")
    download.cache_clear()
    TokenDataset(URL, "train", 16)
    assert len(list(cache.iterdir())) == 1
    for name in ("train-00001.bin", "train-00002.bin"):
        tokens = np.fromfile(numbers / name, dtype="<u4")
        tokens[::-1].tofile(numbers / name)
    changed = TokenDataset(put(numbers, URL), "train", 16)
    assert torch.equal(changed.batch(5, 0, 40)[0], TokenDataset(numbers, "train", 16).batch(5, 0, 40)[0])
    assert len(list(cache.iterdir())) == 2


def test_what_is_wrong_with_a_url_is_one_line(numbers):
    for url, message in [
        ("memory://nothing", "memory://nothing cannot be read (FileNotFoundError"),
        ("nonsense://a", "nonsense://a cannot be read (ValueError: Protocol not known: nonsense"),
        ("http://127.0.0.1:9/x", "http://127.0.0.1:9/x cannot be read ("),
    ]:
        with pytest.raises(ValueError) as error:
            read_meta(url)
        assert str(error.value).startswith(message) and "\n" not in str(error.value)
    (numbers / "meta.json").rename(numbers / "other.json")
    with pytest.raises(
        ValueError, match=r"^memory://bucket/mine has no meta.json: it must hold the files of a data dir"
    ):
        read_meta(put(numbers, URL))


@pytest.mark.parametrize("kind", ["", "datasets/"])
def test_a_repository_on_the_hub_is_read_at_one_commit(hub, cache, tmp_path, numbers, monkeypatch, kind):
    for name, value in hub.environment(None, tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template[template.index("/{") :])
    files = {f"tokens/{path.name}": path.read_bytes() for path in numbers.iterdir()}
    hub.add("alice/data", files)
    data = TokenDataset(f"hf://{kind}alice/data/tokens", "train", 16)
    before, later = data.batch(5, 0, 2)[0], TokenDataset(numbers, "train", 16).batch(5, 2, 20)[0]
    broken = {name: bytes(len(content)) if name.endswith(".bin") else content for name, content in files.items()}
    hub.repos["alice/data"].commit("main", broken, "other tokens")
    assert torch.equal(before, TokenDataset(numbers, "train", 16).batch(5, 0, 2)[0])
    assert torch.equal(data.batch(5, 2, 20)[0], later)
    asked = [path for method, path, _ in hub.requests if "/resolve/" in path]
    assert asked and not any("/resolve/main/" in path for path in asked)
    with pytest.raises(Unreachable, match=r"^hf://alice/nothing cannot be read \("):
        local("hf://alice/nothing")


def test_files_are_downloaded_once_and_truncated_ones_again(cache, numbers, monkeypatch):
    url, opened = put(numbers, URL), []
    memory = type(fsspec.filesystem("memory"))
    real = memory.open
    monkeypatch.setattr(memory, "open", lambda *args, **kwargs: opened.append(args[1]) or real(*args, **kwargs))
    local(url)
    assert len(opened) == 5  # meta.json, tokenizer.json and three token files
    (copy,) = cache.glob("*/train-00002.bin")
    copy.write_bytes(copy.read_bytes()[:-8])
    opened.clear()
    download.cache_clear()  # as in a new process
    local(url)
    assert [path.rpartition("/")[2] for path in opened] == ["train-00002.bin"]
    assert copy.read_bytes() == (numbers / "train-00002.bin").read_bytes()


def test_a_file_that_changes_while_it_is_downloaded_is_named_and_not_kept(cache, numbers, monkeypatch):
    url, memory = put(numbers, URL), type(fsspec.filesystem("memory"))
    monkeypatch.setattr(memory, "open", lambda *args, **kwargs: io.BytesIO(b"short"))
    with pytest.raises(Unreachable, match=r"meta.json was changed while it was downloaded"):
        local(url)
    assert not list(cache.glob("*/*.json"))


def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_file(cache, numbers, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    url = put(numbers, URL)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unreachable, match=r"^the disk has no room for memory://bucket/mine: set HF_HOME"):
        local(url)
    assert not list(cache.glob("*/*.json"))
