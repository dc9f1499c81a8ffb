"""Finds and opens the input files of a command, and recognizes files that are not text."""

import glob
import gzip
import io
import os
import re
import stat
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

TEXT = (".txt", ".md")
RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
PACKED = (".gz", ".zst")
HUB = "hf:"
OTHERS = {"node_modules", "__pycache__"}  # folders that are not read, like hidden ones
OURS = re.compile(r"(meta|tokenizer|part-\d+)\.json|.+\.bin")  # in a data directory, next to train.bin
HEAD = 512  # bytes from which a format is recognized

PANDOC = "pandoc {0} -t plain -o {0}.txt converts it to text"
NO_TEXT = [  # how it begins, what it is, what to do
    (rb"%PDF-", "a PDF", "pdftotext {0} converts it to text"),
    (rb"PK\x03\x04", "a DOCX, an EPUB or another zip archive", PANDOC + ", unzip unpacks others"),
    (rb"\xd0\xcf\x11\xe0|\{\\rtf", "a document of a word processor", PANDOC),
    (rb"\s*<(?:!doctype html|html)", "HTML", PANDOC),
    (rb'\s*\{\s*"(?:cells|nbformat)"', "a notebook", "jupyter nbconvert --to markdown {0} converts it to text"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|II\*\0|MM\0\*", "an image", "leave it out, or read it by OCR"),
    (rb"\x7fELF|MZ.{6}\0|\xcf\xfa\xed\xfe", "a program", "leave it out"),
    (rb"\x1f\x8b|\x28\xb5\x2f\xfd|BZh\d|\xfd7zXZ", "packed", "unpack it, or let its name end with .gz or .zst"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16", "iconv -f UTF-16 -t UTF-8 {0} > {0}.txt converts it to UTF-8"),
]
ANY = re.compile(b"|".join(b"(" + pattern + b")" for pattern, _, _ in NO_TEXT), re.IGNORECASE | re.DOTALL)


def find_inputs(inputs: list[str]) -> dict[str, os.stat_result | None]:
    """The input files, each once even if several links lead to it; the value of a data set on the Hub is None.

    Raises ValueError if an input has no files.
    """
    found: dict[str, os.stat_result | None] = {}
    seen = set()
    for name in inputs:
        if name.startswith(HUB):
            found[name] = None
            continue
        for file in files_of(name):
            status = os.stat(file)
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                found[file] = status
    return found


def files_of(name: str) -> list[str]:
    """The files of one input, sorted by name. Raises ValueError if there are none."""
    if os.path.isfile(name):
        return [name]
    if os.path.isdir(name):
        files = sorted(file for file in files_below(name) if known(file))
        if not files:
            raise ValueError(f"the folder {name} has no files that end with {', '.join(TEXT + RECORDS)}")
        return files
    files = sorted(file for file in glob.glob(name, recursive=True) if os.path.isfile(file))
    if not files:
        raise ValueError(f"{name} does not exist: name files, folders, patterns, hf:OWNER/NAME, or - for stdin")
    return files


def files_below(folder: str) -> Iterator[str]:
    """The files in a folder, without hidden ones and those of a data directory."""
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in OTHERS]
        tokens = any(name.startswith("train") and name.endswith(".bin") for name in names)
        for name in names:
            file = os.path.join(path, name)
            if name[0] != "." and not (tokens and OURS.fullmatch(name)) and is_regular(file):
                yield file


def left_out(inputs: list[str]) -> str:
    """How many files of the folders among the inputs are not read, by ending: `8 .py, 3 .pdf`; empty if none."""
    others = [file for name in inputs if os.path.isdir(name) for file in files_below(name) if not known(file)]
    endings = Counter(os.path.splitext(file)[1].lower() or "without an ending" for file in others)
    return ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common())


def is_regular(file: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(file).st_mode)
    except OSError:  # a broken link
        return False


def bare(name: str) -> str:
    return name.lower().removesuffix(".gz").removesuffix(".zst")


def known(name: str) -> bool:
    return bare(name).endswith(TEXT + RECORDS)


def is_records(name: str) -> bool:
    return name.startswith(HUB) or bare(name).endswith(RECORDS)


def no_text(name: str, head: bytes) -> str:
    """What a file is that starts unlike text, and how to convert it; "" for other files."""
    if not (found := ANY.match(head)):
        return ""
    _, what, advice = NO_TEXT[found.lastindex - 1]
    return f"{name} is {what}, not plain text: {advice.format(name)}; --errors skip leaves it out"


@contextmanager
def open_input(name: str):
    """A binary file with the unpacked bytes, and a function that returns the position in a packed file, else 0.

    Raises ValueError, naming the file, if it cannot be unpacked.
    """
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
    except (pyarrow.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is broken: {str(error).splitlines()[0]}") from None
