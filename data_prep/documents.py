"""Documents out of files, folders, standard input and data sets of the Hub, one after the other in constant memory.

    >>> corpus = Corpus(["books/", "notes/*.md", "crawl.jsonl.gz"])
    >>> texts = [piece.text for piece in corpus.pieces()]

What a file holds follows from its name: .jsonl, .ndjson and .json have an object a line, .csv and .tsv a record,
.parquet and .arrow a row for each document, whose text is in the column `text_column`; any other file is one document
of plain text. A further .gz or .zst is unpacked on the way. `-` is standard input, `hf:OWNER/NAME:CONFIG:SPLIT` a data
set of the Hub (or a directory that `datasets` reads), streamed; configuration and split may be left out.

A plain text larger than a hundredth of all input comes in several pieces, so that a single book too can be divided into
training and validation text, and so does any document beyond a million characters. They are cut at the beginnings of
lines, where tokenizers cut as well: between a newline alone and a character that is no space, where there is one.
"""

import codecs
import csv
import glob
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate, islice
from pathlib import Path
from typing import NamedTuple

TEXT = (".txt", ".md")
RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
PACKED = (".gz", ".zst")
LARGEST_PIECE = 1 << 20  # characters
STREAM_PIECE = 1 << 12  # of an input whose size is not known
HUB = "hf:"


class Piece(NamedTuple):
    """A document or, where `passage` is above 0 or `last` is false, a part of one."""

    file: int  # number of the input
    document: int  # number of the document in it
    passage: int  # number of the piece in the document
    at: int  # bytes of the input that lie before
    text: str
    last: bool  # the document ends here


