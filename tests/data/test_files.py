"""Files: written atomically, or fetched from the Hub."""

import errno
import os

import pytest
import torch
from directories import numbered

from nanogpt.data.files import local, write_atomic
from nanogpt.data.meta import read_meta
from nanogpt.data.tokens import TokenDataset


def full(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_file_and_is_named(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    named = pytest.raises(OSError, match=r"No space left.*tokenizer\.json")
    with named, write_atomic(path) as file:
        file.write(b"new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["tokenizer.json"]


@pytest.mark.parametrize("url", ["hf://datasets/alice/nothing", "s3://bucket/mine", "hf://x"])
def test_what_is_wrong_with_a_url_is_one_line(hub, url):
    with pytest.raises(ValueError) as error:
        read_meta(url)
    assert str(error.value).startswith(f"{url} cannot be read (") and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["", "datasets/"])
def test_a_repository_on_the_hub_is_read_at_one_commit(hub, tmp_path, kind):
    here = numbered(tmp_path, 1009, 16)
    files = {f"tokens/{path.name}": path.read_bytes() for path in tmp_path.iterdir()}
    hub.add("alice/data", files)
    local.cache_clear()  # as in a new process
    data = TokenDataset(f"hf://{kind}alice/data/tokens", "train", 16)
    broken = {name: bytes(len(content)) if name.endswith(".bin") else content for name, content in files.items()}
    hub.repos["alice/data"].commit("main", broken, "other tokens")
    again = TokenDataset(f"hf://{kind}alice/data/tokens", "train", 16)
    assert torch.equal(data.batch(5, 0, 20)[0], here.batch(5, 0, 20)[0])
    assert torch.equal(again.batch(5, 0, 20)[0], here.batch(5, 0, 20)[0])
