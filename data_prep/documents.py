"""Reads documents from files, folders and the Hub.

    >>> corpus = Corpus(["books/", "notes/*.md", "crawl.jsonl.gz"])
    >>> texts = list(corpus.documents())

A file's extension gives its format. A document is an object in a line of .jsonl, .ndjson or
.json, or in an array there, a record of .csv or .tsv, or a row of .parquet or .arrow, with its text
in a column. Any other file is one document of plain text, read as a whole. With a separator such as
<|endoftext|>, each text is split into several documents. Files may be compressed as .gz or .zst.
`hf:OWNER/NAME:CONFIG:SPLIT` is a data set on the Hub (or a directory that `datasets` can read). It
is streamed; configuration and split are optional.

`datasets` reads Parquet, Arrow and the Hub. JSON and CSV are read with Python's own modules:
`datasets` wants the same columns in every line of JSON, and joins lines of a CSV at stray quotes.
"""

import csv
import glob
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from nanogpt.data.files import first_line

PIECE = 1 << 18  # characters that are tokenized at a time
TEXT = (".txt", ".md")
RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
HUB = "hf:"
# describe the data in a data directory, or in one that `datasets` saved
DESCRIPTIONS = ("meta.json", "tokenizer.json", "dataset_info.json", "state.json")
# halves of surrogate pairs, which JSON can spell; no tokenizer accepts them
SURROGATE = re.compile("[\ud800-\udfff]")
LINES = re.compile(r"(?s).*\S\n(?=\S)")  # as many as possible, and no blank one at the cut


def plain_text(value: object, where: str) -> str:
    """The text in a column. Raises ValueError if it is something else."""
    if isinstance(value, str | None):
        value = value or ""
        return value if value.isascii() else SURROGATE.sub("\ufffd", value)
    raise ValueError(f"{where}: the column holds {type(value).__name__}, not text")


