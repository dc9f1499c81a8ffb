"""Reading: files of every kind, from any place, and broken ones."""

import hashlib
import os

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import KINDS, SCRIPTS, documents, expected, is_val, put, read, save_as, silent, texts_of, tokens

from data_prep import text
from data_prep.documents import Corpus, find_files, passages
from nanogpt.text.tokenizer import BPETokenizer, load_tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_documents_with_end_of_text_tokens(tmp_path, kind):
    texts, out = documents(), tmp_path / "data"
    meta = text.prepare([save_as(kind, tmp_path, texts)], out, "bytes", 0.1, say=silent)
    for split in ("train", "val"):
        assert tokens(out, split).tolist() == expected(texts, 0.1, split == "val")
        counts = meta["splits"][split]
        mine = [t for t in texts if is_val(t, 0.1) == (split == "val")]
        assert counts["documents"] == len(mine) and counts["largest"] == 256
        assert counts["bytes"] == sum(len(t.encode()) for t in mine)
        assert counts["tokens"] == counts["bytes"] + counts["documents"]
        assert counts["sha256"] == hashlib.sha256((out / f"{split}.bin").read_bytes()).hexdigest()
    assert meta["dtype"] == "uint16" and load_tokenizer(out).name == "bytes"


def test_every_script_and_control_character_comes_through(tmp_path):
    path = save_as("jsonl", tmp_path, SCRIPTS)
    assert read(path) == SCRIPTS
    text.prepare([path], tmp_path / "char", "char", 0.2, say=silent)
    assert sorted(load_tokenizer(tmp_path / "char").characters) == sorted({*"".join(SCRIPTS), "\n"})


def test_a_text_file_alone_is_cut_once_as_nanogpt_does(tmp_path, text_file):
    """The reference is nanoGPT's prepare.py: data[: int(n * 0.9)] and data[int(n * 0.9) :]."""
    data = text_file.read_text().replace("\n", " ")
    text_file.write_text(data)
    ids, n = {character: i for i, character in enumerate(sorted(set(data)))}, len(data)
    meta = text.prepare([str(text_file)], tmp_path / "data", "char", say=silent)
    assert meta["vocab_size"] == len(ids)
    assert tokens(tmp_path / "data", "train").tolist() == [ids[c] for c in data[: int(n * 0.9)]]
    assert tokens(tmp_path / "data", "val").tolist() == [ids[c] for c in data[int(n * 0.9) :]]
    text.prepare([str(text_file)], tmp_path / "bytes", "bytes", say=silent)  # nor does it get an end-of-text token
    assert tokens(tmp_path / "bytes", "val").tolist() == list(data[int(n * 0.9) :].encode())
    assert sum(meta["splits"][s]["documents"] for s in ("train", "val")) == 1
    assert sum(meta["splits"][s]["bytes"] for s in ("train", "val")) == n


@settings(deadline=None)
@given(st.text(alphabet="ab \n\r", max_size=200), st.integers(1, 20))
def test_passages_put_together_are_the_document(document, size):
    found = list(passages(document, size))
    assert "".join(found) == document
    assert all(len(passage) <= size for passage in found)


def test_texts_are_cut_where_gpt2_cuts_too(gpt2_files):
    gpt2, whole = BPETokenizer.get("gpt2"), "\n\n".join(documents(40))
    found = list(passages(whole, 500))
    assert len(found) > 50
    assert [i for passage in found for i in gpt2.encode(passage)] == gpt2.encode(whole).tolist()
    assert next(passages("ab\n\ncd\nef", 8)) == "ab\n\ncd\n"


@pytest.mark.parametrize("kind", ["jsonl.gz", "json.zst", "parquet"])
def test_a_broken_file_is_named(tmp_path, kind):
    data = open(save_as(kind, tmp_path, documents()), "rb").read()  # noqa: SIM115
    path = put(tmp_path / f"half.{kind}", data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"half.{kind} could not be read") as error:
        read(path)
    assert "\n" not in str(error.value)


LINES = {"txt": "line %d\n", "jsonl": '{"text": "line %d"}\n', "csv": "line %d\n"}


@pytest.mark.parametrize("kind", LINES)
def test_what_is_not_utf8_is_named_with_its_line_or_left_out(tmp_path, kind):
    header = "text\n" * (kind == "csv")
    lines = [header.encode(), *(LINES[kind].encode() % i for i in range(400))]
    whole = "".join(read(put(tmp_path / f"whole.{kind}", b"".join(lines[:201] + lines[202:]))))
    lines[201] = lines[201].replace(b"i", b"\xff\xfe")
    path = put(tmp_path / f"in.{kind}", b"".join(lines))
    with pytest.raises(ValueError, match=rf"in.{kind}, line {202 if header else 201} is not UTF-8 text: convert"):
        read(path)
    corpus = Corpus([path], errors="skip")
    assert "".join(corpus.documents()) == whole and corpus.skipped == 1


