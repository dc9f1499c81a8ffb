"""`data_prep.text` and what it is made of: reading, writing, resuming, dividing, merging."""

import contextlib
import gzip
import hashlib
import io
import json
import multiprocessing
import random
import resource
import shlex
import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from data_prep import merge, text, train_tokenizer, writer
from data_prep.documents import Corpus, find_cut, passages
from nanogpt import tokenizer
from nanogpt.data import TokenDataset
from nanogpt.tokenizer import EOT, BPETokenizer, ByteTokenizer, CharTokenizer

fork = multiprocessing.get_context("fork")
SCRIPTS = "Hello\r\nWörld|नमस्ते दुनिया|שלום עולם|你好，世界|😀👩‍👩‍👧 🏳️‍🌈|a\0b\nc|\u2028 strange\x85 spaces\u3000".split(
    "|"
)


def silent(message: str) -> None:
    pass


def documents(count: int = 300) -> list[str]:
    """Made-up documents of one to sixty lines."""
    chance = random.Random(1)
    words = "the king and queen of hearts did speak to me in anger o my lord what news from court".split()
    lines = lambda: "\n".join(" ".join(chance.choices(words, k=9)) for _ in range(chance.randint(1, 60)))  # noqa: E731
    return [f"Number {i}, {SCRIPTS[i % 5]}\n{lines()}" for i in range(count)]


def write_jsonl(path, texts: list[str], column: str = "text") -> str:
    path.write_text("".join(json.dumps({column: t, "id": i}) + "\n" for i, t in enumerate(texts)))
    return str(path)


def small_bpe() -> BPETokenizer:
    ranks = {bytes([b]): b for b in range(256)} | {b"he": 256, b" t": 257, b" the": 258, b"in": 259}
    encoding = tiktoken.Encoding(
        "small", pat_str=r" ?\w+|\s+|[^\w\s]+", mergeable_ranks=ranks, special_tokens={EOT: 260}
    )
    return BPETokenizer(encoding)


def tokens(directory, split: str) -> np.ndarray:
    return np.fromfile(directory / f"{split}.bin", dtype=json.loads((directory / "meta.json").read_text())["dtype"])


def documents_in(directory) -> list[str]:
    """The documents of both splits of byte tokens, sorted."""
    found = []
    for split in ("train", "val"):
        ids = tokens(directory, split)
        assert ids[-1] == 256
        found += [
            bytes(part[:-1].astype(np.uint8)).decode() for part in np.split(ids, np.flatnonzero(ids == 256) + 1)[:-1]
        ]
    return sorted(found)


def is_val(document: str, fraction: float) -> bool:
    digest = hashlib.blake2b(document.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64 < fraction


def expected(texts: list[str], fraction: float, val: bool) -> list[int]:
    """What nanoGPT's prepare.py would write of the documents of a split: each with an end-of-text token behind it."""
    return [i for t in texts if is_val(t, fraction) == val for i in (*t.encode(), 256)]


def sha256(directory) -> list[str]:
    return [hashlib.sha256((directory / f"{s}.bin").read_bytes()).hexdigest() for s in ("train", "val")]


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def save_as(kind: str, folder, texts: list[str]) -> str:
    path = folder / f"input.{kind}"
    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=70)
    elif kind == "arrow":
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=70)
    elif kind == "file.arrow":
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=70)
    elif kind.startswith("csv"):
        from csv import writer as csv_writer

        file = io.StringIO(newline="")
        csv_writer(file).writerows([["id", "text"], *enumerate(texts)])
        data = file.getvalue().encode()
        path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    else:
        data = "".join(json.dumps({"text": t}) + "\n\n" for t in texts).encode()
        pack = {"gz": gzip.compress, "zst": zstd}.get(kind.split(".")[-1], bytes)
        path.write_bytes(pack(data))
    return str(path)


