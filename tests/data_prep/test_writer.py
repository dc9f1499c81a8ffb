"""Writing: what is left out, interruptions, and what is never overwritten."""

import json
import random
import resource
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from texts import (
    documents,
    documents_in,
    expected,
    fork,
    put,
    save_as,
    sha256,
    small_bpe,
    tokens,
    write_jsonl,
    written,
)

from data_prep import documents as reading
from data_prep import text, writer
from nanogpt.data.tokenizer import ByteTokenizer
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


def interrupt_at(monkeypatch, batches: int, **arguments) -> str:
    """Prepares data with Ctrl-C after so many batches are written; returns what is said."""
    append, count = writer.CorpusWriter.append, iter(range(batches))

    def interrupted(self, batch, found) -> None:
        if next(count, None) is None:
            raise KeyboardInterrupt
        append(self, batch, found)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt) as interrupt:
        patched.setattr(writer.CorpusWriter, "append", interrupted)
        prepare(**arguments)
    return str(interrupt.value)


def test_duplicates_are_left_out_on_request(tmp_path, arguments):
    texts = documents(200)
    arguments["inputs"] = [write_jsonl(tmp_path / "in.jsonl", texts + texts[:50] + texts)]
    assert "250 duplicate documents were left out" in prepare(**arguments, dedup=True)
    assert documents_in(tmp_path / "data") == sorted(texts)
    with pytest.raises(ValueError, match="--dedup compares all documents: it cannot be used with"):
        prepare(**arguments, dedup=True, shard=(1, 2))


@pytest.mark.parametrize("kind", ["notes", "jsonl"])
def test_long_documents_are_compared_as_a_whole(tmp_path, monkeypatch, arguments, kind):
    monkeypatch.setattr(reading, "PIECE", 1 << 8)
    monkeypatch.setattr(writer, "BATCH", 1 << 8)
    texts = [t for t in documents(40) if len(t) > 600][:10]
    texts += [*texts[:5], texts[0][:-1] + "?", texts[0] + "and more"]  # five are copies
    for i, t in enumerate(texts):
        put(tmp_path / "in" / f"{i:02}.txt", t)
    notes = [str(tmp_path / "in")]
    inputs = notes if kind == "notes" else [write_jsonl(tmp_path / "long.jsonl", texts)]
    said = prepare(**arguments | {"inputs": inputs}, dedup=True)
    assert "5 duplicate documents were left out" in said
    meta = json.loads((tmp_path / "data" / "meta.json").read_text())
    assert sum(meta["splits"][s]["documents"] for s in ("train", "val")) == 12
    assert sorted(written(tmp_path / "data")) == sorted("".join(texts[:10] + texts[15:]).encode())


@pytest.mark.parametrize("dedup", [False, True])
def test_killed_at_ten_random_moments_it_writes_the_same_bytes(tmp_path, monkeypatch, dedup):
    monkeypatch.setattr(writer, "SECONDS", 0.02)
    monkeypatch.setattr(writer, "BATCH", 1 << 14)
    texts, once, often = documents(4000), tmp_path / "once", tmp_path / "often"
    inputs = [write_jsonl(tmp_path / "a.jsonl", texts[:3000])]
    inputs.append(save_as("parquet", tmp_path, texts[2400:]))
    arguments = {"inputs": inputs, "tokenizer": small_bpe(), "val_fraction": 0.1, "dedup": dedup}
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
    assert (tmp_path / "said").read_text().count("resuming after the ") >= 1
    assert sha256(often) == sha256(once)
    assert (often / "meta.json").read_bytes() == (once / "meta.json").read_bytes()
    assert sorted(f.name for f in often.iterdir()) == sorted(f.name for f in once.iterdir())


