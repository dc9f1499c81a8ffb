"""Reads documents from files, folders, standard input, URLs and the Hub, in constant memory.

    >>> corpus = Corpus(["books/", "notes/*.md", "crawl.jsonl.gz"])
    >>> texts = [piece.text for piece in corpus.pieces()]

The ending of a file tells its format. A document is a line (an object) of .jsonl, .ndjson and
.json, a record of .csv and .tsv, or a row of .parquet and .arrow, with its text in a column; a
.json may also be an array of objects or a single one, which is read at once. Any other file is one
document of plain text. With a separator, such as <|endoftext|>, each text is several documents.
Files may be compressed as .gz or .zst. `-` is standard input, copied to a temporary file;
`hf:OWNER/NAME:CONFIG:SPLIT` is a data set on the Hub (or a directory that `datasets` reads),
streamed, with configuration and split optional. In a folder, these are skipped: hidden files and
folders, test splits, READMEs of data sets, and tables without the column.

A .csv quotes fields as RFC 4180 says, a .tsv does not quote. Stray quotes never join lines: a row
of another length than the header is an error.

A document of more than PIECE characters comes in several pieces. It is cut at starts of lines where
tokenizers cut as well: if possible, between a single newline and a character other than white
space.
"""

import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, islice
from typing import NamedTuple

from data_prep import formats
from data_prep.formats import SURROGATE, Errors
from data_prep.inputs import find_files, is_hub, is_records, is_url, some

PIECE = 1 << 18  # characters
NOTE = 1 << 14  # bytes


class NoColumn(ValueError):
    """A table or a record lacks the column of the text."""


class Piece(NamedTuple):
    """A document, or a part of one that is longer than PIECE characters."""

    file: int  # number of the input
    document: int  # number of the document in it
    at: int  # about how many bytes of all inputs were read before it
    text: str
    place: int  # characters of the document before it
    length: int  # characters of the document
    digest: int  # hash of the document, of 64 bits

    @property
    def last(self) -> bool:
        """Whether the document ends with it."""
        return self.place + len(self.text) == self.length


