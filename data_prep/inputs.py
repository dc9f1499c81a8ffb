"""Finds the input files of a command: in folders, by patterns, at URLs."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

TEXT = (".txt", ".md")
RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
HUB = "hf:"
SKIPPED_FOLDERS = {"node_modules", "__pycache__"}  # like hidden ones
OURS = re.compile(r"(meta|tokenizer|part-\d+)\.json|.+\.bin")  # in a data directory


class File(NamedTuple):
    """An input, with its size and version, by which a resumed command knows it."""

    name: str
    size: int  # bytes; 0 for a data set on the Hub
    version: int | str


def find_files(inputs: list[str]) -> tuple[list[File], list[str]]:
    """The input files, each once even if several links lead to it, and notes on what is not read.

    Files of folders and patterns are sorted by name. Raises ValueError if an input has no files.
    """
    found: dict[object, File] = {}
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
                found.setdefault((status.st_dev, status.st_ino), file)
    return list(found.values()), notes


def find_urls(pattern: str) -> list[File]:
    """The files at a URL, which may be a pattern such as s3://bucket/*.jsonl.gz."""
    import fsspec

    try:
        found = [
            File(file.full_name, file.fs.size(file.path), file.fs.ukey(file.path))
            for file in fsspec.open_files(pattern)
        ]
    except Exception as error:  # whatever the network and the file system of the URL raise
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{pattern} could not be read: {why}") from None
    if not found or any(file.size is None for file in found):
        why = "its size is unknown: download it first" if found else "there is no such file"
        raise ValueError(f"{pattern} could not be read: {why}")
    return found


def find_paths(name: str, notes: list[str]) -> list[str]:
    """The files of one input on this machine; adds notes on what is not read of folders."""
    # a folder that matches a pattern means its files, as if the shell had found it
    matches = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
    if not matches:
        kinds = "files, folders, patterns, URLs, hf:OWNER/NAME, or - for stdin"
        raise ValueError(f"{name} does not exist: name {kinds}")
    paths = []
    for match in matches:
        if os.path.isdir(match):
            paths += select(match, notes)
        elif os.path.isfile(match):
            paths.append(match)
    if not paths:
        endings = ", ".join(TEXT + RECORDS)
        raise ValueError(f"the folder {name} has no files that end with {endings}")
    return paths


def select(folder: str, notes: list[str]) -> list[str]:
    """The files to read below a folder, sorted; adds notes on the others.

    A test split is left out only beside a training split, a README only if it is that of a data
    set.
    """
    files = sorted(files_below(folder))
    readable = [file for file in files if bare(file).endswith(TEXT + RECORDS)]
    splits = {file: splits_in(os.path.relpath(file, folder)) for file in readable}
    has_train = any("train" in found for found in splits.values())
    has_tables = any(is_records(file) and not bare(file).endswith(".json") for file in readable)
    left_out: dict[str, list[str]] = {"they are a test split": [], "they describe data": []}
    for file in readable:
        name = os.path.basename(file)
        if has_train and "test" in splits[file]:
            left_out["they are a test split"].append(file)
        elif bare(name) in ("readme.md", "readme.txt") and (has_tables or has_metadata(file)):
            left_out["they describe data"].append(file)
        elif re.fullmatch(r"cache-\w+\.arrow", name):
            left_out.setdefault("they are caches of `datasets`", []).append(file)
    endings = Counter(os.path.splitext(f)[1].lower() for f in files if f not in splits)
    counts = [
        f"{count:,} {ending or 'without an ending'}" for ending, count in endings.most_common()
    ]
    if counts:
        notes.append(f"not read, because of their endings: {', '.join(counts)}")
    notes += [f"not read, because {why}: {some(names)}" for why, names in left_out.items() if names]
    return [file for file in readable if not any(file in names for names in left_out.values())]


def splits_in(path: str) -> set[str]:
    """The splits in the parts of a path, such as test for data/test-00000-of-00002.parquet."""
    found = re.findall(r"(?:^|/)(train|test)(?:ing)?(?=[-_.\d/]|$)", path, re.IGNORECASE)
    return {split.lower() for split in found}


def has_metadata(file: str) -> bool:
    """Whether a README begins with the metadata that the Hub reads."""
    with open(file, "rb") as opened:
        return opened.read(4).rstrip() == b"---"


def files_below(folder: str) -> Iterator[str]:
    """The files in a folder, links followed, without hidden ones and those of a data directory."""
    seen = set()  # a folder is read once, whatever links lead to it
    for path, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(f for f in folders if f[0] != "." and f not in SKIPPED_FOLDERS)
        has_tokens = any(name.startswith("train") and name.endswith(".bin") for name in names)
        for name in names:
            file = os.path.join(path, name)
            is_ours = has_tokens and OURS.fullmatch(name)
            if name[0] != "." and not is_ours and os.path.isfile(file):  # not a broken link
                yield file


def some(files: list[str]) -> str:
    """The names of the first files, and how many more there are."""
    more = f" and {len(files) - 3:,} more" if len(files) > 3 else ""
    return ", ".join(files[:3]) + more


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
