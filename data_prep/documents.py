"""Reads documents from files, folders, standard input, URLs and the Hub.

    >>> corpus = Corpus(["books/", "notes/*.md", "crawl.jsonl.gz"])
    >>> texts = [document.text for document in corpus.documents()]

The ending of a file tells its format. A document is a line (an object) of .jsonl, .ndjson and
.json, a record of .csv and .tsv, or a row of .parquet and .arrow, with its text in a column; a
.json may also be an array of objects or a single one. Any other file is one document of plain text,
which is read at once. With a separator, such as <|endoftext|>, each text is several documents.
Files may be compressed as .gz or .zst. `-` is standard input, copied to a temporary file;
`hf:OWNER/NAME:CONFIG:SPLIT` is a data set on the Hub (or a directory that `datasets` reads),
streamed, with configuration and split optional.

`datasets` reads tables and the Hub, and `fsspec` opens URLs. JSON and CSV are read with Python's
own modules: `datasets` wants the same columns in every line of JSON, and joins lines of a CSV at
stray quotes.
"""

import csv
import hashlib
import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from data_prep.inputs import HUB, bare, find_files, is_hub, is_records, is_url
from nanogpt.data.files import first_line

PIECE = 1 << 18  # characters that are tokenized at a time
NOTE = 1 << 14  # bytes
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
# halves of surrogate pairs, which JSON can spell; no tokenizer accepts them
SURROGATE = re.compile("[\ud800-\udfff]")
CONVERT = "convert it first (pdftotext, pandoc, gunzip, iconv -t UTF-8), or pass --errors replace"


class Document(NamedTuple):
    """A document and where it stands."""

    file: int  # number of the input
    where: str  # for messages: the file and the record
    text: str
    digest: int  # hash of the text, of 64 bits


def plain_text(value: object, where: str) -> str:
    """The text in a column. Raises ValueError if it is something else."""
    if isinstance(value, str | None):
        value = value or ""
        return value if value.isascii() else SURROGATE.sub("\ufffd", value)
    raise ValueError(f"{where}: the column holds {type(value).__name__}, not text")


