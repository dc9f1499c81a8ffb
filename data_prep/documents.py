"""Reads documents from files, folders, standard input and data sets on the Hub, one by one in constant memory.

    >>> corpus = Corpus(["books/", "notes/*.md", "crawl.jsonl.gz"])
    >>> texts = [piece.text for piece in corpus.pieces()]

The suffix of a file tells its format. A document is a line (an object) of .jsonl, .ndjson and .json, a record of .csv
and .tsv, or a row of .parquet and .arrow, with its text in the column `text_column`; a .json may also be an array of
objects or a single one, which is read at once. Any other file is one document of plain text. With a separator, such as
<|endoftext|>, each text is several documents. Files may be packed as .gz or .zst. `-` is standard input, copied to a
temporary file; `hf:OWNER/NAME:CONFIG:SPLIT` is a data set on the Hub (or a directory that `datasets` reads), streamed,
with configuration and split optional. In a folder, these are skipped: hidden files and folders, test splits, READMEs of
data sets, and tables without the column.

A .csv quotes fields as RFC 4180 says. A .tsv has no quotes, unless it cannot be read otherwise or doubles the quotes in
quoted fields. Stray quotes never join lines: a row with more or fewer fields than the header is an error.

A document of more than PIECE characters comes in several pieces. It is cut at starts of lines where tokenizers cut as
well: if possible, between a single newline and a character other than white space.
"""

import codecs
import copy
import csv
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import accumulate, islice
from typing import NamedTuple

from data_prep.inputs import (
    HEAD,
    HUB,
    PACKED,
    bare,
    find_inputs,
    is_records,
    left_out,
    no_text,
    open_input,
    pyarrow_errors,
    some,
)

PIECE = 1 << 18  # characters
NOTE = 1 << 14  # bytes
HALVES = re.compile("[\ud800-\udfff]")  # of surrogate pairs, which no tokenizer accepts


class Piece(NamedTuple):
    """A document, or a part of one that is longer than PIECE characters."""

    file: int  # number of the input
    document: int  # number of the document in it
    passage: int  # number of the piece in the document
    at: int  # bytes of the input before it
    text: str
    place: int  # characters of the document before it
    length: int  # characters of the document
    digest: int  # hash of the document, of 64 bits

    @property
    def last(self) -> bool:
        return self.place + len(self.text) == self.length


class NoColumn(ValueError):
    """A table or a record lacks the column of the text."""


