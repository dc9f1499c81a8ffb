"""Finds the input files of a command: in folders, by patterns, at URLs."""

import glob
import os
from collections import Counter
from typing import NamedTuple

from nanogpt.data.files import first_line

TEXT = (".txt", ".md")
RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
HUB = "hf:"
# describe the data in a data directory, or in one that `datasets` saved
DESCRIPTIONS = ("meta.json", "tokenizer.json", "dataset_info.json", "state.json")


class File(NamedTuple):
    """An input, with its size and version, by which a resumed command knows it."""

    name: str
    size: int  # bytes; 0 for a data set on the Hub
    version: int | str


def find_files(inputs: list[str]) -> tuple[list[File], list[str]]:
    """The input files, each once even if several links lead to it, and notes on what is not read.

    Files of folders and patterns are sorted by name. Raises ValueError if an input has no files.
    """
    found: dict[str, File] = {}
    notes: list[str] = []
    for name in inputs:
        if is_hub(name):
            found[name] = File(name, 0, 0)
        elif is_url(name):
            found |= {file.name: file for file in find_urls(name)}
        else:
            for path in find_paths(name, notes):
                status = os.stat(path)
                file = File(path, status.st_size, status.st_mtime_ns)
                found.setdefault(os.path.realpath(path), file)
    return list(found.values()), notes


def find_urls(pattern: str) -> list[File]:
    """The files at a URL, which may be a pattern such as s3://bucket/*.jsonl.gz."""
    import fsspec

    try:
        found = [
            File(file.full_name, file.fs.size(file.path) or 0, file.fs.ukey(file.path))
            for file in fsspec.open_files(pattern)
        ]
    except Exception as error:  # whatever the network and the file system of the URL raise
        raise ValueError(f"{pattern} could not be read: {first_line(error)}") from None
    if not found:
        raise ValueError(f"{pattern} could not be read: there is no such file")
    return found


def find_paths(name: str, notes: list[str]) -> list[str]:
    """The files of one input on this machine; adds notes on what is not read of folders."""
    if not os.path.isdir(name):
        paths = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
        if files := [path for path in paths if os.path.isfile(path)]:
            return files
        kinds = "files, folders, patterns, URLs, hf:OWNER/NAME, or - for stdin"
        raise ValueError(f"{name} does not exist: name {kinds}")
    pattern = os.path.join(glob.escape(name), "**", "*")  # which leaves hidden ones out
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    readable = [path for path in paths if bare(path).endswith(TEXT + RECORDS)]
    if not readable:
        endings = ", ".join(TEXT + RECORDS)
        raise ValueError(f"the folder {name} has no files that end with {endings}")
    others = Counter(os.path.splitext(path)[1].lower() for path in {*paths}.difference(readable))
    if others:
        counts = (f"{n:,} {ending or 'without an ending'}" for ending, n in others.most_common())
        notes.append(f"not read, because of their endings: {', '.join(counts)}")
    return [path for path in readable if not describes_data(path)]


def describes_data(path: str) -> bool:
    """Whether a file describes a data set: those of DESCRIPTIONS, and the Hub's README.md."""
    name = os.path.basename(path)
    if name != "README.md":
        return name in DESCRIPTIONS
    with open(path, "rb") as file:
        return file.read(4) == b"---\n"


def is_url(name: str) -> bool:
    """Whether `fsspec` opens an input."""
    return "://" in name


def is_hub(name: str) -> bool:
    """Whether an input is a data set on the Hub, which `datasets` streams, not a file there."""
    return name.startswith(HUB) and not is_url(name)


def bare(name: str) -> str:
    """The name in lower case, without the ending of a compressed file."""
    return name.lower().removesuffix(".gz").removesuffix(".zst")


def is_records(name: str) -> bool:
    """Whether an input has records, each with a text, by its name."""
    return is_hub(name) or bare(name).endswith(RECORDS)