@dataclass
class Corpus:
    """The documents of all inputs, in order; files of folders and patterns are sorted by name.

    Raises ValueError if an input has no files; `documents` does if there is no text.
    """

    inputs: list[str]
    columns: tuple[str, ...] = ("text",)  # names that the column of the text may have
    errors: str = "strict"  # skip: leave out lines that are not UTF-8 and records without a text
    separator: str | None = None  # stands between the documents of a text
    convert: Callable[[object, str], str] = plain_text  # converts a column's value to text
    say: Callable[[str], object] = print

    def __post_init__(self):
        self.skipped = 0  # lines and records that `documents` has left out
        self.separated = not self.separator  # whether `documents` has found a separator
        self.files = find_files(self.inputs, self.say)
        status = [os.stat(name) for name in self.files if not name.startswith(HUB)]
        self.size = sum(each.st_size for each in status)  # bytes
        if len(status) < len(self.files):  # data sets on the Hub are taken for large ones
            self.size = 10**9
        times = [(each.st_size, each.st_mtime_ns) for each in status]
        # what must be unchanged for an interrupted preparation to resume
        self.fingerprint = [self.columns, self.errors, self.separator, self.files, times]

    def documents(self) -> Iterator[str]:
        """The documents that are not empty. Raises ValueError or OSError naming the input."""
        self.skipped, found = 0, False
        for name in self.files:
            try:
                texts = self._texts(name) if is_records(name) else ["".join(self._lines(name))]
                for text in texts:
                    parts = [text]
                    if self.separator:  # a line break after it belongs to it
                        mark = re.escape(self.separator.replace(r"\n", "\n"))
                        mark = mark.replace("\\\n", r"\r?\n")  # as Windows ends lines, too
                        parts = re.split(mark + r"(?:\r?\n)?", text)
                        self.separated |= len(parts) > 1
                    for part in filter(None, parts):
                        found = True
                        yield part
            except Exception as error:  # whatever the libraries and the network raise
                if type(error) is ValueError or (isinstance(error, OSError) and error.filename):
                    raise
                raise ValueError(f"{name} could not be read: {first_line(error)}") from None
        if not found:
            skipped = f", and {self.skipped:,} records were left out" if self.skipped else ""
            raise ValueError(f"the text is empty ({', '.join(self.inputs)}){skipped}")

    def _texts(self, name: str) -> Iterator[str]:
        """The text of each of an input's records."""
        for number, record in enumerate(self._records(name), 1):
            where = f"{name}, record {number}"
            found = record if isinstance(record, dict) else {}
            if not any(column in found for column in self.columns):
                column = "column " + " or ".join(map(repr, self.columns))
                has = ", ".join(map(str, found)) or "none"
                advice = ": name one with --text_column" if len(self.columns) == 1 else ""
                self.reject(f"{where}: it has no {column}{advice} (it has: {has})")
                continue
            values = (found[column] for column in self.columns if found.get(column) is not None)
            try:
                yield self.convert(next(values, None), where)
            except ValueError as error:
                self.reject(str(error))

    def reject(self, why: str) -> None:
        """With --errors skip counts what is left out; otherwise raises ValueError."""
        if self.errors != "skip":
            raise ValueError(f"{why}; --errors skip leaves it out")
        self.skipped += 1

    def say_skipped(self) -> None:
        """Says how much `documents` has left out, and if it has not found a separator."""
        if self.skipped:
            self.say(f"{self.skipped:,} lines or records were left out: they cannot be used")
        if not self.separated:
            self.say(f"warning: the separator {self.separator!r} is not in the text")

    def _lines(self, name: str) -> Iterator[str]:
        """The lines of a text file, which may be compressed."""
        import pyarrow

        compression = COMPRESSION.get(Path(name).suffix.lower())
        with io.BufferedReader(pyarrow.input_stream(name, compression), PIECE) as file:
            for number, line in enumerate(file, 1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    text = "\0"
                if "\0" in text:  # as in UTF-16 and binary files
                    convert = "convert it first (pdftotext, pandoc, iconv -t UTF-8)"
                    self.reject(f"{name}, line {number} is not UTF-8 text: {convert}")
                    text = ""
                yield text

    def _records(self, name: str) -> Iterator:
        """The objects of a JSON file or the rows of a table."""
        ending = Path(bare(name)).suffix
        if name.startswith(HUB):
            path, config, split = [*name.removeprefix(HUB).split(":"), "", ""][:3]
            yield from stream(path, config or None, split=split or "train")
        elif ending in (".parquet", ".arrow"):
            path = glob.escape(os.path.abspath(name))  # `datasets` takes it for a pattern
            yield from stream(ending[1:], data_files=path, split="train")
        elif ending in (".csv", ".tsv"):
            yield from self._rows(name, "\t" if ending == ".tsv" else ",")
        else:
            numbered = enumerate(self._lines(name), 1)
            texts = ((f"{name}, line {i}", line) for i, line in numbered if line.strip())
            where, first = next(texts, (name, "[]"))
            if first.lstrip().startswith("[") or first.strip() == "{":  # perhaps in several lines
                where, first = name, first + "".join(line for _, line in texts)
            for place, text in chain([(where, first)], texts):
                try:
                    value = json.loads(text)
                except (ValueError, RecursionError) as error:
                    self.reject(f"{place} is not JSON ({error})")
                else:
                    yield from value if isinstance(value, list) else [value]

    def _rows(self, name: str, delimiter: str) -> Iterator[dict]:
        """The rows of a CSV or TSV file."""
        csv.field_size_limit(1 << 31)
        rows = csv.DictReader(self._lines(name), strict=True, delimiter=delimiter)
        begin = 2  # the line where a row begins
        try:
            for row in rows:
                if None in row or None in row.values():
                    why = "the row has a different number of fields than the header"
                    self.reject(f"{name}, line {begin}: {why}: quote its texts")
                else:
                    yield row
                begin = rows.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{name}, line {begin} is not valid CSV: {error}") from None


def stream(path: str, *args, **options) -> Iterator[dict]:
    """The rows of a data set, streamed by `datasets`, which runs no code from it."""
    from datasets import load_dataset

    yield from load_dataset(path, *args, streaming=True, **options)


def find_files(inputs: list[str], say) -> list[str]:
    """The files of a Corpus, each once even if several links lead to it."""
    found: dict[str, str] = {}
    for name in inputs:
        if name.startswith(HUB):
            paths = [name]
        elif os.path.isdir(name):
            paths = find_folder(name, say)
        else:
            paths = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
            paths = [path for path in paths if os.path.isfile(path)]
        if not paths:
            what = "is not a file or folder" if os.path.exists(name) else "does not exist"
            if os.path.isdir(name):
                what = f"has no files that end with {', '.join(TEXT + RECORDS)}"
            raise ValueError(f"{name} {what}: name files, folders, patterns, or hf:OWNER/NAME")
        for path in paths:
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def find_folder(name: str, say) -> list[str]:
    """The files of a folder that can be read; counts the others, except hidden ones."""
    pattern = os.path.join(glob.escape(name), "**", "*")
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    readable = [path for path in paths if bare(path).endswith(TEXT + RECORDS)]
    others = Counter(os.path.splitext(path)[1].lower() for path in {*paths}.difference(readable))
    if others:
        counts = (f"{n:,} {ending or 'without one'}" for ending, n in others.most_common())
        say(f"not read, because of their extensions: {', '.join(counts)}")
    return [path for path in readable if not describes_data(path)]


def describes_data(path: str) -> bool:
    """Whether a file describes a data set: those of DESCRIPTIONS, and the Hub's README.md."""
    name = os.path.basename(path)
    if name != "README.md":
        return name in DESCRIPTIONS
    with open(path, "rb") as file:
        return file.read(4) == b"---\n"


def bare(name: str) -> str:
    """The name in lower case, without the extension of a compressed file."""
    return name.lower().removesuffix(".gz").removesuffix(".zst")


def is_records(name: str) -> bool:
    """Whether an input has records, each with a text, by its name."""
    return name.startswith(HUB) or bare(name).endswith(RECORDS)


def passages(text: str, size: int) -> Iterator[str]:
    """The passages of a text, of at most `size` characters.

    They begin with lines, where tokenizers cut as well: if possible, between a single newline and a
    character other than white space.
    """
    start = 0
    while len(text) - start > size:
        lines = LINES.match(text, start, start + size + 1)
        cut = lines.end() if lines else text.rfind("\n", start, start + size) + 1
        cut = cut or start + size
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]