class Corpus:
    """The documents of all inputs, in order; files of folders and patterns are sorted by name."""

    kind, kind_name = str, "text"  # of a record

    def __init__(
        self,
        inputs: list[str],
        text_column: str = "text",
        errors: str = "strict",
        shard: tuple[int, int] = (1, 1),
        separator: str | None = None,
    ):
        """`errors` handles text that is not UTF-8: strict raises, replace inserts U+FFFD, skip leaves it out.

        skip leaves out records without a text, too. `shard` (i, n) takes the i-th of n parts of about equal size in
        bytes, from 1 on. `separator` is what stands between the documents of a text. Raises ValueError.
        """
        self.text_column, self.errors, self.shard, self.separator = text_column, errors, shard, separator
        if shard[1] > 1 and ("-" in inputs or (len(inputs) > 1 and any(name.startswith(HUB) for name in inputs))):
            raise ValueError("--shard supports neither standard input nor a data set on the Hub with other inputs")
        self.spool = spool(sys.stdin) if "-" in inputs else None  # lives as long as the corpus
        found = find_inputs([self.spool.name if self.spool and name == "-" else name for name in inputs])
        # lines, records and files that are not text: the number left out so far, and before the current input
        self.skipped = self.skipped_before = 0
        self.separated = False  # whether a separator was found
        self.quoted: dict[str, bool] = {}  # for each .tsv
        self.notes = left_out(inputs)  # on files that are not read
        if extra := [name for name in found if name not in inputs and not self.is_wanted(name)]:
            if len(extra) == len(found):
                next(self.records(extra[0], 0), None)  # raises ValueError
            self.notes.append(f"not read, because they have no {self.column_name()}: {some(extra)}")
            found = {name: status for name, status in found.items() if name not in extra}
            self.skipped = 0
        self.inputs, self.streamed = list(found), None in found.values()
        self.sizes = [status.st_size if status else 0 for status in found.values()]
        self.changed = [status.st_mtime_ns if status else 0 for status in found.values()]
        self.size = sum(self.sizes)
        self.before = [0, *accumulate(self.sizes)]  # bytes of the inputs before each
        if not self.streamed and self.size == 0:
            raise ValueError(f"the text is empty ({', '.join(inputs)}): there is nothing to train on")
        self.measured: dict[int, tuple[int, int]] = {}  # length and digest of plain texts of several pieces

    def is_wanted(self, name: str) -> bool:
        """Whether a file of a folder has texts: metadata.csv and package.json lie beside them, but are none."""
        if is_records(name):
            try:
                next(self.records(name, 0), None)
            except NoColumn:
                return False
            except ValueError:  # raised again when the file is read
                pass
        return True

    def column_name(self) -> str:
        return f"column {self.text_column!r}"

    def fingerprint(self) -> list:
        """What must be unchanged for an interrupted preparation to resume."""
        files = zip(self.inputs, self.sizes, self.changed, strict=True)
        return [[self.text_column, self.errors, list(self.shard), self.separator], [list(file) for file in files]]

    def unsharded(self) -> "Corpus":
        """The same corpus without sharding."""
        other = copy.copy(self)
        other.shard = (1, 1)
        return other

    def outweighs(self, file: int) -> bool:
        """Whether an input is plain text, longer than a note, and larger than all other inputs together."""
        plain = not self.streamed and not self.divided(file)
        return plain and self.sizes[file] > NOTE and 2 * self.sizes[file] > self.size

    def divided(self, f: int) -> bool:
        """Whether an input can have several documents."""
        return bool(self.separator) or is_records(self.inputs[f])

    def documents(self) -> Iterator[Piece]:
        """The first piece of each document, whatever the shard."""
        corpus = self.unsharded()
        for f in range(len(self.inputs)):
            pieces = corpus.read(f, 0)
            yield from (piece for piece in pieces if not piece.place) if self.divided(f) else islice(pieces, 1)

    def pieces(self, file: int = 0, document: int = 0, passage: int = 0) -> Iterator[Piece]:
        """The pieces of this shard, starting with the given one. Raises ValueError or OSError naming the input."""
        i, n = self.shard
        low, high = self.size * (i - 1) // n, self.size * i // n
        for f in range(file, len(self.inputs)):
            self.skipped_before = self.skipped
            everything = n == 1 or self.streamed  # `datasets` divides a data set on the Hub
            # a packed file belongs to a single shard, because positions in a packed stream are not exact
            packed = self.inputs[f].lower().endswith(PACKED)
            first, stop = self.before[f], self.before[f] + (1 if packed else self.sizes[f])
            if not everything and (stop <= low or first >= high):
                continue
            for piece in self.read(f, document if f == file else 0):
                place = first + (0 if packed else piece.at)
                if not everything and place >= high:
                    break
                if piece[:3] >= (file, document, passage) and (everything or place >= low):
                    yield piece

    def read(self, f: int, first: int) -> Iterator[Piece]:
        """All pieces of input `f` from document `first` on."""
        name = self.inputs[f]
        if not self.divided(f):
            yield from pieces_of(f, 0, *self.plain(f))
            return
        texts = islice(self.separate(name), first, None) if self.separator else self.records(name, first)
        for document, (at, text) in enumerate(texts, first):
            yield from pieces_of(f, document, [(at, text)], *measure([text]))

    def separate(self, name: str) -> Iterator[tuple[int, str]]:
        """(start in bytes, text) of what stands between separators; a line break after one belongs to it."""
        records = is_records(name)
        at, text = 0, ""
        for at, block in self.records(name, 0) if records else self.blocks(name):
            begun = max(len(text) - len(self.separator), 0)
            text += block
            if self.separator in text[begun:]:
                self.separated = True
                *parts, text = re.split(re.escape(self.separator) + r"(?:\r?\n)?", text)
                yield from ((at, part) for part in parts)
            if records:
                yield at, text
                text = ""
        yield at, text

    def plain(self, f: int) -> tuple[Iterable[tuple[int, str]], int, int]:
        """The blocks of a plain text file, its length and its digest. A large file is read twice."""
        name, skipped = self.inputs[f], self.skipped
        blocks = list(islice(self.blocks(name), 2))
        if len(blocks) < 2:
            return blocks, *measure(text for _, text in blocks)
        if f not in self.measured:
            self.measured[f] = measure(text for _, text in self.blocks(name))
        self.skipped = skipped  # the second reading counts again
        return self.blocks(name), *self.measured[f]

    def blocks(self, name: str) -> Iterator[tuple[int, str]]:
        """(start in bytes, text) of the blocks of a plain text file."""
        with open_input(name) as (file, position):
            if self.errors != "replace" and (what := no_text(name, file.peek(HEAD)[:HEAD])):
                if self.errors == "strict":
                    raise ValueError(what)
                self.skipped += 1
                return
            start = 0
            while block := file.read(PIECE):
                block += file.readline(PIECE)
                while (following := file.peek(1)[:1]) and 0x80 <= following[0] < 0xC0:  # not inside a character
                    block += file.read(1)
                if text := self.decode(block, start, name):
                    yield position() or start, text
                start += len(block)

    def records(self, name: str, first: int) -> Iterator[tuple[int, str]]:
        """(start in bytes, text) of the records of a file from number `first` on; "" for a record without text."""
        if name.startswith(HUB):
            found = self.hub(name, first)
        elif bare(name).endswith(".parquet"):
            found = self.parquet(name, first)
        elif bare(name).endswith(".arrow"):
            found = islice(self.arrow(name), first, None)
        else:
            found = islice(self.lines_of_records(name), first, None)
        for number, (at, value) in enumerate(found, first):
            yield at, self.text_of(value, f"{name}, record {number}")

    def text_of(self, value: object, where: str) -> str:
        """The text of a record's column. Raises ValueError if it holds something else."""
        if isinstance(value, str | None):
            return value or ""
        return self.reject(f"{where}: column {self.text_column!r} holds {type(value).__name__}, not text")

    def reject(self, why: str, kind: type[ValueError] = ValueError) -> str:
        """Leaves a record out with --errors skip, else raises an error."""
        if self.errors != "skip":
            raise kind(f"{why}; --errors skip leaves it out")
        self.skipped += 1
        return ""

    def lines_of_records(self, name: str) -> Iterator[tuple[int, object]]:
        """The text column of a jsonl or csv file."""
        with open_input(name) as (file, position):
            lines = Lines(file, lambda line, start: self.decode(line, start, name))
            is_table = bare(name).endswith((".csv", ".tsv"))
            for number, record in enumerate(self.table(name, lines) if is_table else self.values(name, lines)):
                if not isinstance(record, dict):
                    raise NoColumn(
                        f"{name}, byte {lines.start}: expected an object with a column {self.text_column!r}, "
                        f"not a {type(record).__name__}"
                    )
                try:
                    self.check_column(name, record)
                    text = record[self.text_column]
                except NoColumn as error:
                    if not number:  # probably it has another name
                        raise
                    text = self.reject(f"{name}, record {number}: {str(error).partition(': ')[0]}")
                if isinstance(text, str):
                    text = HALVES.sub("\ufffd", text)
                yield position() or lines.start, text

    def table(self, name: str, lines: Iterable[str]) -> Iterator[dict]:
        """The records of a csv file."""
        csv.field_size_limit(1 << 31)
        tabs = bare(name).endswith(".tsv")
        quoting = csv.QUOTE_NONE if tabs and not self.is_quoted(name) else csv.QUOTE_MINIMAL
        delimiter, begin = "\t" if tabs else ",", 1
        reader = csv.reader(carriage_returns(lines), delimiter=delimiter, quoting=quoting, strict=True)
        try:
            header = next(reader, [])
            self.check_column(name, header)
            begin = reader.line_num + 1
            for row in reader:
                if len(row) == len(header):
                    yield dict(zip(header, row, strict=True))
                elif row:  # an empty line is none
                    self.reject(
                        f"{name}, line {begin}: {len(row)} fields, but the header has {len(header)}: a field with a "
                        "separator or a line break in it must be quoted"
                    )
                begin = reader.line_num + 1
        except csv.Error as error:
            why = 'a field that begins with a quote must end with one, and double the quotes in it ("")'
            if str(error).startswith("new-line"):
                why = "a field with a carriage return in it must be quoted"
            up_to = f" to {reader.line_num}" if reader.line_num > begin else ""
            raise ValueError(f"{name}, line {begin}{up_to}: {why}") from None

    def is_quoted(self, name: str) -> bool:
        """Whether a .tsv has quoted fields: if it can only be read so, or its header or a doubled quote shows it."""
        if name not in self.quoted:
            skipped = self.skipped
            with open_input(name) as (file, _):
                lines = carriage_returns(Lines(file, lambda line, start: self.decode(line, start, name)))
                scan = Scan(lines)
                try:
                    widths = {len(row) for row in csv.reader(scan, delimiter="\t", strict=True) if row}
                except csv.Error:
                    widths = set()
            self.skipped = skipped  # reading the file counts again
            self.quoted[name] = len(widths) == 1 and (len(scan.widths) > 1 or scan.shown)
        return self.quoted[name]

    def values(self, name: str, lines: "Lines") -> Iterator[object]:
        """The values of a JSON file: one in each line, or a single one, or the items of arrays."""
        begun = False
        for line in lines:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):  # perhaps it goes on in the next line
                whole = not begun and (line.lstrip().startswith("[") or bare(name).endswith(".json"))
                start = lines.start
                value = self.parse(name, line + "".join(lines) if whole else line, start)
            begun = True
            value = self.as_record(value)
            yield from value if isinstance(value, list) else [value]

    def as_record(self, value: object) -> object:
        """A record that is not an object as one that is."""
        return value

    def parse(self, name: str, text: str, start: int) -> object:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{name}, byte {start}: the line is not JSON ({error}); expected one object per line, "
                f"as jq -c . {shlex.quote(name)} writes them"
            ) from None

    def parquet(self, name: str, first: int) -> Iterator[tuple[int, object]]:
        """The text column from row `first` on, with the bytes read so far; earlier row groups are not read."""
        import pyarrow.parquet

        with pyarrow_errors(name), pyarrow.parquet.ParquetFile(name, buffer_size=1 << 20, pre_buffer=False) as file:
            self.check_column(name, file.schema_arrow.names)
            size, rows, number = os.path.getsize(name), file.metadata.num_rows, 0
            groups = list(range(file.num_row_groups))
            while groups and number + file.metadata.row_group(groups[0]).num_rows <= first:
                number += file.metadata.row_group(groups.pop(0)).num_rows
            for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=[self.text_column]):
                wanted = batch.column(0).slice(max(first - number, 0))
                number += len(batch) - len(wanted)
                for text in wanted.to_pylist():
                    yield size * number // rows, text
                    number += 1

    def arrow(self, name: str) -> Iterator[tuple[int, object]]:
        """The text column of an Arrow file or stream, with the bytes read so far."""
        import pyarrow

        with pyarrow_errors(name), pyarrow.memory_map(name) as file:
            try:  # the format that `datasets` writes
                batches = pyarrow.ipc.open_stream(file)
            except pyarrow.ArrowInvalid:
                reader = pyarrow.ipc.open_file(file)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            for batch in batches:
                self.check_column(name, batch.schema.names)
                at = file.tell()
                for part in range(0, len(batch), 256):
                    for text in batch.column(self.text_column).slice(part, 256).to_pylist():
                        yield at, text

    def hub(self, name: str, first: int) -> Iterator[tuple[int, object]]:
        """Streams a data set with `datasets`, which runs no code from it."""
        from datasets import load_dataset

        path, config, split = [*name.removeprefix(HUB).split(":"), "", ""][:3]
        try:
            dataset = load_dataset(path, config or None, split=split or "train", streaming=True)
            if dataset.column_names:
                self.check_column(name, dataset.column_names)
            i, n = self.shard
            if n > dataset.num_shards:
                raise ValueError(f"{name} has {dataset.num_shards} files: it cannot be divided into {n} shards")
            dataset = dataset.shard(num_shards=n, index=i - 1, contiguous=True) if n > 1 else dataset
            for record in dataset.skip(first):
                self.check_column(name, record)
                yield 0, record[self.text_column]
        except ValueError:
            raise
        except Exception as error:  # `datasets` raises whatever its readers and the network raise
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"{name} could not be read: {why}") from None

    def check_column(self, name: str, columns: Iterable[str]) -> None:
        if self.text_column not in columns:
            has = ", ".join(str(column)[:40] for column in islice(columns, 10)) or "none"
            raise NoColumn(f"{name} has no column {self.text_column!r} (it has: {has}): name one with --text_column")

    def decode(self, block: bytes, start: int, name: str) -> str:
        """Decodes bytes that start at byte `start` of the input, without the lines that are to be skipped."""
        if start == 0:
            block = block.removeprefix(codecs.BOM_UTF8)
        nul = -1 if self.errors == "replace" else block.find(b"\0")
        try:
            if nul < 0:
                return block.decode("utf-8", "replace" if self.errors == "replace" else "strict")
            why = f"has a NUL at byte {start + nul}, like UTF-16 and binary files"
        except UnicodeDecodeError as error:
            why = f"is not UTF-8 text (byte {start + error.start})"
        if self.errors == "strict":
            raise ValueError(
                f"{name} {why}: --errors replace keeps it, with U+FFFD for what is not UTF-8, --errors skip leaves "
                "that line out, iconv -t UTF-8 converts it"
            )
        lines = block.splitlines(keepends=True)
        self.skipped += len(lines) == 1
        return "".join(self.decode(line, 1, name) for line in lines) if len(lines) > 1 else ""


