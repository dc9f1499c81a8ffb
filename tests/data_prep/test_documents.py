"""Reading: files of every kind, from any place on, whole or in shards, and those that are broken."""

import csv
import gzip
import hashlib
import sys

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts import (
    KINDS,
    SCRIPTS,
    documents,
    documents_in,
    expected,
    is_val,
    save_as,
    sha256,
    silent,
    tokens,
    write_jsonl,
)

from data_prep import documents as reading
from data_prep import text
from data_prep.documents import Corpus, find_cut, measure, passages
from nanogpt.data.tokenizer import BPETokenizer, ByteTokenizer, load_tokenizer
from nanogpt.data.tokens import TokenDataset


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
    assert load_tokenizer(tmp_path / "data").name == "bytes"
    assert len(TokenDataset(tmp_path / "data", "train", 64).tokens) == meta["splits"]["train"]["tokens"]


def test_a_folder_is_read_in_the_order_of_names_each_file_a_document(tmp_path):
    texts = documents(20)
    for i, t in enumerate(texts):
        path = tmp_path / "in" / f"{i // 10}" / f"{i:03}.{'md' if i % 2 else 'txt'}"
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
    text.prepare([str(tmp_path / "in.txt")], tmp_path / "char", "char", 0.2, errors="replace", say=silent)
    chars = load_tokenizer(tmp_path / "char")
    assert sorted(chars.characters) == sorted(set("\n".join(texts)) | {"\n"})


def test_a_text_file_alone_is_cut_once_as_nanogpt_does(tmp_path, text_file):
    """The reference is nanoGPT's prepare.py: data[: int(n * 0.9)] and data[int(n * 0.9) :]."""
    meta = text.prepare([str(text_file)], tmp_path / "data", "char", say=silent)
    data = text_file.read_text()
    ids = {character: i for i, character in enumerate(sorted(set(data)))}
    n = len(data)
    assert tokens(tmp_path / "data", "train").tolist() == [ids[c] for c in data[: int(n * 0.9)]]
    assert tokens(tmp_path / "data", "val").tolist() == [ids[c] for c in data[int(n * 0.9) :]]
    assert sum(meta["splits"][s]["documents"] for s in ("train", "val")) == 1
    assert sum(meta["splits"][s]["bytes"] for s in ("train", "val")) == n


def test_a_long_text_comes_in_pieces_that_begin_with_a_line(monkeypatch, text_file):
    monkeypatch.setattr(reading, "PIECE", 1 << 10)
    whole, pieces = text_file.read_text(), list(Corpus([str(text_file)]).pieces())
    assert len(pieces) > 20
    assert "".join(piece.text for piece in pieces) == whole
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert {piece.digest for piece in pieces} == {measure([whole])[1]}
    for piece in pieces[1:]:
        assert piece.text[0].isupper()  # a line of the text begins with a capital


@given(st.text(alphabet="ab \n\r", max_size=200), st.integers(1, 20), st.integers(1, 50))
def test_pieces_put_together_are_the_document(document, size, block):
    blocks = [(i, document[i : i + block]) for i in range(0, len(document), block)]
    found = [piece for _, piece in passages(blocks, size)]
    assert "".join(found) == document
    assert all(len(piece) <= size for piece in found)
    assert found == [piece for _, piece in passages([(0, document)], size)]


def test_texts_are_cut_where_gpt2_cuts_too(gpt2_files):
    gpt2 = BPETokenizer.gpt2()
    whole = "\n\n".join(documents(40))
    pieces = [piece for _, piece in passages([(0, whole)], 500)]
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


def test_standard_input_is_a_document_like_the_same_file(tmp_path, monkeypatch, text_file):
    for out, name in (("file", str(text_file)), ("stdin", "-")):
        with open(text_file) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            text.prepare([name], tmp_path / out, "char", say=silent)
    assert sha256(tmp_path / "stdin") == sha256(tmp_path / "file")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="standard input is closed"):
        Corpus(["-"])


def test_a_directory_that_datasets_reads_is_streamed(tmp_path):
    texts = documents()
    (tmp_path / "set").mkdir()
    save_as("parquet", tmp_path / "set", texts)
    text.prepare([f"hf:{tmp_path / 'set'}"], tmp_path / "data", "bytes", 0.1, say=silent)
    assert len(tokens(tmp_path / "data", "train")) > 0
    assert "".join(sorted("".join(documents_in(tmp_path / "data")))) == "".join(sorted("".join(texts)))


def test_small_files_are_divided_among_shards_without_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PIECE", 1 << 9)
    for i in range(300):
        (tmp_path / f"{i}.txt").write_text(f"text {i}")
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(b"packed " * 100))
    assert len(list(Corpus([str(tmp_path)]).pieces())) > 301
    shards = [list(Corpus([str(tmp_path)], shard=(i, 3)).pieces()) for i in (1, 2, 3)]
    assert [piece for shard in shards for piece in shard] == list(Corpus([str(tmp_path)]).pieces())
    with pytest.raises(
        ValueError, match="--shard supports neither standard input nor a data set on the Hub with other inputs"
    ):
        Corpus(["-"], shard=(1, 2))