def records_in(value: object) -> list:
    """The records in a value of a JSON file, which may be an array of them."""
    return value if isinstance(value, list) else [value]


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
        shard: tuple[int, int] = (1, 1),
        separator: str | None = None,
        unpack: Callable[[object], list] = records_in,
        convert: Callable[[object, str], str] = plain_text,
    ):
        """`columns` are the names that the column of the text may have.

        `errors` says what happens to text that is not UTF-8: strict raises, replace inserts U+FFFD,
        skip leaves it out, and records without a text, too. `shard` (i, n) takes the i-th of n
        parts of about equal size in bytes, from 1 on. `separator` is what stands between the
        documents of a text. `unpack` finds the records in a value of a JSON file, `convert` makes a
        text of what is in the column. Raises ValueError.
        """
        if shard[1] > 1 and ("-" in inputs or (len(inputs) > 1 and any(map(is_hub, inputs)))):
            wrong = "standard input nor a data set on the Hub with other inputs"
            raise ValueError(f"--shard supports neither {wrong}")
        self.columns, self.shard, self.separator = columns, shard, separator
        self.errors, self.unpack, self.convert = Errors(errors), unpack, convert
        self.separated = False  # whether a separator was found
        self.stdin = spool(sys.stdin) if "-" in inputs else None  # lives as long as the corpus
        found, self.notes = find_files([self.stdin.name if n == "-" else n for n in inputs])
        in_folders = [f.name for f in found if f.name not in inputs and not is_url(f.name)]
        extra = [name for name in in_folders if self._lacks_column(name)]
        if extra and len(extra) < len(found):  # else reading the first raises
            self.notes.append(f"not read, because they have no {self._column()}: {some(extra)}")
            found = [file for file in found if file.name not in extra]
        self.files = found
        self.streamed = any(is_hub(file.name) for file in self.files)
        # bytes of the inputs before each
        self.before = [0, *accumulate(file.size for file in self.files)]
        self.size = self.before[-1]
        if not self.streamed and self.size == 0:
            names = ", ".join(inputs)
            raise ValueError(f"the text is empty ({names}): there is nothing to train on")
        self.measured: dict[str, tuple[int, int]] = {}  # length and digest of long plain texts

    def _lacks_column(self, name: str) -> bool:
        """Whether a file has no texts, such as metadata.csv and package.json."""
        if not is_records(name):
            return self.convert is not plain_text  # plain text is no conversation
        try:
            next(self._records(name), None)
        except NoColumn:
            return True
        except ValueError:  # raised again when the file is read
            pass
        return False

    @property
    def skipped(self) -> int:
        """How many lines, records and files `pieces` has left out so far."""
        return self.errors.skipped

    def fingerprint(self) -> list:
        """What must be unchanged for an interrupted preparation to resume."""
        return [self.columns, self.errors.mode, self.shard, self.separator, self.files]

    def outweighs(self, file: int) -> bool:
        """Whether an input is plain text, not short, and larger than all others together."""
        size = self.files[file].size
        is_plain = not self.streamed and not self._is_divided(file)
        return is_plain and size > NOTE and 2 * size > self.size

    def _is_divided(self, file: int) -> bool:
        """Whether an input can have several documents."""
        return bool(self.separator) or is_records(self.files[file].name)

    def documents(self) -> Iterator[Piece]:
        """The first piece of each document, whatever the shard."""
        for number in range(len(self.files)):
            pieces = self._read(number, (1, 1))
            if self._is_divided(number):
                yield from (piece for piece in pieces if not piece.place)
            else:
                yield from islice(pieces, 1)

    def pieces(self, shard: tuple[int, int] | None = None) -> Iterator[Piece]:
        """The pieces of a shard, this corpus's own if none is given.

        Raises ValueError or OSError naming the input.
        """
        self.errors.skipped = 0
        i, n = shard or self.shard
        low, high = self.size * (i - 1) // n, self.size * i // n
        everything = n == 1 or self.streamed  # `datasets` divides a data set on the Hub
        for number in range(len(self.files)):
            start, stop = self.before[number], self.before[number + 1]
            if not everything and (stop <= low or start >= high):
                continue
            for piece in self._read(number, (i, n)):
                if not everything and piece.at >= high:
                    break
                if everything or piece.at >= low:
                    yield piece

    def _read(self, number: int, shard: tuple[int, int]) -> Iterator[Piece]:
        """All pieces of an input."""
        name = self.files[number].name
        if not self._is_divided(number):
            yield from self._pieces_of(number, 0, *self._plain(name))
            return
        texts = self._separate(name, shard) if self.separator else self._records(name, shard)
        for document, (at, text) in enumerate(texts):
            yield from self._pieces_of(number, document, [(at, text)], *measure([text]))

    def _pieces_of(
        self, file: int, document: int, blocks: Iterable, length: int, digest: int
    ) -> Iterator[Piece]:
        """The pieces of a document that is given in blocks (position, text)."""
        place, start, stop = 0, self.before[file], self.before[file + 1]
        for position, text in passages(blocks, PIECE):
            # a reader may have read all of the file before its last documents
            at = min(start + position, stop - 1)
            yield Piece(file, document, at, text, place, length, digest)
            place += len(text)

    def _plain(self, name: str) -> tuple[Iterable[tuple[int, str]], int, int]:
        """The blocks of a plain text file, its length and digest. A large file is read twice."""
        blocks = list(islice(formats.read_text(name, self.errors, PIECE), 2))
        if len(blocks) < 2:
            return blocks, *measure(text for _, text in blocks)
        if name not in self.measured:
            texts = (text for _, text in formats.read_text(name, Errors(self.errors.mode), PIECE))
            self.measured[name] = measure(texts)
        return formats.read_text(name, self.errors, PIECE), *self.measured[name]

    def _separate(self, name: str, shard: tuple[int, int]) -> Iterator[tuple[int, str]]:
        """(position, text) of what is between separators; a line break after one belongs to it."""
        at, text, records = 0, "", is_records(name)
        blocks = (
            self._records(name, shard) if records else formats.read_text(name, self.errors, PIECE)
        )
        for at, block in blocks:
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

    def _records(self, name: str, shard: tuple[int, int] = (1, 1)) -> Iterator[tuple[int, str]]:
        """(position, text) of a file's records; "" for one without text that is left out."""
        number = 0
        for at, value in formats.read_records(name, self.columns, self.errors, shard):
            for record in self.unpack(value):
                number += 1
                try:
                    text = self._text_of(record, name, number)
                except NoColumn as error:
                    if number == 1:  # probably it has another name
                        raise
                    self.errors.reject(str(error))
                    text = ""
                yield at, text

    def _text_of(self, record: object, name: str, number: int) -> str:
        """The text of a record, "" if it is left out."""
        where = f"{name}, record {number}"
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise NoColumn(f"{where}: expected an object with a {self._column()}, not a {kind}")
        if not any(column in record for column in self.columns):
            has = ", ".join(str(column)[:40] for column in islice(record, 10)) or "none"
            raise NoColumn(
                f"{where}: it has no {self._column()} (it has: {has}): name one with --text_column"
            )
        values = [record[column] for column in self.columns if record.get(column) is not None]
        try:
            return self.convert(values[0] if values else None, where)
        except ValueError as error:
            self.errors.reject(str(error))
            return ""

    def _column(self) -> str:
        return "column " + " or ".join(map(repr, self.columns))


def measure(texts: Iterable[str]) -> tuple[int, int]:
    """The length of a document, in characters, and its digest; however it is divided."""
    length, digest = 0, hashlib.blake2b(digest_size=8)
    for text in texts:
        length += len(text)
        digest.update(text.encode("utf-8"))
    return length, int.from_bytes(digest.digest(), "little")


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