KINDS = ["jsonl", "jsonl.gz", "jsonl.zst", "csv", "csv.gz", "parquet", "arrow", "file.arrow"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_documents_with_end_of_text_tokens(tmp_path, kind):
    texts = documents()
    meta = text.prepare([save_as(kind, tmp_path, texts)], tmp_path / "data", "bytes", 0.1, say=silent)
    for split in ("train", "val"):
        assert tokens(tmp_path / "data", split).tolist() == expected(texts, 0.1, split == "val")
        counts, mine = meta["splits"][split], [t for t in texts if is_val(t, 0.1) == (split == "val")]
        assert counts["documents"] == len(mine)
        assert counts["bytes"] == sum(len(t.encode()) for t in mine)
        assert counts["tokens"] == counts["bytes"] + counts["documents"]
        assert counts["largest"] == 256
        assert counts["sha256"] == hashlib.sha256((tmp_path / "data" / f"{split}.bin").read_bytes()).hexdigest()
    assert meta["dtype"] == "uint16"
    assert tokenizer.load(tmp_path / "data").name == "bytes"
    assert len(TokenDataset(tmp_path / "data", "train", 64).tokens) == meta["splits"]["train"]["tokens"]


def test_a_folder_is_read_in_the_order_of_names_each_file_a_document(tmp_path):
    texts = [t[:600] for t in documents(150)]  # none is larger than a hundredth of all
    for i, t in enumerate(texts):
        path = tmp_path / "in" / f"{i // 50}" / f"{i:03}.{'md' if i % 2 else 'txt'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(t.encode())
    (tmp_path / "in" / "picture.png").write_bytes(b"\xff\xd8")
    text.prepare([str(tmp_path / "in")], tmp_path / "data", "bytes", 0.1, say=silent)
    pattern = [str(tmp_path / "in" / "**" / "*.md"), str(tmp_path / "in" / "**" / "*.txt")]
    text.prepare(pattern, tmp_path / "pattern", "bytes", 0.1, say=silent)
    assert documents_in(tmp_path / "data") == documents_in(tmp_path / "pattern")
    assert documents_in(tmp_path / "data") == sorted(texts)
    assert tokens(tmp_path / "data", "train").tolist() == expected(texts, 0.1, False)


@pytest.mark.parametrize("strange", SCRIPTS)
def test_every_script_and_control_character_comes_through(tmp_path, strange):
    texts = [f"{strange}{i}{strange}" for i in range(300)]
    text.prepare([write_jsonl(tmp_path / "in.jsonl", texts)], tmp_path / "data", "bytes", 0.2, say=silent)
    assert documents_in(tmp_path / "data") == sorted(texts)
    (tmp_path / "in.txt").write_bytes("\n".join(texts).encode())
    text.prepare([str(tmp_path / "in.txt")], tmp_path / "char", "char", 0.2, say=silent)
    chars = tokenizer.load(tmp_path / "char")
    assert sorted(chars.characters) == sorted(set("\n".join(texts)) | {"\n"})


def test_a_text_file_alone_is_divided_at_line_beginnings_and_nothing_is_lost(tmp_path, text_file):
    meta = text.prepare([str(text_file)], tmp_path / "data", "bytes", 0.1, say=silent)
    whole = text_file.read_text()
    assert sum(meta["splits"][s]["documents"] for s in ("train", "val")) == 1
    assert sum(meta["splits"][s]["bytes"] for s in ("train", "val")) == len(whole.encode())
    assert 0.02 < meta["splits"]["val"]["bytes"] / len(whole.encode()) < 0.25
    assert tokens(tmp_path / "data", "train")[0] in (whole.encode()[0], *b"FS")
    pieces = list(Corpus([str(text_file)]).pieces())
    assert "".join(piece.text for piece in pieces) == whole
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    for piece in pieces[1:]:
        assert piece.text[0].isupper()  # a line of the text begins with a capital


@pytest.fixture
def text_file(tmp_path, text):
    (tmp_path / "play.txt").write_text(text)
    return tmp_path / "play.txt"


@given(st.text(alphabet="ab \n\r", max_size=200), st.integers(1, 20), st.integers(1, 50))
def test_pieces_put_together_are_the_document(document, size, block):
    blocks = [(i, document[i : i + block]) for i in range(0, len(document), block)]
    found = list(passages(blocks, size))
    assert "".join(piece for _, piece, _ in found) == document
    assert all(len(piece) <= size for _, piece, _ in found)
    assert [last for *_, last in found] == [False] * (len(found) - 1) + [True] * bool(found)
    assert [piece for _, piece, _ in found] == [piece for _, piece, _ in passages([(0, document)], size)]


def test_texts_are_cut_where_gpt2_cuts_too(gpt2_files):
    gpt2 = BPETokenizer.gpt2()
    whole = "\n\n".join(documents(40))
    pieces = [piece for _, piece, _ in passages([(0, whole)], 500)]
    assert len(pieces) > 50
    assert [i for piece in pieces for i in gpt2.encode(piece)] == gpt2.encode(whole).tolist()
    assert find_cut("ab\n\ncd\nef", 8) == 7


@pytest.mark.parametrize("first", [0, 69, 70, 150, 299, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_reading_begins_at_any_document(tmp_path, kind, first):
    corpus = Corpus([save_as(kind, tmp_path, documents())])
    pieces = list(corpus.pieces())
    assert list(corpus.pieces(0, first)) == pieces[first:]
    assert [piece.at for piece in pieces] == sorted(piece.at for piece in pieces)


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
    assert said[0] == "250 documents were there before and are left out"
    with pytest.raises(ValueError, match="--dedup compares all documents: it cannot be used with --shard"):
        text.prepare([path], tmp_path / "data", "bytes", dedup=True, shard=(1, 2))


def test_standard_input_is_a_document(tmp_path, monkeypatch, text):
    from data_prep.text import prepare

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(text.encode()))))
    meta = prepare(["-"], tmp_path / "data", "bytes", 0.3, say=silent)
    assert sum(meta["splits"][s]["bytes"] for s in ("train", "val")) == len(text)
    with pytest.raises(ValueError, match="standard input can be read once"):
        prepare(["-"], tmp_path / "data", "char", say=silent)