def broken(kind: str, folder) -> str:
    good = save_as(kind, folder, documents())
    data = open(good, "rb").read()  # noqa: SIM115
    with open(good, "wb") as file:
        file.write(data[: len(data) // 2])
    return good


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "parquet", "file.arrow", "csv.gz"])
def test_a_broken_file_is_named(tmp_path, kind):
    path = broken(kind, tmp_path)
    with pytest.raises(ValueError, match=rf"input.{kind} could not be read"):
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
    assert "1 lines, records or files without a text in UTF-8 were left out" in said
    if kind == "txt":  # only the line is left out
        assert skipped == replaced.replace("l\ufffd\ufffdne 200\n", "")


def decode_all(directory) -> str:
    return "".join(ByteTokenizer().decode(tokens(directory, split)) for split in ("train", "val"))


def put(path, content: str) -> str:
    path.write_text(content)
    return str(path)


def save_columns(path) -> str:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), path)
    return str(path)


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
            "line 2: it is not JSON",
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


def test_another_column_is_read_on_request(tmp_path):
    texts = documents()
    path = write_jsonl(tmp_path / "in.jsonl", texts, "body")
    text.prepare([path], tmp_path / "data", "bytes", 0.1, text_column="body", say=silent)
    assert documents_in(tmp_path / "data") == sorted(texts)


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "{i} \\ud83d|\\ud83d\\ude00"}}\n' for i in range(100)))
    text.prepare([str(tmp_path / "in.jsonl")], tmp_path / "data", "bytes", 0.2, say=silent)
    assert documents_in(tmp_path / "data") == sorted(f"{i} \ufffd|😀" for i in range(100))


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst line\n" + b"and so on\n" * 100)
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbftext\nsecond\n")
    found = "".join(piece.text for piece in Corpus([str(tmp_path / "a.txt"), str(tmp_path / "b.csv")]).pieces())
    assert found.startswith("first line\nand so") and found.endswith("\nsecond")


def test_tabs_separate_the_columns_of_a_tsv(tmp_path):
    (tmp_path / "a.tsv").write_text("id\ttext\n1\tone, two\n")
    assert [piece.text for piece in Corpus([str(tmp_path / "a.tsv")]).pieces()] == ["one, two"]


@pytest.mark.parametrize("mark", ["<|endoftext|>", "\n<|endoftext|>\n", "</s>"])
def test_a_separator_in_a_text_becomes_the_end_of_a_document(tmp_path, mark):
    texts = documents(50)
    (tmp_path / "in.txt").write_bytes(mark.join(texts).encode())
    text.prepare([str(tmp_path / "in.txt")], tmp_path / "data", "bytes", separator=mark.strip(), say=silent)
    expect = [t + "\n" * (mark[0] == "\n") for t in texts[:-1]] + texts[-1:]
    assert documents_in(tmp_path / "data") == sorted(expect)


def test_a_separator_that_nobody_named_is_reported(tmp_path):
    (tmp_path / "in.txt").write_text("<|endoftext|>".join(["once upon a time\n"] * 20))
    said = []
    text.prepare([str(tmp_path / "in.txt")], tmp_path / "data", "bytes", say=said.append)
    assert any("--separator='<|endoftext|>'" in line for line in said)


def texts_of(path) -> list[str]:
    return [piece.text for piece in Corpus([str(path)]).pieces()]


def test_a_stray_quote_in_a_tsv_is_text(tmp_path):
    rows = [f"line {i}" for i in range(300)]
    rows[20], rows[30], rows[200] = '"To be', '"Yes," he said', '"or not'
    (tmp_path / "in.tsv").write_text("id\ttext\n" + "".join(f"{i}\t{row}\n" for i, row in enumerate(rows)))
    assert texts_of(tmp_path / "in.tsv") == rows


def test_a_quoted_tsv_is_read_as_such(tmp_path):
    rows = ["a\tb", 'he said "no"', "two\nlines", "plain"]
    with open(tmp_path / "in.tsv", "w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([["id", "text"], *enumerate(rows)])
    assert texts_of(tmp_path / "in.tsv") == rows


@pytest.mark.parametrize("row", ['"Yes," he said', '"never closed', "two, fields"])
def test_a_csv_row_that_is_not_valid_is_named_by_its_line(tmp_path, row):
    (tmp_path / "in.csv").write_text(f"id,text\n1,one\n2,{row}\n3,three\n")
    with pytest.raises(ValueError, match=r"in.csv, line 3"):
        texts_of(tmp_path / "in.csv")


def test_carriage_returns_end_the_lines_of_an_old_table(tmp_path):
    (tmp_path / "in.csv").write_bytes(b"id,text\r1,one\r2,two\r")
    assert texts_of(tmp_path / "in.csv") == ["one", "two"]


def test_a_record_without_the_column_is_named_by_its_number_or_skipped(tmp_path):
    path = put(tmp_path / "in.jsonl", '{"text": "a"}\n{"body": "b"}\n{"text": "c"}\n')
    with pytest.raises(ValueError, match=r"in.jsonl, record 1"):
        texts_of(path)
    corpus = Corpus([path], errors="skip")
    assert [piece.text for piece in corpus.pieces()] == ["a", "c"] and corpus.skipped == 1
