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
        if not (files := sorted(select(name)[0])):
            raise ValueError(f"the folder {name} has no files that end with {', '.join(TEXT + RECORDS)}")
        return files
    matches = sorted(glob.glob(name, recursive=True))  # of a folder its files, as if the shell had found it
    files = [file for match in matches for file in ([match] if os.path.isfile(match) else sorted(select(match)[0]))]
    if matches and not files:
        raise ValueError(f"{name} matches nothing that ends with {', '.join(TEXT + RECORDS)}")
    if not files:
        raise ValueError(f"{name} does not exist: name files, folders, patterns, hf:OWNER/NAME, or - for stdin")
    return files


def select(folder: str) -> tuple[list[str], dict[str, list[str]]]:
    """The files to read in a folder, and those to leave out by the reason.

    A data set's test split, its card and caches of `datasets` are left out, a test split only beside a training split.
    """
    below = list(files_below(folder))
    left_out: dict[str, list[str]] = {"their endings": [file for file in below if not known(file)]}
    files = [file for file in below if known(file)]
    parts = {file: {part_of(name) for name in os.path.relpath(file, folder).split(os.sep)} for file in files}
    trains = any("train" in found for found in parts.values())
    tables = any(is_records(file) and not bare(file).endswith(".json") for file in files)
    reasons = {
        "they are a test split": lambda file: trains and "test" in parts[file],
        "they describe a data set": lambda file: is_card(file, tables),
        "they are caches of `datasets`": lambda file: re.fullmatch(r"cache-\w+\.arrow", os.path.basename(file)),
    }
    for reason, applies in reasons.items():
        left_out[reason] = [file for file in files if applies(file)]
    unwanted = {file for some in left_out.values() for file in some}
    return [file for file in files if file not in unwanted], left_out


def part_of(name: str) -> str:
    """train or test for a file or folder of that split, such as test-00000-of-00002.parquet; "" for others."""
    found = re.match(r"(train|test)(?:ing)?(?=[-_.\d]|$)", name, re.IGNORECASE)
    return found[1].lower() if found else ""


def is_card(file: str, beside_tables: bool) -> bool:
    """Whether a file is the README of a data set: beside tables, or with the metadata that the Hub reads."""
    if bare(os.path.basename(file)) not in ("readme.md", "readme.txt"):
        return False
    with open(file, "rb") as opened:
        return beside_tables or opened.read(4).rstrip() == b"---"


def files_below(folder: str) -> Iterator[str]:
    """The files in a folder, links followed, without hidden ones and those of a data directory."""
    seen = set()  # a folder is read once, whatever links lead to it
    for path, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in OTHERS)
        tokens = any(name.startswith("train") and name.endswith(".bin") for name in names)
        for name in names:
            file = os.path.join(path, name)
            if name[0] != "." and not (tokens and OURS.fullmatch(name)) and is_regular(file):
                yield file


def left_out(inputs: list[str]) -> list[str]:
    """What is not read of the folders among the inputs: `not read, because of their endings: 8 .py, 3 .pdf`."""
    found: dict[str, list[str]] = {}
    for folder in filter(os.path.isdir, inputs):
        for reason, files in select(folder)[1].items():
            found.setdefault(reason, []).extend(files)
    endings = Counter(
        os.path.splitext(file)[1].lower() or "without an ending" for file in found.pop("their endings", [])
    )
    lines = [", ".join(f"{count:,} {ending}" for ending, count in endings.most_common())]
    lines[0] = lines[0] and f"not read, because of their endings: {lines[0]}"
    lines += [f"not read, because {reason}: {some(files)}" for reason, files in found.items() if files]
    return [line for line in lines if line]


def some(files: list[str]) -> str:
    """The names of the first files, and how many more there are."""
    return ", ".join(sorted(files)[:3]) + (f" and {len(files) - 3:,} more" if len(files) > 3 else "")


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
