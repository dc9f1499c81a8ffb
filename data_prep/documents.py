"""Reads documents from files, folders, standard input, URLs and the Hub, in constant memory.

    >>> corpus = Corpus(["books/", "notes/*.md", "crawl.jsonl.gz"])
    >>> texts = [piece.text for piece in corpus.pieces()]

The ending of a file tells its format. A document is a line (an object) of .jsonl, .ndjson and
.json, a record of .csv and .tsv, or a row of .parquet and .arrow, with its text in the column
`text_column`; a .json may also be an array of objects or a single one, which is read at once. Any
other file is one document of plain text. With a separator, such as <|endoftext|>, each text is
several documents. Files may be compressed as .gz or .zst. `-` is standard input, copied to a
temporary file; `hf:OWNER/NAME:CONFIG:SPLIT` is a data set on the Hub (or a directory that
`datasets` reads), streamed, with configuration and split optional. In a folder, these are skipped:
hidden files and folders, test splits, READMEs of data sets, and tables without the column.

A .csv quotes fields as RFC 4180 says. A .tsv has no quotes, unless it cannot be read otherwise or
doubles the quotes in quoted fields. Stray quotes never join lines: a row of another length than the
header is an error.

A document of more than PIECE characters comes in several pieces. It is cut at starts of lines where
tokenizers cut as well: if possible, between a single newline and a character other than white
space.
"""

import copy
import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import accumulate, islice
from typing import NamedTuple

from data_prep.formats import (
    CONVERT,
    NOT_TEXT,
    SURROGATE,
    Errors,
    NoColumn,
    open_text,
    read_hub,
    read_records,
)
from data_prep.inputs import find_inputs, is_hub, is_records, is_url, left_out, some

PIECE = 1 << 18  # characters
NOTE = 1 << 14  # bytes


class Piece(NamedTuple):
    """A document, or a part of one that is longer than PIECE characters."""

    file: int  # number of the input
    document: int  # number of the document in it
    passage: int  # number of the piece in the document
    at: int  # bytes of the input that were read before it, about
    text: str
    place: int  # characters of the document before it
    length: int  # characters of the document
    digest: int  # hash of the document, of 64 bits

    @property
    def last(self) -> bool:
        return self.place + len(self.text) == self.length