@pytest.mark.parametrize("batches", [3, 20])
def test_interrupted_inside_a_long_document_it_writes_the_same_bytes(tmp_path, monkeypatch, batches):
    monkeypatch.setattr(reading, "PIECE", 1 << 8)
    monkeypatch.setattr(writer, "BATCH", 1 << 9)
    monkeypatch.setattr(writer, "SECONDS", 0.0)
    texts = documents(30)
    inputs = [write_jsonl(tmp_path / "in.jsonl", texts + texts[:10])]
    inputs.append(put(tmp_path / "long.txt", "".join(texts[:5])))
    arguments = {"inputs": inputs, "tokenizer": "bytes", "dedup": True}
    once = prepare(**arguments, out=tmp_path / "once")
    arguments["out"] = tmp_path / "often"
    interrupt_at(monkeypatch, batches, **arguments)
    often = prepare(**arguments)
    assert sha256(tmp_path / "often") == sha256(tmp_path / "once")
    assert often[2:-1] == once[1:-1]  # the counts of duplicates and documents


def test_ctrl_c_says_what_is_kept(monkeypatch, arguments):
    monkeypatch.setattr(writer, "BATCH", 1 << 12)
    assert interrupt_at(monkeypatch, 0, **arguments).endswith("the same command starts again")
    said = interrupt_at(monkeypatch, 20, **arguments)
    assert said.endswith("the same command resumes where it stopped")
    assert prepare(**arguments)[1].startswith("resuming after the ")


def test_what_was_begun_with_other_settings_is_begun_anew(tmp_path, monkeypatch, arguments):
    monkeypatch.setattr(writer, "BATCH", 1 << 12)
    interrupt_at(monkeypatch, 20, **arguments)
    assert "resuming" not in "".join(prepare(**arguments | {"val_fraction": 0.2}))
    assert tokens(tmp_path / "data", "val").tolist() == expected(documents(), 0.2, True)


def test_what_is_left_out_is_counted_from_the_first_file_on_and_once(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "BATCH", 1 << 10)
    monkeypatch.setattr(writer, "SECONDS", 0.0)
    put(tmp_path / "in" / "a.txt", b"\xff\n")
    lines = [f"{json.dumps({'text': t})}\n".encode() for t in documents(200)]
    put(tmp_path / "in" / "b.jsonl", b"\xff\n".join(lines))
    arguments = {"inputs": [str(tmp_path / "in")], "tokenizer": "bytes", "errors": "skip"}
    arguments["out"] = tmp_path / "out"
    interrupt_at(monkeypatch, 50, **arguments)
    said = prepare(**arguments)
    assert "resuming after" in said[1]
    assert "200 lines, records or files without a text in UTF-8 were left out" in said
    assert documents_in(tmp_path / "out") == sorted(documents(200))


def test_a_second_command_in_the_same_directory_is_refused(tmp_path, arguments):
    in_use = r"data is in use by another process"
    with lock(tmp_path / "data"), pytest.raises(ValueError, match=in_use):
        prepare(**arguments)
    with lock(tmp_path / "data"), pytest.raises(ValueError, match=in_use):
        writer.write(tmp_path / "data", "text", "bytes", 0.1, "made up")
    with lock(tmp_path / "data", ".lock-00001"):  # another part of the same data
        prepare(**arguments, shard=(2, 2))
    prepare(**arguments)


def test_a_disk_that_fills_up_loses_nothing_and_the_same_command_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SECONDS", 0.0)
    monkeypatch.setattr(writer, "BATCH", 1 << 14)
    arguments = {"inputs": [write_jsonl(tmp_path / "in.jsonl", documents(1000))]}
    arguments |= {"out": tmp_path / "data", "tokenizer": "bytes", "val_fraction": 0.1}

    def fill(messages) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))  # files cannot grow further
        try:
            prepare(**arguments)
        except OSError as error:
            messages.put(str(error))

    messages = fork.Queue()
    process = fork.Process(target=fill, args=(messages,))
    process.start()
    message = messages.get(timeout=60)
    process.join()
    assert "File too large; the same command resumes where it stopped" in message
    assert str(tmp_path / "data") in message
    assert prepare(**arguments)[1].startswith("resuming after the ")
    assert tokens(tmp_path / "data", "train").tolist() == expected(documents(1000), 0.1, False)