def test_a_directory_that_datasets_reads_is_streamed(tmp_path):
    texts = documents()
    (tmp_path / "set").mkdir()
    save_as("parquet", tmp_path / "set", texts)
    text.prepare([f"hf:{tmp_path / 'set'}"], tmp_path / "data", "bytes", 0.1, say=silent)
    assert len(tokens(tmp_path / "data", "train")) > 0
    assert "".join(sorted("".join(documents_in(tmp_path / "data")))) == "".join(sorted("".join(texts)))


def test_shards_of_a_streamed_data_set_merge_to_the_same_bytes(tmp_path):
    (tmp_path / "set").mkdir()
    for i in range(3):
        table = pyarrow.table({"text": documents()[100 * i : 100 * i + 100]})
        pyarrow.parquet.write_table(table, tmp_path / "set" / f"{i}.parquet")
    common = {"inputs": [f"hf:{tmp_path / 'set'}"], "tokenizer": "bytes", "val_fraction": 0.1, "say": silent}
    text.prepare(**common, out=tmp_path / "once")
    assert tokens(tmp_path / "once", "train").tolist() == expected(documents(), 0.1, False)
    for i in (1, 2, 3):
        text.prepare(**common, out=tmp_path / "parts", shard=(i, 3))
    meta = merge.merge(tmp_path / "parts", one_file=True, say=silent)
    assert sha256(tmp_path / "parts") == sha256(tmp_path / "once")
    assert meta["splits"]["train"]["documents"] == sum(not is_val(t, 0.1) for t in documents())
    with pytest.raises(ValueError, match="has 3 files: it cannot be divided into 4 shards"):
        text.prepare(**common, out=tmp_path / "more", shard=(1, 4))
    corpus = Corpus(common["inputs"])
    assert list(corpus.pieces(0, 150)) == list(corpus.pieces())[150:]


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


@pytest.mark.alone
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
    assert (tmp_path / "said").read_text().count("going on behind the ") > 2
    assert sha256(tmp_path / "often") == sha256(tmp_path / "once")
    assert (tmp_path / "often" / "meta.json").read_bytes() == (tmp_path / "once" / "meta.json").read_bytes()
    assert sorted(f.name for f in (tmp_path / "often").iterdir()) == sorted(
        f.name for f in (tmp_path / "once").iterdir()
    )


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
    assert "going on" not in said[0]
    assert tokens(tmp_path / "data", "val").tolist() == expected(documents(), 0.2, True)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt", "jsonl.gz"])
