"""Writing: the split of each document, what is left out, and interruptions."""

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
    save_as,
    sha256,
    silent,
    small_bpe,
    tokens,
    write_jsonl,
    written,
)

from data_prep import documents as reading
from data_prep import text, writer
from nanogpt.data.tokenizer import ByteTokenizer
from nanogpt.data.tokens import TokenDataset
from nanogpt.run.lock import Lock


def test_adding_documents_moves_none_to_the_other_split(tmp_path):
    texts = documents()
    for name, some in (("few", texts[:200]), ("all", texts)):
        path = write_jsonl(tmp_path / f"{name}.jsonl", some)
        text.prepare([path], tmp_path / name, "bytes", 0.1, say=silent)
    for split in ("train", "val"):
        few, all_of_them = tokens(tmp_path / "few", split), tokens(tmp_path / "all", split)
        assert np.array_equal(all_of_them[: len(few)], few)
        assert len(all_of_them) > len(few)


def test_duplicates_are_left_out_on_request(tmp_path):
    texts = documents(200)
    path = write_jsonl(tmp_path / "in.jsonl", texts + texts[:50] + texts)
    said = []
    text.prepare([path], tmp_path / "data", "bytes", 0.1, dedup=True, say=said.append)
    assert documents_in(tmp_path / "data") == sorted(texts)
    assert "250 duplicate documents were left out" in said
    with pytest.raises(ValueError, match="--dedup compares all documents: it cannot be used with --shard"):
        text.prepare([path], tmp_path / "data", "bytes", dedup=True, shard=(1, 2))


@pytest.mark.parametrize("kind", ["notes", "jsonl"])
def test_long_documents_are_compared_as_a_whole(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(reading, "PIECE", 1 << 8)
    monkeypatch.setattr(writer, "BATCH", 1 << 8)
    texts = [t for t in documents(40) if len(t) > 600][:10]
    texts += [*texts[:5], texts[0][:-1] + "?", texts[0] + "and more"]  # five are copies, two only begin alike
    for i, t in enumerate(texts):
        (tmp_path / f"{i:02}.txt").write_bytes(t.encode())
    inputs = [str(tmp_path)] if kind == "notes" else [write_jsonl(tmp_path / "in.jsonl", texts)]
    said = []
    meta = text.prepare(inputs, tmp_path / "data", "bytes", dedup=True, say=said.append)
    assert "5 duplicate documents were left out" in said
    assert sum(meta["splits"][s]["documents"] for s in ("train", "val")) == 12
    assert sorted(written(tmp_path / "data")) == sorted("".join(texts[:10] + texts[15:]).encode())


def interrupt_and_restart(arguments: dict, times: int, seconds: float) -> None:
    """Kills the preparation at random moments of `seconds`, then lets it finish."""
    chance = random.Random(0)
    for _ in range(times):
        process = fork.Process(target=text.prepare, kwargs=arguments)
        process.start()
        time.sleep(chance.uniform(0, seconds))
        process.kill()
        process.join()
    text.prepare(**arguments)


@pytest.mark.parametrize("dedup", [False, True])
def test_killed_at_ten_random_moments_it_writes_the_same_bytes(tmp_path, monkeypatch, dedup):
    monkeypatch.setattr(writer, "SECONDS", 0.02)
    monkeypatch.setattr(writer, "BATCH", 1 << 14)
    texts = documents(4000)
    inputs = [write_jsonl(tmp_path / "a.jsonl", texts[:3000]), save_as("parquet", tmp_path, texts[2400:])]
    common = {"inputs": inputs, "tokenizer": small_bpe(), "val_fraction": 0.1, "dedup": dedup}
    start = time.perf_counter()
    text.prepare(**common, out=tmp_path / "once", say=silent)
    seconds = time.perf_counter() - start
    with open(tmp_path / "said", "a") as said:
        say = partial(print, file=said, flush=True)
        interrupt_and_restart(common | {"out": tmp_path / "often", "say": say}, 10, 0.6 * seconds)
    assert (tmp_path / "said").read_text().count("resuming after the ") >= 1
    assert sha256(tmp_path / "often") == sha256(tmp_path / "once")
    assert (tmp_path / "often" / "meta.json").read_bytes() == (tmp_path / "once" / "meta.json").read_bytes()
    assert sorted(f.name for f in (tmp_path / "often").iterdir()) == sorted(
        f.name for f in (tmp_path / "once").iterdir()
    )


def test_ctrl_c_says_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "BATCH", 1 << 12)
    path, encode = write_jsonl(tmp_path / "in.jsonl", documents(1000)), writer.CorpusWriter.encode

    def interrupted(self, batch):
        if batch.next[1] > after:
            raise KeyboardInterrupt
        return encode(self, batch)

    monkeypatch.setattr(writer.CorpusWriter, "encode", interrupted)
    after = 0
    with pytest.raises(KeyboardInterrupt, match="stopped: nothing is kept, the same command starts again"):
        text.prepare([path], tmp_path / "data", "bytes", 0.1, say=silent)
    after = 500
    with pytest.raises(KeyboardInterrupt, match=r"the same command resumes after the [0-9,]+ tokens") as interrupt:
        text.prepare([path], tmp_path / "data", "bytes", 0.1, say=silent)
    after, said = 1000, []
    text.prepare([path], tmp_path / "data", "bytes", 0.1, say=said.append)
    assert said[1].split(" after the ")[1].split(" tokens")[0] in str(interrupt.value)


