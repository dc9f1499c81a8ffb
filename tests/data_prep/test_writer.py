"""Writing: interruptions, and what is never overwritten."""

import random
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from texts import documents, expected, fork, put, save_as, sha256, small_bpe, tokens, write_jsonl
from tiny_run import Run

from data_prep import text, writer
from nanogpt import TrainConfig
from nanogpt.data.tokens import TokenDataset
from nanogpt.rundir import lock


@pytest.fixture
def arguments(tmp_path) -> dict:
    """Those of `text.prepare` for 300 documents as bytes."""
    path = write_jsonl(tmp_path / "in.jsonl", documents())
    return {"inputs": [path], "out": tmp_path / "data", "tokenizer": "bytes", "val_fraction": 0.1}


def prepare(**arguments) -> list[str]:
    """Prepares data and returns what is said."""
    said: list[str] = []
    text.prepare(**arguments, say=said.append)
    return said


def interrupt_at(monkeypatch, batches: int, **arguments) -> None:
    """Prepares data with Ctrl-C after so many batches are written, each of which is recorded."""
    append, count = writer.TokenFile.append, iter(range(2 * batches))

    def interrupted(self, *args) -> None:
        if next(count, None) is None:
            raise KeyboardInterrupt
        append(self, *args)

    monkeypatch.setattr(writer, "SECONDS", 0.0)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(writer.TokenFile, "append", interrupted)
        prepare(**arguments)


def test_killed_at_ten_random_moments_it_writes_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SECONDS", 0.01)
    monkeypatch.setattr(writer, "BATCH", 1 << 13)
    texts, once, often = documents(1000), tmp_path / "once", tmp_path / "often"
    inputs = [write_jsonl(tmp_path / "a.jsonl", texts[:800])]
    inputs.append(save_as("csv", tmp_path, texts[700:]))
    arguments = {"inputs": inputs, "tokenizer": small_bpe(), "val_fraction": 0.1}
    start = time.perf_counter()
    prepare(**arguments, out=once)
    seconds, chance = time.perf_counter() - start, random.Random(0)
    with open(tmp_path / "said", "a") as said:
        arguments |= {"out": often, "say": partial(print, file=said, flush=True)}
        for _ in range(10):
            process = fork.Process(target=text.prepare, kwargs=arguments)
            process.start()
            time.sleep(chance.uniform(0, 0.6 * seconds))
            process.kill()
            process.join()
        text.prepare(**arguments)
    assert (tmp_path / "said").read_text().count("resuming after ") >= 1
    assert sha256(often) == sha256(once)
    assert (often / "meta.json").read_bytes() == (once / "meta.json").read_bytes()
    assert {f.name for f in often.glob("[!.]*")} == {f.name for f in once.glob("[!.]*")}


def test_what_was_begun_with_other_settings_is_begun_anew(tmp_path, monkeypatch, arguments):
    monkeypatch.setattr(writer, "BATCH", 1 << 12)
    interrupt_at(monkeypatch, 20, **arguments)
    with pytest.raises(ValueError, match="too short"):
        prepare(**arguments | {"inputs": [put(tmp_path / "a.txt", "a")]})
    assert "resuming" not in "".join(prepare(**arguments))
    interrupt_at(monkeypatch, 20, **arguments | {"out": tmp_path / "b"})
    assert "resuming" not in "".join(prepare(**arguments | {"out": tmp_path / "b", "val_fraction": 0.2}))
    assert tokens(tmp_path / "b", "val").tolist() == expected(documents(), 0.2, True)


def test_a_second_command_in_the_same_directory_is_refused(tmp_path, arguments):
    in_use = r"data is in use by another process"
    with lock(tmp_path / "data"), pytest.raises(ValueError, match=in_use):
        prepare(**arguments)
    prepare(**arguments)


def test_a_full_disk_at_the_end_leaves_the_earlier_data(tmp_path, monkeypatch, arguments):
    prepare(**arguments)
    before = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}

    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "write_json", full)
    with pytest.raises(OSError):
        prepare(**arguments | {"val_fraction": 0.2})
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before


def test_a_vocabulary_above_65536_takes_four_bytes_a_token(tmp_path, arguments):
    prepare(**arguments | {"tokenizer": small_bpe(eot=70_000)})
    prepare(**arguments | {"tokenizer": small_bpe(), "out": tmp_path / "narrow"})
    wide, narrow = tokens(tmp_path / "data", "train"), tokens(tmp_path / "narrow", "train")
    assert (wide.dtype, narrow.dtype) == (np.uint32, np.uint16)
    assert np.array_equal(np.where(wide == 70_000, 260, wide), narrow)
    assert TokenDataset(tmp_path / "data", "train", 64).batch(0, 0, 40)[0].max() == 70_000


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("name", ["train.bin", "tokenizer.json", "meta.json"])
def test_files_of_others_are_not_overwritten(tmp_path, name, interrupted, arguments):
    if interrupted:
        put(tmp_path / "data" / writer.NEW / writer.PROGRESS, "{}")
    path = put(tmp_path / "data" / name, "{}")
    with pytest.raises(ValueError, match=f"{name} is not an earlier output"):
        prepare(**arguments)
    assert Path(path).read_text() == "{}"


def kill_at(monkeypatch, act, path: Path, **arguments) -> None:
    """Prepares data, killed just before `act`, a method of Path, does something to that file."""

    def kill(self, *args, **options):
        if self == path:
            raise KeyboardInterrupt
        return act(self, *args, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, act.__name__, kill)
        prepare(**arguments)


STEPS = [(Path.unlink, name) for name in writer.FILES]
STEPS += [(Path.replace, f"{writer.NEW}/{name}") for name in writer.FILES]


@pytest.fixture(params=STEPS, ids=lambda step: f"{step[0].__name__} {step[1]}")
def killed(tmp_path, monkeypatch, arguments, request) -> dict:
    """Arguments whose data was to replace earlier data, killed at a step of moving the files."""
    prepare(**arguments | {"val_fraction": 0.2})
    act, name = request.param
    kill_at(monkeypatch, act, tmp_path / "data" / name, **arguments)
    return arguments


def test_killed_while_files_are_moved_the_next_preparation_completes_them(tmp_path, killed):
    with pytest.raises(ValueError, match="too short"):
        prepare(**killed | {"inputs": [put(tmp_path / "a.txt", "a")]})
    for split in ("train", "val"):
        assert tokens(tmp_path / "data", split).tolist() == expected(documents(), 0.1, split == "val")
    assert not (tmp_path / "data" / writer.NEW).exists()


def test_killed_while_files_are_moved_a_recipe_prepares_its_own_data_again(tmp_path, killed):
    settings = TrainConfig(data=str(killed["out"]), out_dir=str(tmp_path / "out"), device="cpu", max_iters=1)
    run = Run(TINY, settings, prepare_data=lambda out: prepare(**killed | {"val_fraction": 0.2}))
    assert run.train_data.tokens[:].tolist() == expected(documents(), 0.2, False)


def test_killed_while_files_are_moved_it_keeps_those_that_others_put_there(tmp_path, monkeypatch, arguments):
    kill_at(monkeypatch, Path.replace, tmp_path / "data" / writer.NEW / "train.bin", **arguments)
    path = put(tmp_path / "data" / "val.bin", "theirs")
    with pytest.raises(ValueError, match=r"val.bin is not an earlier output"):
        prepare(**arguments)
    assert Path(path).read_text() == "theirs"
