"""Which files an input means."""

import os

import datasets
import pytest
from texts import documents, documents_in, put, read, silent

from data_prep import text
from data_prep.inputs import find_files


def names(*inputs) -> list[str]:
    """The names of the files that inputs mean."""
    return [os.path.basename(file.name) for file in find_files([str(name) for name in inputs])[0]]


def test_a_folder_means_its_texts_in_the_order_of_names(tmp_path):
    for name in ("b.txt", "more/a.md", "a.jsonl.gz", "c.png", ".git/c.txt", "more/.d.txt"):
        put(tmp_path / name, "{}")
    assert names(tmp_path) == ["a.jsonl.gz", "b.txt", "a.md"]
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
        find_files([str(tmp_path / name)])


def test_other_files_in_a_folder_are_counted_in_the_output(tmp_path):
    for name in ("a.txt", "b.PDF", "m/c.pdf", "f.py", "Makefile", ".git/h.py"):
        put(tmp_path / name, "Some text.")
    (note,) = find_files([str(tmp_path)])[1]
    assert note.startswith("not read, because of their endings: 2 .pdf, 1 ") and "1 .py" in note


def test_data_prepared_inside_the_input_is_no_input(tmp_path):
    texts = documents(20)
    for i, t in enumerate(texts):
        put(tmp_path / f"{i}.txt", t)
    put(tmp_path / "README.md", "---\nlicense: mit\n---\n")  # as of a data set on the Hub
    for out in (tmp_path / "data", tmp_path / "data", tmp_path, tmp_path):  # each twice
        text.prepare([str(tmp_path)], out, "bytes", say=silent)
        assert documents_in(out) == sorted(texts)


def test_what_datasets_saved_to_disk_is_read(tmp_path):
    datasets.Dataset.from_dict({"text": documents(20)}).save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved") == documents(20)


def test_a_url_without_files_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"file://.*/\*.txt could not be read: .*no such file"):
        read(f"file://{tmp_path}/*.txt")
    with pytest.raises(ValueError, match=r"nosuch://bucket/a.txt could not be read"):
        read("nosuch://bucket/a.txt")
