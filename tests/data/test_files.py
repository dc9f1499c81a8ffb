import errno
import os

import pytest

from nanogpt.data.files import write_atomic


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
