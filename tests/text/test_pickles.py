"""Pickles that would run something, or are damaged: refused in one line, and nothing has run."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from nanogpt.text.pickles import read_characters, read_checkpoint


class Calls:
    """Calls `function(*arguments)` when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture(params=["system", "getattr", "numpy"])
def hostile(request, tmp_path):
    """Touches a file when unpickled, or asks for a harmless function, a step to it."""
    touch = Calls(os.system, f"touch {tmp_path / 'owned'}")
    return {"system": touch, "getattr": Calls(getattr, "text", "upper"), "numpy": np.float64(1.5)}[request.param]


def one_line(read, path) -> str:
    with pytest.raises(ValueError) as error:
        read(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    return str(error.value)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_hostile_meta_pkl_is_refused(tmp_path, hostile, protocol):
    meta = {"vocab_size": 1, "itos": {0: "a"}, "stoi": hostile}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta, protocol))
    assert "it asks for " in one_line(read_characters, tmp_path / "meta.pkl")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_checkpoint_is_refused(tmp_path, hostile, zipped):
    contents = {"model": {}, "model_args": {}, "iter_num": 1, "config": hostile}
    torch.save(contents, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=zipped)
    assert "(GLOBAL " in one_line(read_checkpoint, tmp_path / "ckpt.pt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04.", b"(" * 10_000, b"\x80\x04\x8e" + b"\xff" * 8])
@pytest.mark.parametrize("read", [read_characters, read_checkpoint])
def test_damaged_files_are_named(tmp_path, read, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert one_line(read, path).startswith(f"{path} cannot be read")


@pytest.mark.parametrize("itos", [None, {0: "a", 2: "b"}, {0: "a", 1: "bc"}, {0: "a", 1: "a"}, {0: "a", 1: 5}])
def test_a_meta_pkl_of_something_else_is_named(tmp_path, itos):
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps({"vocab_size": 2, "itos": itos}))
    assert "it needs 'itos'" in one_line(read_characters, path)


def test_a_checkpoint_of_something_else_is_named(tmp_path):
    torch.save({"model": {}, "iter_num": 1}, tmp_path / "ckpt.pt")
    assert "is not a nanoGPT checkpoint" in one_line(read_checkpoint, tmp_path / "ckpt.pt")


def test_what_nanogpt_writes_is_read(tmp_path):
    characters = "\n ab你"
    itos = dict(enumerate(characters))
    meta = {"vocab_size": 5, "itos": itos, "stoi": {c: i for i, c in itos.items()}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    assert read_characters(tmp_path / "meta.pkl") == characters

    weights = OrderedDict(w=torch.arange(3.0), lm_head=torch.arange(3.0))
    contents = {"model": weights, "model_args": {"bias": True}, "iter_num": 7, "best_val_loss": torch.tensor(1.5)}
    torch.save(contents, tmp_path / "ckpt.pt")
    read = read_checkpoint(tmp_path / "ckpt.pt")
    assert torch.equal(read["model"]["w"], torch.arange(3.0))
    assert (read["iter_num"], read["best_val_loss"].item()) == (7, 1.5)