class Lines:
    """The lines of a binary file as text; `start` is the first byte of the last line."""

    def __init__(self, file: Iterable[bytes], decode):
        self.file, self.decode, self.start = file, decode, 0

    def __iter__(self) -> Iterator[str]:
        end = 0
        for line in self.file:
            self.start, end = end, end + len(line)
            text = self.decode(line, self.start)
            if text:
                yield text


class Scan:
    """Passes the lines of a .tsv on, and notes what they are like without quotes."""

    DOUBLED = re.compile(r'(?:^|\t)"(?:[^"\t]|"")*""(?:[^"\t]|"")*"(?=[\t\r\n]|$)')

    def __init__(self, lines: Iterable[str]):
        self.lines = lines
        self.widths: set[int] = set()  # fields of the lines
        self.shown = False  # whether the header or a doubled quote in a field shows that fields are quoted

    def __iter__(self) -> Iterator[str]:
        for line in self.lines:
            self.shown |= (not self.widths and line[0] == '"') or ('""' in line and bool(self.DOUBLED.search(line)))
            if line.strip("\r\n"):
                self.widths.add(line.count("\t"))
            yield line


def carriage_returns(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a table, whose lines may end with a carriage return alone, as on old Macs."""
    old = None
    for line in lines:
        if old is None:
            old = "\r" in line.rstrip("\r\n")
        yield from io.StringIO(line, newline="") if old else [line]


def measure(texts: Iterable[str]) -> tuple[int, int]:
    """The length of a document, in characters, and its digest; both are the same however it is divided."""
    length, digest = 0, hashlib.blake2b(digest_size=8)
    for text in texts:
        length += len(text)
        digest.update(text.encode("utf-8"))
    return length, int.from_bytes(digest.digest(), "little")


def pieces_of(file: int, document: int, blocks: Iterable[tuple[int, str]], length: int, digest: int) -> Iterator[Piece]:
    """The pieces of a document that is given in blocks."""
    place = 0
    for passage, (at, text) in enumerate(passages(blocks, PIECE)):
        yield Piece(file, document, passage, at, text, place, length, digest)
        place += len(text)


def passages(blocks: Iterable[tuple[int, str]], size: int) -> Iterator[tuple[int, str]]:
    """(start of its block in bytes, text) of a document's passages of at most `size` characters."""
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
    """Copies standard input to a temporary file, which can be read twice. It is removed with the object."""
    if stdin is None:
        raise ValueError("standard input is closed: there is nothing to read from -")
    file = tempfile.NamedTemporaryFile(prefix="stdin-")  # noqa: SIM115 - the corpus keeps it open
    shutil.copyfileobj(stdin.buffer, file)
    file.flush()
    return file