def test_a_line_of_a_table_has_its_number_after_others_were_left_out(tmp_path):
    path = put(tmp_path / "in.csv", b'id,text\n1,\xff\n2,\xff\n3,ok\n4,"x" y\n')
    with pytest.raises(ValueError, match="line 5 is not valid CSV"):
        list(Corpus([path], errors="skip").documents())


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("empty.txt", "", "the text is empty .*empty.txt"),
        ("c.jsonl", '{"body": "a", "id": 1}', r"no column 'text': .*--text_column .it has: body, id."),
        ("n.jsonl", '{"text": 3}', "record 1: the column holds int, not text"),
        ("m.jsonl", '{"text": "a"}\n{"body": "b"}', "m.jsonl, record 2: it has no column 'text'"),
        ("j.jsonl", '{"text": "a"}\n{', "line 2 is not JSON"),
        ("j.jsonl", '\n\n{"text": "a"}\n{', "line 4 is not JSON"),
        ("d.json", "[" * 100_000, "d.json is not JSON .maximum recursion"),
        ("q.csv", 'id,text\n1,one\n2,"Yes," he said\n3,three\n', "q.csv, line 3"),
        ("f.csv", "id,text\n1,one\n2,two, fields\n3,three\n", "f.csv, line 3"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read(put(tmp_path / name, content))


TABLES = {
    "mark.csv": ("\ufefftext\nsecond\n", ["second"]),
    "mark.txt": ("\ufefffirst line\n", ["first line\n"]),
    "half.jsonl": ('{"text": "\\ud83d|\\ud83d\\ude00"}\n', ["\ufffd|😀"]),  # of a surrogate pair
    "array.json": ('[{"text": "a"}, {"text": "b"}]', ["a", "b"]),
    "lines.json": ('\n{"text": "a"}\n\n{"text": "b"}\n', ["a", "b"]),
    "lines.ndjson": ('{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
    "tab.tsv": ("id\ttext\n1\ta, b\n", ["a, b"]),
    "long.json": ('[\n {"text": "a"},\n {"text": "b"}\n]', ["a", "b"]),
}


@pytest.mark.parametrize("name", TABLES)
def test_variants_of_the_formats_are_read(tmp_path, name):
    content, texts = TABLES[name]
    assert read(put(tmp_path / name, content)) == texts


def test_a_separator_means_lines_of_windows_too_and_one_that_does_not_occur_is_noticed(tmp_path):
    path, said = put(tmp_path / "in.txt", "one\r\n---\r\ntwo"), []
    assert read(path, separator=r"\n---\n") == ["one", "two"]
    for mark in (r"\n---\n", "<s>"):
        text.prepare([path], tmp_path / "data", "bytes", separator=mark, say=said.append)
    assert [line for line in said if "warning" in line] == ["warning: the separator '<s>' is not in the text"]


@pytest.mark.parametrize("mark", ["<|endoftext|>", "\n<|endoftext|>\n"])
def test_a_separator_in_a_text_becomes_the_end_of_a_document(tmp_path, mark):
    texts = documents(50)
    path = put(tmp_path / "in.txt", mark.join(texts))
    text.prepare([path], tmp_path / "data", "bytes", separator=mark.strip(), say=silent)
    expect = [t + "\n" * (mark[0] == "\n") for t in texts[:-1]] + texts[-1:]
    found = texts_of(tmp_path / "data")
    assert sorted(found["train"] + found["val"]) == sorted(expect)


# Which files an input means


def names(*inputs, say=silent) -> list[str]:
    """The names of the files that inputs mean."""
    return [os.path.basename(path) for path in find_files([str(name) for name in inputs], say)]


def test_a_folder_means_its_texts_in_the_order_of_names_and_others_are_counted(tmp_path):
    for name in ("b.txt", "more/a.md", "a.jsonl.gz", "c.PNG", "m/d.png", "Makefile", ".git/c.txt", "more/.d.txt"):
        put(tmp_path / name, "{}")
    said: list[str] = []
    assert names(tmp_path, say=said.append) == ["a.jsonl.gz", "b.txt", "a.md"]
    assert said == ["not read, because of their extensions: 2 .png, 1 without one"]
    assert names(tmp_path / "**" / "*.md", tmp_path / "*.txt") == ["a.md", "b.txt"]


def test_links_lead_to_a_file_once(tmp_path):
    a = put(tmp_path / "in" / "a.txt", "a")
    os.symlink(a, tmp_path / "in" / "d.txt")
    os.symlink(tmp_path / "nowhere", tmp_path / "in" / "f.txt")
    assert names(tmp_path / "in", a, tmp_path / "in" / "*.txt") == ["a.txt"]


@pytest.mark.parametrize(
    "name, message",
    [("nothing.txt", "does not exist"), ("*.jsonl", "does not exist"), ("folder", "has no files that end with .txt")],
)
def test_inputs_without_files_are_refused(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=message):
        names(tmp_path / name)


def test_data_prepared_inside_the_input_is_no_input(tmp_path):
    texts = documents(20)
    for i, t in enumerate(texts):
        put(tmp_path / f"{i}.txt", t)
    put(tmp_path / "README.md", "---\nlicense: mit\n---\n")  # as of a data set on the Hub
    for out in (tmp_path / "data", tmp_path / "data", tmp_path, tmp_path):  # each twice
        text.prepare([str(tmp_path)], out, "bytes", say=silent)
        found = texts_of(out)
        assert sorted(found["train"] + found["val"]) == sorted(texts)


def test_what_datasets_saves_and_streams_is_read(tmp_path):
    datasets.Dataset.from_dict({"text": documents(20)}).save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved") == documents(20)
    put(tmp_path / "more" / "README.md", "")
    save_as("parquet", tmp_path / "more", documents(30))
    assert read(f"hf:{tmp_path / 'more'}") == documents(30)


def test_a_name_is_no_pattern(tmp_path):
    (tmp_path / "a[1]").mkdir()
    save_as("parquet", tmp_path / "a[1]", documents(5))
    assert read(tmp_path / "a[1]") == documents(5)