def test_a_full_disk_at_the_end_leaves_the_earlier_data(tmp_path, monkeypatch):
    writer.write(tmp_path, "some text\n" * 20, "bytes", 0.1, "made up")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "write_atomic", full)
    with pytest.raises(OSError) as error:
        writer.write(tmp_path, "other text\n" * 20, "bytes", 0.1, "made up")
    assert error.value.filename
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class Wide(ByteTokenizer):
    """A tokenizer whose ids need 32 bits."""

    def __init__(self, vocab_size: int = 70_000):
        super().__init__()
        self.name, self.vocab_size, self.eot_id = "wide", vocab_size, 69_999

    def encode(self, text: str) -> np.ndarray:
        return super().encode(text) + 65_536

    def decode(self, ids) -> str:
        return super().decode(i - 65_536 for i in ids if i < 69_999)

    def save(self, directory) -> None:
        super().save(directory)
        Path(directory, "notes.txt").write_text("more than tokenizer.json")


def test_a_vocabulary_above_65536_takes_four_bytes_a_token(tmp_path, arguments):
    prepare(**arguments | {"tokenizer": Wide()})
    assert json.loads((tmp_path / "data" / "meta.json").read_text())["dtype"] == "uint32"
    assert [path.name for path in (tmp_path / "data").glob(".*")] == [".lock"]
    reference = np.array(expected(documents(), 0.1, False))
    wide = np.where(reference == 256, 69_999, reference + 65_536)
    assert np.array_equal(tokens(tmp_path / "data", "train"), wide)
    assert TokenDataset(tmp_path / "data", "train", 16).batch(0, 0, 4)[0].max() > 65_535
    with pytest.raises(ValueError, match=r"wide gave the ids .*, but its vocab_size is 65600"):
        prepare(**arguments | {"tokenizer": Wide(65_600), "out": tmp_path / "wrong"})


@pytest.mark.parametrize("vocab_size, dtype", [(65_536, "uint16"), (65_537, "uint32")])
def test_two_bytes_hold_65536_tokens_and_no_more(vocab_size, dtype):
    assert writer.token_dtype(SimpleNamespace(vocab_size=vocab_size)) == dtype


def test_tokens_are_on_the_disk_before_the_note_of_them(monkeypatch, arguments):
    done, replace = [], writer.os.replace
    monkeypatch.setattr(writer, "BATCH", 1000)
    monkeypatch.setattr(writer.os, "fsync", lambda descriptor: done.append("synced"))
    record = lambda a, b: (replace(a, b), done.append(Path(b).name))  # noqa: E731
    monkeypatch.setattr(writer.os, "replace", record)
    prepare(**arguments)
    note = done.index(".progress.json")
    assert done[note - 3 : note] == ["synced"] * 3  # both token files, and the note itself
    # new files are synced before any is replaced
    files = ["train.bin", "val.bin", "tokenizer.json", "meta.json"]
    hidden = ["synced", ".tokenizer.json.tmp", "synced", ".meta.json.tmp"]
    assert done[-10:] == ["synced", "synced", *hidden, *files]


@pytest.mark.parametrize("name", ["train.bin", "tokenizer.json", "meta.json"])
def test_files_of_others_are_not_overwritten(tmp_path, name):
    path = put(tmp_path / name, "{}")
    with pytest.raises(ValueError, match=f"{name} is not an earlier output"):
        writer.write(tmp_path, "some text\n" * 20, "bytes", 0.1, "made up")
    assert Path(path).read_text() == "{}"


@pytest.mark.parametrize("name", ["v1:2", "a,b", "2026-11-29T01:23", "s3://a"])
def test_a_name_that_data_reads_as_a_mixture_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--data would read this name"):
        writer.write(name, "some text\n" * 20, "bytes", 0.1, "made up")
    assert not list(tmp_path.iterdir())
