"""Files: written atomically, or fetched from the Hub."""

import errno
import os

import huggingface_hub
import pytest
import torch
from directories import numbered
from texts import put

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


@pytest.mark.parametrize("url", ["hf://datasets/alice/nothing", "hf://datasets/alice", "https://example.com/a"])
def test_what_is_wrong_with_a_url_is_one_line(monkeypatch, url):
    def refuse(name, **options):
        raise FileNotFoundError(f"there is no {name}\nor it is private")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError) as error:
        load_meta(url)
    assert str(error.value).startswith(f"{url} cannot be read (") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "path, revision, folder",
    [
        ("", None, ""),
        ("/some/tokens//", None, "some/tokens"),
        ("@v1.0", "v1.0", ""),
        ("@refs%2Fpr%2F10/tokens", "refs/pr/10", "tokens"),
        ("@refs/convert/parquet/tokens/", "refs/convert/parquet", "tokens"),
    ],
)
def test_a_url_may_name_a_revision_and_a_folder(tmp_path, monkeypatch, path, revision, folder):
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *args, **options: asked.append((args, options)) or str(tmp_path)
    )
    local_copy.cache_clear()
    assert local_copy(f"hf://datasets/alice/data{path}") == tmp_path / folder
    ((args, options),) = asked
    assert args == ("alice/data",) and options["revision"] == revision


def test_data_in_the_hubs_cache_is_found_offline(tmp_path, monkeypatch):
    cached = tmp_path / "datasets--alice--data"
    tokens = cached / "snapshots" / ("1" * 40) / "tokens"
    tokens.mkdir(parents=True)
    numbered(tokens, 1009, 16)
    put(cached / "refs" / "main", "1" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    local_copy.cache_clear()
    assert local_copy("hf://datasets/alice/data/tokens") == tokens
    assert open_data("hf://datasets/alice/data/tokens", "train", 16).token_count == 1009


def test_a_folder_of_a_repository_on_the_hub_is_downloaded_once(tmp_path, monkeypatch):
    (tmp_path / "tokens").mkdir()
    here = numbered(tmp_path / "tokens", 1009, 16)
    downloads = []

    def download(repo_id, **options):
        downloads.append((repo_id, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    local_copy.cache_clear()  # as in a new process
    for _ in range(2):
        data = open_data("hf://datasets/alice/data/tokens", "train", 16)
        assert torch.equal(data.batch(5, 0, 20)[0], here.batch(5, 0, 20)[0])
    ((name, options),) = downloads
    assert name == "alice/data" and options["repo_type"] == "dataset"
    names = ["tokens/train.bin", "tokens/meta.json", "train.bin", "tokens/old/train.bin", "tokens/input.txt"]
    wanted = huggingface_hub.utils.filter_repo_objects(names, allow_patterns=options["allow_patterns"])
    assert list(wanted) == names[:2]