@pytest.mark.parametrize("one_file", [False, True])
def test_four_shards_on_four_processes_merge_to_the_same_bytes(tmp_path, kind, one_file):
    texts = documents()
    if kind == "txt":
        (tmp_path / "input.txt").write_text("\n\n".join(texts))
        inputs = [str(tmp_path / "input.txt")]
    else:
        inputs = [save_as(kind, tmp_path, texts), write_jsonl(tmp_path / "second.jsonl", texts[:20])]
    common = {"inputs": inputs, "tokenizer": "bytes", "val_fraction": 0.1, "say": silent}
    text.prepare(**common, out=tmp_path / "once")
    outs = [tmp_path / "parts", tmp_path / "parts", tmp_path / "elsewhere", tmp_path / "elsewhere"]
    workers = [
        fork.Process(target=text.prepare, kwargs=common | {"out": out, "shard": (i, 4)})
        for i, out in enumerate(outs, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    meta = merge.merge(tmp_path / "parts", [tmp_path / "elsewhere"], one_file, say=silent)
    once = json.loads((tmp_path / "once" / "meta.json").read_text())
    for split in ("train", "val"):
        files = meta["splits"][split].pop("files", None)
        assert meta["splits"][split] == once["splits"][split]
        assert (files is None) == one_file
        whole = TokenDataset(tmp_path / "parts", split, 16).tokens
        assert np.array_equal(whole[:], tokens(tmp_path / "once", split))
        if not one_file and kind != "jsonl.gz":  # which is not divided
            sizes = [(tmp_path / "parts" / name).stat().st_size for name in files]
            assert split == "val" or max(sizes) < 2 * min(sizes)
    assert not list((tmp_path / "parts").glob("part-*"))


def test_small_files_are_divided_among_shards_without_loss(tmp_path):
    for i in range(300):
        (tmp_path / f"{i}.txt").write_text(f"text {i}")
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(b"packed " * 100))
    assert len(list(Corpus([str(tmp_path)]).pieces())) > 300
    shards = [list(Corpus([str(tmp_path)], shard=(i, 3)).pieces()) for i in (1, 2, 3)]
    assert [piece for shard in shards for piece in shard] == list(Corpus([str(tmp_path)]).pieces())
    with pytest.raises(ValueError, match="cannot be divided together with other inputs, and - not at all"):
        Corpus(["-"], shard=(1, 2))


def test_parts_that_are_missing_changed_or_of_other_data_are_named(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", documents())
    with pytest.raises(ValueError, match="holds no parts"):
        merge.merge(tmp_path)
    for i in (1, 3):
        text.prepare([path], tmp_path / "data", "bytes", 0.1, shard=(i, 3), say=silent)
    with pytest.raises(ValueError, match=r"lacks the parts 2/3: run them with --shard"):
        merge.merge(tmp_path / "data")
    text.prepare([path, path], tmp_path / "data", "bytes", 0.1, shard=(2, 3), say=silent)
    with pytest.raises(ValueError, match=r"part-00002.json is a part of other data than the first: source"):
        merge.merge(tmp_path / "data")
    text.prepare([path], tmp_path / "data", "bytes", 0.1, shard=(2, 3), say=silent)
    with open(tmp_path / "data" / "train-00003.bin", "r+b") as file:
        file.write(b"\1\1")
    with pytest.raises(ValueError, match=r"train-00003.bin is not what was written: its SHA-256 differs"):
        merge.merge(tmp_path / "data")


def broken(kind: str, folder) -> str:
    good = save_as(kind, folder, documents())
    data = open(good, "rb").read()  # noqa: SIM115
    with open(good, "wb") as file:
        file.write(data[: len(data) // 2])
    return good


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "parquet", "file.arrow", "csv.gz"])
def test_a_broken_file_is_named(tmp_path, kind):
    path = broken(kind, tmp_path)
    with pytest.raises(ValueError, match=rf"input.{kind} is broken"):
        text.prepare([path], tmp_path / "data", "bytes", say=silent)
    assert not (tmp_path / "data" / "meta.json").exists()


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_what_is_not_utf8_is_named_with_its_offset_replaced_or_left_out(tmp_path, kind):
    lines = {"txt": b"line %d\n", "jsonl": b'{"text": "line %d"}\n', "csv": b"line %d\n"}[kind]
    good = b"text\n" * (kind == "csv") + b"".join(lines % i for i in range(200))
    bad = (lines % 200).replace(b"i", b"\xff\xfe")
    path = tmp_path / f"in.{kind}"
    path.write_bytes(good + bad + b"".join(lines % i for i in range(201, 400)))
    at = len(good) + bad.index(b"\xff")
    with pytest.raises(ValueError, match=rf"in.{kind} is not UTF-8 text .byte {at}.: --errors replace"):
        text.prepare([str(path)], tmp_path / "data", "bytes", 0.3, say=silent)
    text.prepare([str(path)], tmp_path / "replaced", "bytes", 0.3, errors="replace", say=silent)
    replaced = "".join(documents_in(tmp_path / "replaced")) if kind != "txt" else decode_all(tmp_path / "replaced")
    assert replaced.count("\ufffd") == 2
    assert "ne 200" in replaced
    said = []
    text.prepare([str(path)], tmp_path / "skipped", "bytes", 0.3, errors="skip", say=said.append)
    skipped = "".join(documents_in(tmp_path / "skipped")) if kind != "txt" else decode_all(tmp_path / "skipped")
    assert "200" not in skipped
    assert "line 399" in skipped
    assert said[0] == "1 pieces were not UTF-8 and are left out"


def decode_all(directory) -> str:
    return "".join(ByteTokenizer().decode(tokens(directory, split)) for split in ("train", "val"))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda d: [str(d / "nothing.txt")], "nothing.txt does not exist"),
        (lambda d: [str(d / "*.jsonl")], r"\*.jsonl does not exist"),
        (lambda d: [put(d / "empty.txt", "")], "the text is empty .*empty.txt"),
        (lambda d: [(d / "folder").mkdir() or str(d / "folder")], "folder .*folder has no files that end with .txt"),
        (lambda d: [put(d / "s.txt", "x")], "split has 0 tokens: the text .* is too short"),
        (
            lambda d: [write_jsonl(d / "c.jsonl", ["a"], "body")],
            r"no column 'text' .it has: body, id.: .*--text_column",
        ),
        (lambda d: [save_columns(d / "c.parquet")], r"c.parquet has no column 'text' .it has: body.: .*--text_column"),
        (lambda d: [put(d / "c.csv", "a,b\n1,2\n")], r"no column 'text' .it has: a, b."),
        (lambda d: [put(d / "n.jsonl", '{"text": 3}\n')], "record 0: .* holds int"),
        (
            lambda d: [put(d / "j.jsonl", '{"text": "a"}\n{\n')],
            "byte 14: the line is not",
        ),
    ],
)
def test_inputs_that_make_no_data_are_refused(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        text.prepare(make(tmp_path), tmp_path / "data", "bytes", say=silent)
    assert not (tmp_path / "data" / "meta.json").exists()


def test_a_data_set_that_cannot_be_reached_is_named(tmp_path, monkeypatch):
    import datasets

    def no_network(*args, **kwargs):
        raise ConnectionError("no network in this test")

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    with pytest.raises(ValueError, match="hf:some/set:part could not be read: no network in this test"):
        text.prepare(["hf:some/set:part"], tmp_path / "data", "bytes", say=silent)


def put(path, content: str) -> str:
    path.write_text(content)
    return str(path)


def save_columns(path) -> str:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), path)
    return str(path)