class Corpus:
    """The documents of all inputs, in order; files of folders and patterns are sorted by name."""

    def __init__(
        self,
        inputs: list[str],
        text_column: str | tuple[str, ...] = "text",
        errors: str = "strict",
        shard: tuple[int, int] = (1, 1),
        separator: str | None = None,
    ):
        """`errors` says what happens to text that is not UTF-8.

        strict raises, replace inserts U+FFFD, skip leaves it out. skip leaves out records without a
        text, too. `shard` (i, n) takes the i-th of n parts of about equal size in bytes, from 1 on.
        `separator` is what stands between the documents of a text. Raises ValueError.
        """
        if shard[1] > 1 and ("-" in inputs or (len(inputs) > 1 and any(map(is_hub, inputs)))):
            wrong = "standard input nor a data set on the Hub with other inputs"
            raise ValueError(f"--shard supports neither {wrong}")
        self.columns = (text_column,) if isinstance(text_column, str) else text_column
        self.errors, self.shard, self.separator = Errors(errors), shard, separator
        self.spool = spool(sys.stdin) if "-" in inputs else None  # lives as long as the corpus
        found = find_inputs([self.spool.name if name == "-" else name for name in inputs])
        self.separated = False  # whether a separator was found
        self.skipped_before = 0  # what was left out of the inputs before the current one
        self.notes = left_out(inputs)  # on files that are not read
        in_folders = [name for name in found if name not in inputs and not is_url(name)]
        extra = [name for name in in_folders if not self.is_wanted(name)]
        if extra and len(extra) == len(found):
            next(self.records(extra[0], 0), None)  # raises ValueError
        if extra:
            self.notes.append(f"not read, because they have no {self.column_name()}: {some(extra)}")
        found = {name: status for name, status in found.items() if name not in extra}
        self.inputs, self.streamed = list(found), None in found.values()
        self.sizes = [status.size if status else 0 for status in found.values()]
        self.versions = [status.version if status else 0 for status in found.values()]
        self.size = sum(self.sizes)
        self.before = [0, *accumulate(self.sizes)]  # bytes of the inputs before each
        if not self.streamed and self.size == 0:
            names = ", ".join(inputs)
            raise ValueError(f"the text is empty ({names}): there is nothing to train on")
        self.measured: dict[str, tuple[int, int]] = {}  # length and digest of long plain texts

    @property
    def skipped(self) -> int:
        """How many lines, records and files were left out so far."""
        return sum(self.errors.skipped.values())

    def is_wanted(self, name: str) -> bool:
        """Whether a file of a folder has texts: metadata.csv and package.json have none."""
        try:
            if is_records(name):
                next(self.records(name, 0), None)
        except NoColumn:
            return False
        except ValueError:  # raised again when the file is read
            pass
        return True

    def fingerprint(self) -> list:
        """What must be unchanged for an interrupted preparation to resume."""
        settings = [self.columns, self.errors.mode, self.shard, self.separator]
        return [settings, list(zip(self.inputs, self.sizes, self.versions, strict=True))]

    def unsharded(self) -> "Corpus":
        """The same corpus without sharding."""
        other = copy.copy(self)
        other.shard = (1, 1)
        return other

    def outweighs(self, file: int) -> bool:
        """Whether an input is plain text, not short, and larger than all others together."""
        is_plain = not self.streamed and not self.is_divided(file)
        return is_plain and self.sizes[file] > NOTE and 2 * self.sizes[file] > self.size

    def is_divided(self, file: int) -> bool:
        """Whether an input can have several documents."""
        return bool(self.separator) or is_records(self.inputs[file])

    def documents(self) -> Iterator[Piece]:
        """The first piece of each document, whatever the shard."""
        corpus = self.unsharded()
        for f in range(len(self.inputs)):
            pieces = corpus.read(f, 0)
            if self.is_divided(f):
                yield from (piece for piece in pieces if not piece.place)
            else:
                yield from islice(pieces, 1)

    def pieces(
        self, file: int = 0, document: int = 0, passage: int = 0, skipped: int = 0
    ) -> Iterator[Piece]:
        """The pieces of this shard, starting with the given one.

        `skipped` is what was left out before its input. Raises ValueError or OSError naming the
        input.
        """
        self.errors.skipped.clear()
        self.errors.skipped[""] = skipped  # of no input
        i, n = self.shard
        low, high = self.size * (i - 1) // n, self.size * i // n
        everything = n == 1 or self.streamed  # `datasets` divides a data set on the Hub
        for f in range(file, len(self.inputs)):
            self.skipped_before = self.skipped
            start, stop = self.before[f], self.before[f + 1]
            if not everything and (stop <= low or start >= high):
                continue
            for piece in self.read(f, document if f == file else 0):
                # a reader may have read all of the file before its last documents
                place = min(start + piece.at, stop - 1)
                if not everything and place >= high:
                    break
                if piece[:3] >= (file, document, passage) and (everything or place >= low):
                    yield piece

    def read(self, f: int, first: int) -> Iterator[Piece]:
        """All pieces of input `f` from document `first` on."""
        name = self.inputs[f]
        if not self.is_divided(f):
            yield from pieces_of(f, 0, *self.plain(name))
            return
        texts = (
            islice(self.separate(name), first, None)
            if self.separator
            else self.records(name, first)
        )
        for document, (at, text) in enumerate(texts, first):
            yield from pieces_of(f, document, [(at, text)], *measure([text]))

    def separate(self, name: str) -> Iterator[tuple[int, str]]:
        """(position, text) of what is between separators; a line break after one belongs to it."""
        at, text, records = 0, "", is_records(name)
        for at, block in self.records(name, 0) if records else self.blocks(name):
            begin = max(len(text) - len(self.separator), 0)
            text += block
            if self.separator in text[begin:]:
                self.separated = True
                *parts, text = re.split(re.escape(self.separator) + r"(?:\r?\n)?", text)
                yield from ((at, part) for part in parts)
            if records:
                yield at, text
                text = ""
        yield at, text

    def plain(self, name: str) -> tuple[Iterable[tuple[int, str]], int, int]:
        """The blocks of a plain text file, its length and digest. A large file is read twice."""
        blocks = list(islice(self.blocks(name), 2))
        if len(blocks) < 2:
            return blocks, *measure(text for _, text in blocks)
        if name not in self.measured:
            self.measured[name] = measure(text for _, text in self.blocks(name))
        return self.blocks(name), *self.measured[name]

    def blocks(self, name: str) -> Iterator[tuple[int, str]]:
        """(position in bytes, text) of the blocks of a plain text file."""
        self.errors.skipped.pop(name, None)
        with open_text(name, self.errors.mode) as (file, tell):
            at = 0
            while block := file.read(PIECE) + file.readline(PIECE):
                if at == 0 and self.errors.mode != "replace" and NOT_TEXT.match(block):
                    self.errors.reject(name, f"{name} is not plain text: {CONVERT}")
                    return
                if text := self.errors.clean(name, block):
                    yield at, text
                at = tell()

    def records(self, name: str, first: int) -> Iterator[tuple[int, str]]:
        """(position, text) of a file's records from number `first` on; "" for one without text."""
        self.errors.skipped.pop(name, None)
        if is_hub(name):
            found = read_hub(
                name, self.shard, first, lambda columns: self.check_columns(name, columns)
            )
        else:
            found = read_records(name, self.columns, first, self.errors, self.as_records)
        for number, (at, record) in enumerate(found, first):
            yield at, self.text_of(name, number, record)

    def as_records(self, value: object) -> list:
        """The records in a value of a JSON file."""
        return value if isinstance(value, list) else [value]

    def text_of(self, name: str, number: int, record: object) -> str:
        """The text of a record. Raises ValueError if it has none and is not left out."""
        if not isinstance(record, dict):
            what = f"expected an object with a {self.column_name()}, not a {type(record).__name__}"
            raise NoColumn(f"{name}, record {number}: {what}")
        try:
            self.check_columns(name, record)
        except NoColumn:
            if number == 0:  # probably it has another name
                raise
            self.errors.reject(name, f"{name}, record {number}: it has no {self.column_name()}")
            return ""
        values = [record[column] for column in self.columns if record.get(column) is not None]
        return self.convert(name, number, values[0] if values else None)

    def convert(self, name: str, number: int, value: object) -> str:
        """The text of a value in the column."""
        if isinstance(value, str | None):
            value = value or ""
            return value if value.isascii() else SURROGATE.sub("\ufffd", value)
        what = f"column {self.columns[0]!r} holds {type(value).__name__}, not text"
        self.errors.reject(name, f"{name}, record {number}: {what}")
        return ""

    def check_columns(self, name: str, columns: Iterable[str]) -> None:
        """Raises NoColumn if the column of the text is not among the columns of a file."""
        if not any(column in columns for column in self.columns):
            has = ", ".join(str(column)[:40] for column in islice(columns, 10)) or "none"
            raise NoColumn(
                f"{name} has no {self.column_name()} (it has: {has}): name one with --text_column"
            )

    def column_name(self) -> str:
        return "column " + " or ".join(map(repr, self.columns))


