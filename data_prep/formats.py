"""Reads text and records: JSON, CSV, TSV, Parquet and Arrow, compressed or not, local or remote.

pyarrow decompresses and reads Parquet and Arrow, `fsspec` opens URLs, and `datasets` streams data
sets from the Hub. JSON and tables are read with Python's own modules: `datasets` wants the same
columns in every line of JSON, and its reader of CSV joins lines at stray quotes.

Each reader yields (bytes of the file read so far, block of text or record).
"""

import csv
import io
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from data_prep.inputs import HUB, bare, is_hub, is_url

COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
# stand for bytes that are not UTF-8; no tokenizer accepts them
SURROGATE = re.compile("[\ud800-\udfff]")
CONVERT = "convert it to text first (pdftotext, pandoc, jupyter nbconvert, gunzip, iconv -t UTF-8)"
# how a PDF, RTF, HTML, a notebook, and most binary files begin
NOT_TEXT = re.compile(
    r'%PDF-|\{\\rtf|\s*<(?:!doctype html|html)|\s*\{\s*"(?:cells|nbformat)"|[^\0]{0,511}\0',
    re.IGNORECASE,
)


class Errors:
    """What --errors does with text that is not UTF-8 and records without a text."""

    def __init__(self, mode: str):
        self.mode = mode  # strict, replace or skip
        self.skipped = 0

    def reject(self, why: str) -> None:
        """Counts what is left out with skip, else raises ValueError."""
        if self.mode != "skip":
            raise ValueError(f"{why}; --errors skip leaves it out")
        self.skipped += 1

    def is_text(self, name: str, line: str) -> bool:
        """Whether a line is text. Raises ValueError if not, unless it may be left out."""
        broken = "\0" in line
        if self.mode == "skip" and not line.isascii():
            broken = broken or bool(SURROGATE.search(line))
        if not broken or self.mode == "replace":
            return True
        if self.mode == "strict":
            raise ValueError(first_fault(name))
        self.skipped += 1
        return False


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turns whatever the libraries and the network raise into one line that names the input."""
    try:
        yield
    except Exception as error:
        if type(error) is ValueError or (isinstance(error, OSError) and error.filename):
            raise
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name} could not be read: {why}") from None


@contextmanager
def open_bytes(name: str):
    """The decompressed bytes, as a file, and a function that tells the position in the input."""
    import fsspec
    import pyarrow

    with readable(name), fsspec.open(name) if is_url(name) else open(name, "rb") as raw:
        codec = COMPRESSION.get(os.path.splitext(name.lower())[1])
        yield (io.BufferedReader(pyarrow.input_stream(raw, codec)) if codec else raw), raw.tell


@contextmanager
def open_text(name: str, errors: str, newline: str = "\n"):
    """A text file, and a function that tells the position in the input, in bytes."""
    handler = {"skip": "surrogateescape"}.get(errors, errors)
    with open_bytes(name) as (file, tell):
        try:
            yield io.TextIOWrapper(file, "utf-8-sig", handler, newline), tell
        except UnicodeDecodeError:
            raise ValueError(first_fault(name)) from None


def first_fault(name: str) -> str:
    """Where a file is not text."""
    start, why = 0, ""
    with open_bytes(name) as (file, _):
        for line in file:
            if (nul := line.find(b"\0")) >= 0:
                why = f"has a NUL at byte {start + nul}, like UTF-16 and binary files"
                break
            try:
                line.decode()
            except UnicodeDecodeError as error:
                why = f"is not UTF-8 text (byte {start + error.start})"
                break
            start += len(line)
    return (
        f"{name} {why}: {CONVERT}, or --errors replace keeps it, with U+FFFD for what is not "
        "UTF-8, or --errors skip leaves that line out"
    )


def read_text(name: str, errors: Errors, size: int) -> Iterator[tuple[int, str]]:
    """Blocks of a plain text file: `size` characters and the rest of their last line."""
    with open_text(name, errors.mode) as (file, tell):
        at = 0
        while block := file.read(size) + file.readline(size):
            if at == 0 and errors.mode != "replace" and NOT_TEXT.match(block):
                errors.reject(f"{name} is not plain text: {CONVERT}")
                return
            if errors.mode == "skip":
                lines = io.StringIO(block, "\n")
                block = "".join(line for line in lines if errors.is_text(name, line))
            elif not errors.is_text(name, block):
                block = ""
            if block:
                yield at, block
            at = tell()


def read_records(
    name: str, columns: tuple[str, ...], errors: Errors, shard: tuple[int, int]
) -> Iterator[tuple[int, object]]:
    """The values of a JSON file or the rows of a table, in order.

    `columns` are those wanted. `shard` is the part of a data set on the Hub; files are read whole.
    """
    if is_hub(name):
        yield from read_hub(name, shard)
    elif bare(name).endswith((".parquet", ".arrow")):
        yield from read_columns(name, columns)
    else:
        is_json = not bare(name).endswith((".csv", ".tsv"))
        with open_text(name, errors.mode, "\n" if is_json else "") as (file, tell):
            lines = (line for line in file if errors.is_text(name, line))
            for value in read_json(name, lines) if is_json else read_table(name, lines, errors):
                yield tell(), value


def read_json(name: str, lines: Iterator[str]) -> Iterator[object]:
    """The values of a JSON file: one in each line, or a single one in several lines."""
    begun = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            try:
                value = json.loads(line)
            except ValueError:  # perhaps it goes on in the next line
                if begun or not (line.lstrip().startswith("[") or bare(name).endswith(".json")):
                    raise
                value = json.loads(line + "".join(lines))
        except (ValueError, RecursionError) as error:
            advice = f"expected one object per line, as jq -c . {shlex.quote(name)} writes them"
            raise ValueError(f"{name}, line {number}: it is not JSON ({error}); {advice}") from None
        yield value
        begun = True


def read_table(name: str, lines: Iterable[str], errors: Errors) -> Iterator[dict]:
    """The rows of a CSV file, or of a TSV file, which has no quotes.

    A row of another length than the header's is an error.
    """
    csv.field_size_limit(1 << 31)
    kind = {"delimiter": ",", "quoting": csv.QUOTE_MINIMAL}
    if bare(name).endswith(".tsv"):
        kind = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    reader = csv.reader(lines, **kind, strict=True)
    header, begin = None, 1
    try:
        for row in reader:
            if header is None:
                header = row
            elif len(row) == len(header):
                yield dict(zip(header, row, strict=True))
            elif row:  # not an empty line
                why = f"{len(row)} fields, but the header has {len(header)}"
                quote = "a field with a separator or a line break in it must be quoted"
                errors.reject(f"{name}, line {begin}: {why}: {quote}")
            begin = reader.line_num + 1
    except csv.Error:
        why = 'a field that begins with a quote must end with one, and double the quotes in it ("")'
        raise ValueError(f"{name}, line {begin}: {why}") from None


def read_columns(name: str, wanted: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
    """The rows of a Parquet or Arrow file; of the wanted columns, if it has any of them."""
    import pyarrow
    import pyarrow.parquet

    with open_bytes(name) as (file, _):
        if bare(name).endswith(".parquet"):
            parquet = pyarrow.parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
            rows, names = parquet.metadata.num_rows, parquet.schema_arrow.names
            columns = [column for column in names if column in wanted] or names
            batches = parquet.iter_batches(256, columns=columns)
        else:
            source = file if is_url(name) else pyarrow.memory_map(name)
            try:  # the format that `datasets` writes
                table = pyarrow.ipc.open_stream(source).read_all()
            except pyarrow.ArrowInvalid:
                table = pyarrow.ipc.open_file(source).read_all()
            rows, names = table.num_rows, table.column_names
            columns = [column for column in names if column in wanted] or names
            batches = iter(table.select(columns).to_batches(256))
        size, row = file.seek(0, io.SEEK_END), 0
        for batch in batches:
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield size * row // rows, dict(zip(columns, values, strict=True))
                row += 1


def read_hub(name: str, shard: tuple[int, int]) -> Iterator[tuple[int, dict]]:
    """Streams a data set from the Hub, or a directory; `datasets` runs no code from it."""
    from datasets import load_dataset

    path, config, split = [*name.removeprefix(HUB).split(":"), "", ""][:3]
    with readable(name):
        dataset = load_dataset(path, config or None, split=split or "train", streaming=True)
        i, n = shard
        if n > dataset.num_shards:
            why = f"it cannot be divided into {n} shards"
            raise ValueError(f"{name} has {dataset.num_shards} files: {why}")
        if n > 1:
            dataset = dataset.shard(num_shards=n, index=i - 1, contiguous=True)
        for record in dataset:
            yield 0, record
