"""Files: written atomically, or fetched from the Hub."""

import errno
import os
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from directories import numbered

from nanogpt.data.files import local_copy, write_atomic
from nanogpt.text.directories import load_meta, open_data


def full(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_file_and_is_named(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    named = pytest.raises(OSError, match=r"No space left.*tokenizer\.json")
    with named:
        write_atomic(path, b"new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["tokenizer.json"]


def test_what_is_wrong_with_a_url_is_one_line(monkeypatch):
    def refuse(self, url):
        raise FileNotFoundError(f"there is no {url}\nor it is private")

    monkeypatch.setattr(huggingface_hub.HfFileSystem, "resolve_path", refuse)
    with pytest.raises(ValueError) as error:
        load_meta("hf://datasets/alice/nothing")
    assert str(error.value).startswith("hf://datasets/alice/nothing cannot be read (") and "\n" not in str(error.value)


def test_a_folder_of_a_repository_on_the_hub_is_downloaded_once(tmp_path, monkeypatch):
    (tmp_path / "tokens").mkdir()
    here = numbered(tmp_path / "tokens", 1009, 16)
    at = SimpleNamespace(repo_id="alice/data", repo_type="dataset", revision="main", path_in_repo="tokens")
    downloads = []

    def download(repo_id, **options):
        downloads.append((repo_id, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub.HfFileSystem, "resolve_path", lambda self, url: at)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    local_copy.cache_clear()  # as in a new process
    for _ in range(2):
        data = open_data("hf://datasets/alice/data/tokens", "train", 16)
        assert torch.equal(data.batch(5, 0, 20)[0], here.batch(5, 0, 20)[0])
    wanted = {"repo_type": "dataset", "revision": "main", "allow_patterns": "tokens/*"}
    assert downloads == [("alice/data", wanted)]