def measure(texts: Iterable[str]) -> tuple[int, int]:
    """The length of a document, in characters, and its digest; however it is divided."""
    length, digest = 0, hashlib.blake2b(digest_size=8)
    for text in texts:
        length += len(text)
        digest.update(text.encode("utf-8"))
    return length, int.from_bytes(digest.digest(), "little")


def pieces_of(
    file: int, document: int, blocks: Iterable[tuple[int, str]], length: int, digest: int
) -> Iterator[Piece]:
    """The pieces of a document that is given in blocks."""
    place = 0
    for passage, (at, text) in enumerate(passages(blocks, PIECE)):
        yield Piece(file, document, passage, at, text, place, length, digest)
        place += len(text)


def passages(blocks: Iterable[tuple[int, str]], size: int) -> Iterator[tuple[int, str]]:
    """(position of its block, text) of a document's passages of at most `size` characters."""
    at, text, start = 0, "", 0
    for at, block in blocks:
        text, start = text[start:] + block, 0
        while len(text) - start > size:
            cut = start + find_cut(text[start : start + size + 1], size)
            yield at, text[start:cut]
            start = cut
    if start < len(text):
        yield at, text[start:]


def find_cut(text: str, size: int) -> int:
    """Where to cut `text`, after `size` characters at most."""
    end = size
    while (end := text.rfind("\n", 1, end)) > 0:
        if not text[end - 1].isspace() and not text[end + 1].isspace():
            return end + 1
    return text.rfind("\n", 0, size) + 1 or size


def spool(stdin):
    """Copies standard input to a temporary file, which is removed with the object."""
    if stdin is None:
        raise ValueError("standard input is closed: there is nothing to read from -")
    file = tempfile.NamedTemporaryFile(prefix="stdin-")  # noqa: SIM115 - the corpus keeps it open
    shutil.copyfileobj(stdin.buffer, file)
    file.flush()
    return file