def test_what_is_left_out_is_counted_from_the_first_file_on_and_once(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "BATCH", 1 << 10)
    monkeypatch.setattr(writer, "SECONDS", 0.0)
    (tmp_path / "a.txt").write_bytes(b"\xff\n")
    lines = "".join(f"{json.dumps({'text': t})}\n" for t in documents(200)).encode().splitlines(keepends=True)
    (tmp_path / "b.jsonl").write_bytes(b"\xff\n".join(lines))
    arguments = {"inputs": [str(tmp_path)], "out": tmp_path / "out", "tokenizer": "bytes", "errors": "skip"}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(writer.CorpusWriter, "append", interrupt_at(50))
        text.prepare(**arguments, say=silent)
    said = []
    text.prepare(**arguments, say=said.append)
    assert "resuming after" in said[1]
    assert "200 lines, records or files without a text in UTF-8 were left out" in said
    assert documents_in(tmp_path / "out") == sorted(documents(200))


@pytest.mark.parametrize("batches", [1, 3, 7, 20, 60])
def test_interrupted_inside_a_long_document_it_writes_the_same_bytes(tmp_path, monkeypatch, batches):
    monkeypatch.setattr(reading, "PIECE", 1 << 8)
    monkeypatch.setattr(writer, "BATCH", 1 << 9)
    monkeypatch.setattr(writer, "SECONDS", 0.0)
    texts = documents(30)
    inputs = [write_jsonl(tmp_path / "in.jsonl", texts + texts[:10])]
    (tmp_path / "long.txt").write_text("".join(texts[:5]))
    arguments = {"inputs": [*inputs, str(tmp_path / "long.txt")], "tokenizer": "bytes", "dedup": True, "say": silent}
    text.prepare(**arguments, out=tmp_path / "once")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(writer.CorpusWriter, "append", interrupt_at(batches))
        text.prepare(**arguments, out=tmp_path / "often")
    text.prepare(**arguments, out=tmp_path / "often")
    assert sha256(tmp_path / "often") == sha256(tmp_path / "once")


def interrupt_at(batches: int):
    """`CorpusWriter.append` that is interrupted after so many calls."""
    append, count = writer.CorpusWriter.append, iter(range(batches))

    def interrupted(self, batch, found) -> None:
        if next(count, None) is None:
            raise KeyboardInterrupt
        append(self, batch, found)

    return interrupted


def test_a_second_command_in_the_same_directory_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", documents())
    with Lock(tmp_path / "data"), pytest.raises(ValueError, match=r"data is in use by process [0-9]+ on "):
        text.prepare([path], tmp_path / "data", "bytes", 0.1, say=silent)
    with Lock(tmp_path / "data"), pytest.raises(ValueError, match=r"data is in use by process [0-9]+ on "):
        writer.write(tmp_path / "data", "text", "bytes", 0.1, "made up")
    with Lock(tmp_path / "data", ".lock-00001"):  # another part of the same data
        text.prepare([path], tmp_path / "data", "bytes", 0.1, shard=(2, 2), say=silent)
    text.prepare([path], tmp_path / "data", "bytes", 0.1, say=silent)


def test_what_was_begun_with_other_settings_is_begun_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "BATCH", 1 << 12)
    path = write_jsonl(tmp_path / "in.jsonl", documents())

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(writer.CorpusWriter, "finish", interrupted)
        text.prepare([path], tmp_path / "data", "bytes", 0.1, say=silent)
    said = []
    text.prepare([path], tmp_path / "data", "bytes", 0.2, say=said.append)
    assert "resuming" not in "".join(said)
    assert tokens(tmp_path / "data", "val").tolist() == expected(documents(), 0.2, True)


def test_a_disk_that_fills_up_loses_nothing_and_the_same_command_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SECONDS", 0.0)
    monkeypatch.setattr(writer, "BATCH", 1 << 14)
    path = write_jsonl(tmp_path / "in.jsonl", documents(1000))
    arguments = {"inputs": [path], "out": tmp_path / "data", "tokenizer": "bytes", "val_fraction": 0.1}

    def fill(messages) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))  # files cannot grow beyond that
        try:
            text.prepare(**arguments, say=silent)
        except OSError as error:
            messages.put(str(error))

    messages = fork.Queue()
    process = fork.Process(target=fill, args=(messages,))
    process.start()
    message = messages.get(timeout=60)
    process.join()
    assert "File too large; the same command resumes after the " in message
    assert str(tmp_path / "data") in message
    said = []
    text.prepare(**arguments, say=said.append)
    assert said[1].startswith("resuming after the ")
    assert tokens(tmp_path / "data", "train").tolist() == expected(documents(1000), 0.1, False)


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