class Corpus:
    """The documents of all inputs, in order; files of folders and patterns are sorted by name."""

    def __init__(
        self,
        inputs: list[str],
        columns: tuple[str, ...] = ("text",),
        errors: str = "strict",
        separator: str | None = None,
        convert: Callable[[object, str], str] = plain_text,
    ):
        """`columns` are the names that the column of the text may have.

        `errors` says what happens to text that is not UTF-8: strict raises, replace inserts U+FFFD,
        skip leaves out such lines, and records without a text, too. `separator` is what stands
        between the documents of a text. `convert` makes a text of what is in the column. Raises
        ValueError.
        """
        self.columns, self.errors = columns, errors
        self.separator, self.convert = separator, convert
        self.skipped = 0  # lines and records that `documents` has left out
        self.stdin = copy_stdin() if "-" in inputs else None  # lives as long as the corpus
        self.files, self.notes = find_files([self.stdin.name if n == "-" else n for n in inputs])
        self.streamed = any(is_hub(file.name) for file in self.files)
        self.size = sum(file.size for file in self.files)  # bytes
        if not self.streamed and self.size == 0:
            names = ", ".join(inputs)
            raise ValueError(f"the text is empty ({names}): there is nothing to train on")

    def fingerprint(self) -> list:
        """What must be unchanged for an interrupted preparation to resume."""
        return [self.columns, self.errors, self.separator, self.files]

    def outweighs(self, file: int) -> bool:
        """Whether an input is plain text, not short, and larger than all others together."""
        name, size, _ = self.files[file]
        is_plain = not (self.streamed or self.separator or is_records(name))
        return is_plain and size > NOTE and 2 * size > self.size

    def documents(self) -> Iterator[Document]:
        """The documents of all inputs, without empty ones.

        Raises ValueError or OSError naming the input.
        """
        self.skipped = 0
        for number, file in enumerate(self.files):
            try:
                for where, text in self._texts(file.name):
                    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
                    yield Document(number, where, text, int.from_bytes(digest, "little"))
            except Exception as error:  # whatever the libraries and the network raise
                if type(error) is ValueError or (isinstance(error, OSError) and error.filename):
                    raise
                raise ValueError(f"{file.name} could not be read: {first_line(error)}") from None

    def _texts(self, name: str) -> Iterator[tuple[str, str]]:
        """(where it stands, text) of each document of an input."""
        if is_records(name):
            found: Iterable = self._record_texts(name)
        else:
            found = [(name, "".join(self._lines(name)))]
        for where, text in found:
            parts = [text]
            if self.separator:  # a line break after it belongs to it
                parts = re.split(re.escape(self.separator) + r"(?:\r?\n)?", text)
            yield from ((where, part) for part in parts if part)

    def _record_texts(self, name: str) -> Iterator[tuple[str, str]]:
        """(where it stands, text) of each record of an input."""
        for number, record in enumerate(self._records(name), 1):
            where = f"{name}, record {number}"
            try:
                yield where, self._text_of(record, where)
            except ValueError as error:
                self._reject(str(error))

    def _text_of(self, record: object, where: str) -> str:
        found = record if isinstance(record, dict) else {}
        if not any(name in found for name in self.columns):
            column = "column " + " or ".join(map(repr, self.columns))
            has = ", ".join(str(name)[:40] for name in islice(found, 10)) or "none"
            advice = ": name one with --text_column" if len(self.columns) == 1 else ""
            raise ValueError(f"{where}: it has no {column} (it has: {has}){advice}")
        values = [found[name] for name in self.columns if found.get(name) is not None]
        return self.convert(values[0] if values else None, where)

    def _reject(self, why: str) -> None:
        """Counts what is left out with --errors skip, else raises ValueError."""
        if self.errors != "skip":
            raise ValueError(f"{why}; --errors skip leaves it out")
        self.skipped += 1

    def _lines(self, name: str) -> Iterator[str]:
        """The lines of a text file."""
        mode = "replace" if self.errors == "replace" else "strict"
        with open_bytes(name) as file:
            for number, line in enumerate(file, 1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8", mode)
                except UnicodeDecodeError:
                    text = "\0"
                if "\0" in text and mode == "strict":  # as in UTF-16 and binary files
                    self._reject(f"{name}, line {number} is not UTF-8 text: {CONVERT}")
                else:
                    yield text

    def _records(self, name: str) -> Iterator:
        """The objects of a JSON file or the rows of a table."""
        ending = Path(bare(name)).suffix
        if is_hub(name):
            path, config, split = [*name.removeprefix(HUB).split(":"), "", ""][:3]
            yield from stream(path, config or None, split=split or "train")
        elif ending in (".parquet", ".arrow"):
            path = name if is_url(name) else str(Path(name).absolute())
            yield from stream(ending[1:], data_files=path, split="train")
        elif ending in (".csv", ".tsv"):
            yield from self._rows(name, ending == ".tsv")
        else:
            yield from self._objects(name)

    def _objects(self, name: str) -> Iterator:
        """The objects of a JSON file: one in each line, or an array or object in several."""
        lines = self._lines(name)
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                try:
                    value = json.loads(line)
                except ValueError:  # perhaps it goes on in the next line
                    if not bare(name).endswith(".json"):
                        raise
                    value = json.loads(line + "".join(lines))
            except (ValueError, RecursionError) as error:
                self._reject(f"{name}, line {number} is not JSON ({error})")
            else:
                yield from value if isinstance(value, list) else [value]

    def _rows(self, name: str, is_tsv: bool) -> Iterator[dict]:
        """The rows of a CSV file, or of a TSV file, which has no quotes."""
        csv.field_size_limit(1 << 31)
        rows = csv.DictReader(self._lines(name), strict=True)
        if is_tsv:
            rows = csv.DictReader(
                self._lines(name), delimiter="\t", quoting=csv.QUOTE_NONE, strict=True
            )
        begin = 2  # the line where a row begins
        try:
            for row in rows:
                if None in row or None in row.values():
                    why = "the row has another number of fields than the header"
                    self._reject(f"{name}, line {begin}: {why}: quote its texts")
                else:
                    yield row
                begin = rows.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{name}, line {begin} is not valid CSV: {error}") from None


@contextmanager
def open_bytes(name: str) -> Iterator:
    """The decompressed bytes of a file or a URL, as a file."""
    import fsspec
    import pyarrow

    with fsspec.open(name) if is_url(name) else open(name, "rb") as raw:
        codec = COMPRESSION.get(Path(name.lower()).suffix)
        yield io.BufferedReader(pyarrow.input_stream(raw, codec)) if codec else raw


def stream(path: str, *args, **options) -> Iterator[dict]:
    """The rows of a data set, which `datasets` streams; it runs no code from it."""
    from datasets import load_dataset

    yield from load_dataset(path, *args, streaming=True, **options)


def passages(text: str, size: int) -> Iterator[str]:
    """The passages of a text, of at most `size` characters.

    They begin with lines, where tokenizers cut as well: if possible, between a single newline and a
    character other than white space.
    """
    start = 0
    while len(text) - start > size:
        cut = start + find_cut(text[start : start + size + 1], size)
        yield text[start:cut]
        start = cut
    yield text[start:]


def find_cut(text: str, size: int) -> int:
    """Where to cut `text`, after `size` characters at most."""
    end = size
    while (end := text.rfind("\n", 1, end)) > 0:
        if not text[end - 1].isspace() and not text[end + 1].isspace():
            return end + 1
    return text.rfind("\n", 0, size) + 1 or size


def copy_stdin():
    """A temporary copy of standard input, which is removed with the object."""
    file = tempfile.NamedTemporaryFile(prefix="stdin-")  # noqa: SIM115 - the corpus keeps it open
    shutil.copyfileobj(sys.stdin.buffer, file)
    file.flush()
    return file