def test_another_column_is_read_on_request(tmp_path):
    texts = documents()
    path = write_jsonl(tmp_path / "in.jsonl", texts, "body")
    text.prepare([path], tmp_path / "data", "bytes", 0.1, text_column="body", say=silent)
    assert documents_in(tmp_path / "data") == sorted(texts)


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "{i} \\ud83d|\\ud83d\\ude00"}}\n' for i in range(100)))
    text.prepare([str(tmp_path / "in.jsonl")], tmp_path / "data", "bytes", 0.2, say=silent)
    assert documents_in(tmp_path / "data") == sorted(f"{i} \ufffd|😀" for i in range(100))


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
    assert "File too large; the same command goes on behind what is written already" in message
    assert str(tmp_path / "data") in message
    said = []
    text.prepare(**arguments, say=said.append)
    assert said[0].startswith("going on behind the ")
    assert tokens(tmp_path / "data", "train").tolist() == expected(documents(1000), 0.1, False)


class Wide(ByteTokenizer):
    """A tokenizer whose ids need 32 bits."""

    name, vocab_size, eot_id = "wide", 70_000, 69_999

    def encode(self, text: str) -> np.ndarray:
        return super().encode(text) + 65_536

    def decode(self, ids) -> str:
        return super().decode(i - 65_536 for i in ids if i < 69_999)


class Wrong(Wide):
    vocab_size = 65_600