def test_a_vocabulary_above_65536_takes_four_bytes_a_token(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", documents())
    meta = text.prepare([path], tmp_path / "data", Wide(), 0.1, say=silent)
    assert meta["dtype"] == "uint32"
    assert not list((tmp_path / "data").glob(".*"))
    ids = tokens(tmp_path / "data", "train")
    reference = np.array(expected(documents(), 0.1, False))
    assert np.array_equal(ids, np.where(reference == 256, 69_999, reference + 65_536))
    data = TokenDataset(tmp_path / "data", "train", 16)
    assert data.batch(0, 0, 4)[0].max() > 65_535
    with pytest.raises(ValueError, match=r"tokenizer wide gave the ids .*, but its vocab_size is 65600"):
        text.prepare([path], tmp_path / "wrong", Wide(65_600), 0.1, say=silent)


@pytest.mark.parametrize("vocab_size, dtype", [(65_536, "uint16"), (65_537, "uint32")])
def test_two_bytes_hold_65536_tokens_and_no_more(vocab_size, dtype):
    assert writer.token_dtype(SimpleNamespace(vocab_size=vocab_size)) == dtype


def test_meta_json_counts_what_the_files_hold(tmp_path):
    meta = writer.write(tmp_path / "data", "zé" * 100 + "aé" * 50, "char", 0.25, "made up")
    train, val = (meta["splits"][split] for split in ("train", "val"))
    assert (train["tokens"], train["bytes"], train["largest"]) == (225, 337, 2)
    assert (val["tokens"], val["bytes"], val["largest"]) == (75, 113, 2)
    assert [train["sha256"], val["sha256"]] == sha256(tmp_path / "data")
    file = writer.TokenFile(tmp_path / "x.bin", np.dtype("<u2"))
    for ids in ([3, 9], [4], []):
        file.append(np.array(ids, dtype=np.int64), 1, 1)
    assert file.counts == {"tokens": 3, "bytes": 3, "documents": 3, "largest": 9}
    file.close()


def test_tokens_are_on_the_disk_before_the_note_of_them_and_all_hashes_are_kept(tmp_path, monkeypatch):
    done, finish = [], writer.CorpusWriter.finish

    def kept(self, source):
        done.append((sorted(np.fromfile(self.hashes, np.uint64).tolist()), sorted(self.seen)))
        return finish(self, source)

    monkeypatch.setattr(writer, "BATCH", 1000)
    monkeypatch.setattr(writer.os, "fsync", lambda descriptor: done.append("synced"))
    replace = writer.os.replace
    monkeypatch.setattr(writer.os, "replace", lambda a, b: (replace(a, b), done.append(Path(b).name)))
    monkeypatch.setattr(writer.CorpusWriter, "finish", kept)
    path = write_jsonl(tmp_path / "in.jsonl", documents())
    text.prepare([path], tmp_path / "data", ByteTokenizer(), 0.1, dedup=True, say=silent)
    hashes, seen = done.pop(next(i for i, item in enumerate(done) if isinstance(item, tuple)))
    assert hashes == seen and len(seen) > 100
    note = done.index(".progress.json")
    assert done[note - 3 : note] == ["synced"] * 3  # both token files, and the note itself
    files = ["train.bin", "val.bin", "tokenizer.json", "meta.json"]
    assert done[-8:] == ["synced", "tokenizer.json", "synced", "meta.json", *files]  # new ones, before any is replaced
    assert done[-12:-10] == ["synced", "synced"]  # the tokens; then the tokenizer, to compute its hash


@pytest.mark.parametrize("name", ["train.bin", "tokenizer.json", "meta.json"])
def test_files_of_others_are_not_overwritten(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=f"{name} is not an earlier output"):
        writer.write(tmp_path, "some text\n" * 20, "bytes", 0.1, "made up")
    assert (tmp_path / name).read_text() == "{}"


@pytest.mark.parametrize("name", ["v1:2", "a,b", "2026-11-29T01:23", "s3://a"])
def test_a_name_that_data_reads_as_a_mixture_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--data would read this name"):
        writer.write(name, "some text\n" * 20, "bytes", 0.1, "made up")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_at_the_end_leaves_the_earlier_data(tmp_path, monkeypatch):
    writer.write(tmp_path, "some text\n" * 20, "bytes", 0.1, "made up")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "write_atomic", full)
    with pytest.raises(OSError) as error:
        writer.write(tmp_path, "other text\n" * 20, "bytes", 0.1, "made up")
    assert error.value.filename and {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