class Corpus:
    """The documents of all inputs, in the order of the inputs; folders and patterns in the order of their names."""

    def __init__(
        self, inputs: list[str], text_column: str = "text", errors: str = "strict", shard: tuple[int, int] = (1, 1)
    ):
        """`errors` is what happens to text that is not UTF-8: strict raises, replace puts U+FFFD, skip leaves it out.

        `shard` (i, n), counted from 1, takes the i-th of n parts, about equal in bytes. Raises ValueError.
        """
        self.text_column, self.errors, self.shard = text_column, errors, shard
        self.inputs = find_inputs(inputs)
        self.sizes = [os.path.getsize(name) if is_file(name) else 0 for name in self.inputs]
        self.size = sum(self.sizes)
        self.before = [0, *accumulate(self.sizes)]  # bytes of the inputs before each
        self.skipped = 0  # documents and lines left out because they are not UTF-8
        files = [name for name in self.inputs if is_file(name)]
        if len(files) < len(self.inputs) and shard[1] > 1 and (len(self.inputs) > 1 or "-" in self.inputs):
            raise ValueError("a data set of the Hub cannot be divided together with other inputs, and - not at all")
        if len(files) == len(self.inputs) and self.size == 0:
            raise ValueError(f"the text is empty ({', '.join(inputs)}): there is nothing to train on")
        self.piece_size = (
            STREAM_PIECE if len(files) < len(self.inputs) else min(max(self.size // 100, 256), LARGEST_PIECE)
        )

    def fingerprint(self) -> list:
        """What has to be the same for an interrupted preparation to be taken up again."""
        times = [os.stat(name).st_mtime_ns if is_file(name) else 0 for name in self.inputs]
        settings = [self.text_column, self.errors, list(self.shard)]
        return [settings, [list(file) for file in zip(self.inputs, self.sizes, times, strict=True)]]

    def pieces(self, file: int = 0, document: int = 0, passage: int = 0) -> Iterator[Piece]:
        """The pieces of this shard from the given one on. Raises ValueError or OSError that names the input."""
        i, n = self.shard
        low, high = self.size * (i - 1) // n, self.size * i // n
        for f in range(file, len(self.inputs)):
            everything = not is_file(self.inputs[f]) or n == 1  # a data set of the Hub is divided by `datasets`
            # a packed file is in one shard as a whole: how far a packed stream is read ahead is not for sure
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
        if is_records(name):
            documents, size = ([document] for document in self.records(name, first)), LARGEST_PIECE
        else:
            documents, size, first = [self.blocks(name)], self.piece_size, 0
        for document, blocks in enumerate(documents, first):
            for passage, (at, text, last) in enumerate(passages(blocks, size)):
                yield Piece(f, document, passage, at, text, last)

    def blocks(self, name: str) -> Iterator[tuple[int, str]]:
        """(byte where it begins, text) of the blocks of a plain text file."""
        with open_input(name) as (file, position):
            start = 0
            while block := file.read(self.piece_size):
                block += file.readline(self.piece_size)
                while (following := file.peek(1)[:1]) and 0x80 <= following[0] < 0xC0:  # not inside a character
                    block += file.read(1)
                text = self.decode(block, start, name)
                if text is not None:
                    yield position() or start, text
                start += len(block)

    def records(self, name: str, first: int) -> Iterator[tuple[int, str]]:
        """(byte where it begins, text) of the records of a file from number `first` on; "" where there is no text."""
        if name.startswith(HUB):
            found = self.hub(name, first)
        elif bare(name).endswith(".parquet"):
            found = self.parquet(name, first)
        elif bare(name).endswith(".arrow"):
            found = islice(self.arrow(name), first, None)
        else:
            found = islice(self.lines_of_records(name), first, None)
        for number, (at, text) in enumerate(found, first):
            if not isinstance(text, str | None):
                raise ValueError(
                    f"{name}, record {number}: column {self.text_column!r} holds {type(text).__name__}, not text"
                )
            yield at, text or ""

    def lines_of_records(self, name: str) -> Iterator[tuple[int, object]]:
        """The text column of a jsonl or csv file."""
        with open_input(name) as (file, position):
            lines = Lines(file, lambda line, start: self.decode(line, start, name))
            if bare(name).endswith((".csv", ".tsv")):
                csv.field_size_limit(1 << 31)
                reader = csv.DictReader(lines, delimiter="\t" if bare(name).endswith(".tsv") else ",")
                self.check_column(name, reader.fieldnames or [])
                for record in reader:
                    yield position() or lines.start, record[self.text_column]
                return
            for line in lines:
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{name}, byte {lines.start}: the line is not JSON ({error})") from None
                self.check_column(name, record if isinstance(record, dict) else [])
                text = record[self.text_column]
                if "\\u" in line and isinstance(text, str):  # half of a surrogate pair, which no tokenizer takes
                    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
                yield position() or lines.start, text

    def parquet(self, name: str, first: int) -> Iterator[tuple[int, object]]:
        """The text column from row `first` on, with the bytes read so far; row groups before that are not touched."""
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
            try:  # as data sets are saved by `datasets`
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
        """A data set that `datasets` knows, streamed; no code of it is run."""
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
        except (ConnectionError, FileNotFoundError) as error:
            raise ValueError(f"{name} could not be read: {str(error).splitlines()[0]}") from None

    def check_column(self, name: str, columns: Iterable[str]) -> None:
        if self.text_column not in columns:
            raise ValueError(
                f"{name} has no column {self.text_column!r} (it has: {', '.join(map(str, columns)) or 'none'}): "
                "name one by --text_column"
            )

    def decode(self, block: bytes, start: int, name: str) -> str | None:
        """The text of bytes that begin at byte `start` of the input; None where they are to be left out."""
        if start == 0:
            block = block.removeprefix(codecs.BOM_UTF8)
        try:
            return block.decode("utf-8")
        except UnicodeDecodeError as error:
            if self.errors == "strict":
                raise ValueError(
                    f"{name} is not UTF-8 text (byte {start + error.start}): "
                    "--errors replace puts U+FFFD there, --errors skip leaves that piece out"
                ) from None
            self.skipped += self.errors == "skip"
            return block.decode("utf-8", "replace") if self.errors == "replace" else None


class Lines:
    """The lines of a binary file as text; `start` is the byte where the last one began."""

    def __init__(self, file: Iterable[bytes], decode):
        self.file, self.decode, self.start = file, decode, 0

    def __iter__(self) -> Iterator[str]:
        end = 0
        for line in self.file:
            self.start, end = end, end + len(line)
            text = self.decode(line, self.start)
            if text is not None:
                yield text


def passages(blocks: Iterable[tuple[int, str]], size: int) -> Iterator[tuple[int, str, bool]]:
    """(place, text, whether it is the last) of the pieces of one document, which itself comes in blocks."""
    at, text = 0, ""
    for at, block in blocks:
        text += block
        while len(text) > size:
            cut = find_cut(text, size)
            yield at, text[:cut], False
            text = text[cut:]
    if text:
        yield at, text, True


def find_cut(text: str, size: int) -> int:
    """Where to cut `text`, after `size` characters at most."""
    end = size
    while (end := text.rfind("\n", 1, end)) > 0:
        if not text[end - 1].isspace() and not text[end + 1].isspace():
            return end + 1
    return text.rfind("\n", 0, size) + 1 or size


def find_inputs(inputs: list[str]) -> list[str]:
    """The files behind the inputs. Raises ValueError where there is none."""
    found = []
    for name in inputs:
        if name == "-" or name.startswith(HUB) or os.path.isfile(name):
            found.append(name)
            continue
        if os.path.isdir(name):
            files = sorted(str(path) for path in Path(name).rglob("*") if path.is_file() and known(str(path)))
            if not files:
                raise ValueError(f"the folder {name} has no files that end with {', '.join(TEXT + RECORDS)}")
        else:
            files = sorted(file for file in glob.glob(name, recursive=True) if os.path.isfile(file))
            if not files:
                raise ValueError(f"{name} does not exist: name files, folders, patterns, hf:OWNER/NAME, or - for stdin")
        found += files
    return found


def bare(name: str) -> str:
    return name.lower().removesuffix(".gz").removesuffix(".zst")


def known(name: str) -> bool:
    return bare(name).endswith(TEXT + RECORDS)


def is_records(name: str) -> bool:
    return name.startswith(HUB) or bare(name).endswith(RECORDS)


def is_file(name: str) -> bool:
    return name != "-" and not name.startswith(HUB)


@contextmanager
def open_input(name: str):
    """A binary file to read the unpacked bytes from, and a function: how far into a packed file one is, else 0.

    Raises ValueError, naming the file, where what is packed is broken.
    """
    if name == "-":
        yield sys.stdin.buffer, lambda: 0
        return
    with open(name, "rb") as packed:
        if not name.lower().endswith(PACKED):
            yield packed, lambda: 0
            return
        try:
            if name.lower().endswith(".gz"):
                yield gzip.GzipFile(fileobj=packed), packed.tell
            else:
                import pyarrow

                yield io.BufferedReader(pyarrow.input_stream(packed, compression="zstd")), packed.tell
        except (EOFError, zlib.error, OSError) as error:
            raise ValueError(f"{name} is broken: it cannot be unpacked ({error})") from None


@contextmanager
def pyarrow_errors(name: str):
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{name} is broken: {str(error).splitlines()[0]}") from None