def test_a_vocabulary_above_65536_takes_four_bytes_a_token(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", documents())
    meta = text.prepare([path], tmp_path / "data", Wide(), 0.1, say=silent)
    assert meta["dtype"] == "uint32"
    ids = tokens(tmp_path / "data", "train")
    reference = np.array(expected(documents(), 0.1, False))
    assert np.array_equal(ids, np.where(reference == 256, 69_999, reference + 65_536))
    data = TokenDataset(tmp_path / "data", "train", 16)
    assert data.batch(0, 0, 4)[0].max() > 65_535
    with pytest.raises(ValueError, match=r"tokenizer wide gave the ids .*, but its vocab_size is 65600"):
        text.prepare([path], tmp_path / "wrong", Wrong(), 0.1, say=silent)


def test_the_summary_tells_counts_and_first_tokens(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", documents())
    said = []
    meta = text.prepare([path], tmp_path / "data", small_bpe(), 0.1, say=said.append)
    shown = said[-1]
    train, val = (meta["splits"][s] for s in ("train", "val"))
    assert f"{train['tokens']:,} training tokens, {val['tokens']:,} for validation" in shown
    rate = (train["bytes"] + val["bytes"]) / (train["tokens"] + val["tokens"])
    assert f"300 documents, {train['bytes'] + val['bytes']:,} bytes, {rate:.2f} bytes per token" in shown
    first = tokens(tmp_path / "data", "train")[:10]
    assert all(f"{i}={small_bpe().decode([i])!r}" in shown for i in first.tolist())


def test_a_trained_tokenizer_gives_every_text_back_and_shortens_its_own(tmp_path, text_file):
    trained = train_tokenizer.train([str(text_file)], 300)
    again = train_tokenizer.train([str(text_file)], 300)
    whole = text_file.read_text()
    assert trained.vocab_size == 300
    assert trained.eot_id == 299
    assert np.array_equal(trained.encode(whole), again.encode(whole))
    assert len(trained.encode(whole)) < 0.6 * len(whole)
    for some in SCRIPTS:
        assert trained.decode(trained.encode(some)) == some
    with pytest.raises(ValueError, match="vocab_size=100 must be at least 257"):
        train_tokenizer.train([str(text_file)], 100)


def test_the_command_after_a_trained_tokenizer_reads_the_same_text():
    args = Namespace(INPUT=["my notes/", "*.csv"], out="data/bpe", text_column="body", errors="skip")
    command = shlex.split(train_tokenizer.next_command(args))
    assert command[:5] == ["python", "-m", "data_prep.text", "my notes/", "*.csv"]
    assert "--text_column body --errors skip" in " ".join(command)
    args.text_column, args.errors = "text", "strict"
    assert train_tokenizer.next_command(args).endswith(" 'my notes/' '*.csv' --tokenizer data/bpe --out data/mine")


@pytest.mark.parametrize("name", ["openwebtext", "fineweb_edu", "tinystories"])
def test_scripts_of_known_data_sets_read_local_copies(tmp_path, monkeypatch, capsys, name):
    import importlib
    import runpy

    source = importlib.import_module(f"data_prep.{name}").__file__
    with open(source) as file:
        assert len(file.readlines()) < 60
    (tmp_path / "copy").mkdir()
    save_as("parquet", tmp_path / "copy", documents())
    arguments = ["--source", str(tmp_path / "copy"), "--out", str(tmp_path / "data"), "--tokenizer", "bytes"]
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--val_fraction", "0.1"])
    with contextlib.suppress(RuntimeWarning):
        runpy.run_path(source, run_name="__main__")
    assert tokens(tmp_path / "data", "train").tolist() == expected(documents(), 0.1, False)
    assert "accelerate launch recipes/own_text.py" in capsys.readouterr().out


def test_characters_are_trained_on_all_shards(tmp_path):
    inputs = [write_jsonl(tmp_path / "a.jsonl", ["abc"] * 50), write_jsonl(tmp_path / "b.jsonl", ["xyz"] * 50)]
    text.prepare(inputs, tmp_path / "data", "char", 0.1, shard=(1, 2), say=silent)
    chars = tokenizer.load(tmp_path / "data")
    assert isinstance(chars, CharTokenizer)
    assert chars.characters == "\nabcxyz"


def test_the_tokenizer_of_the_readme_works_as_it_stands(tmp_path, monkeypatch):
    readme = (Path(__file__).parents[1] / "data_prep" / "README.md").read_text()
    code = next(block for block in readme.split("```python\n") if "class Codons" in block).split("```")[0]
    chance = random.Random(0)
    genes = ["".join(chance.choices("ACGT", k=3 * chance.randint(10, 100))) for _ in range(300)]
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "genes.jsonl", genes)
    there: dict = {}
    exec(code, there)
    codons, loaded = there["Codons"](), tokenizer.load(tmp_path / "data" / "genes")
    assert (loaded.vocab_size, loaded.eot_id) == (65, 64)
    for gene in genes[:10]:
        assert loaded.encode(gene).tolist() == codons.encode(gene).tolist()
        assert loaded.decode(loaded.encode(gene)) == codons.decode(codons.encode(gene)) == gene
    ids = np.concatenate([tokens(tmp_path / "data" / "genes", split) for split in ("train", "val")])
    assert sorted(loaded.decode(ids).split("<|endoftext|>")) == sorted([*genes, ""])
    assert len(code.split("class Codons")[1].splitlines()) <= 32
