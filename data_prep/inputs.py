"""Finds the input files of a command: in folders, by patterns, at URLs."""

import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

TEXT = (".txt", ".md")
RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
HUB = "hf:"
SKIPPED_FOLDERS = {"node_modules", "__pycache__"}  # like hidden ones
OURS = re.compile(r"(meta|tokenizer|part-\d+)\.json|.+\.bin")  # in a data directory
TEST_SPLIT, ENDING = "they are a test split", "their endings"  # reasons to leave a file out
CARD, CACHE = "they describe a data set", "they are caches of `datasets`"


class Status(NamedTuple):
    """Size and version of a file, by which a resumed command knows it."""

    size: int
    version: int | str


def find_inputs(inputs: list[str]) -> dict[str, Status | None]:
    """The input files, each once even if several links lead to it; None for a data set on the Hub.

    Raises ValueError if an input has no files.
    """
    found: dict[str, Status | None] = {}
    seen = set()
    for name in inputs:
        if is_hub(name):
            found[name] = None
        elif is_url(name):
            found |= find_urls(name)
        else:
            for file in files_of(name):
                status = os.stat(file)
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    found[file] = Status(status.st_size, status.st_mtime_ns)
    return found


def find_urls(pattern: str) -> dict[str, Status]:
    """The files at a URL, which may be a pattern such as s3://bucket/*.jsonl.gz."""
    import fsspec

    try:
        files = {file.full_name: file for file in fsspec.open_files(pattern)}
        sizes = {url: file.fs.size(file.path) for url, file in files.items()}
        versions = {url: file.fs.ukey(file.path) for url, file in files.items()}
    except Exception as error:  # whatever the network and the file system of the URL raise
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{pattern} could not be read: {why}") from None
    if not files or None in sizes.values():
        why = "its size is unknown: download it first" if files else "there is no such file"
        raise ValueError(f"{pattern} could not be read: {why}")
    return {url: Status(sizes[url], versions[url]) for url in files}


def files_of(name: str) -> list[str]:
    """The files of one input, sorted by name. Raises ValueError if there are none."""
    # a folder that matches a pattern means its files, as if the shell had found it
    matches = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
    if not matches:
        kinds = "files, folders, patterns, URLs, hf:OWNER/NAME, or - for stdin"
        raise ValueError(f"{name} does not exist: name {kinds}")
    files: list[str] = []
    for match in matches:
        if os.path.isdir(match):
            files += [file for file, reason in select(match).items() if not reason]
        elif os.path.isfile(match):
            files.append(match)
    if not files:
        raise ValueError(
            f"the folder {name} has no files that end with {', '.join(TEXT + RECORDS)}"
        )
    return files


def select(folder: str) -> dict[str, str]:
    """The files below a folder, sorted, each with the reason why it is left out, else "".

    A test split is left out only beside a training split, a README only if it is that of a data
    set.
    """
    files = sorted(files_below(folder))
    readable = [file for file in files if bare(file).endswith(TEXT + RECORDS)]
    splits = {file: splits_in(os.path.relpath(file, folder)) for file in readable}
    has_train = any("train" in found for found in splits.values())
    has_tables = any(is_records(file) and not bare(file).endswith(".json") for file in readable)

    def reason(file: str) -> str:
        name = os.path.basename(file)
        if file not in splits:
            return ENDING
        if has_train and "test" in splits[file]:
            return TEST_SPLIT
        if bare(name) in ("readme.md", "readme.txt") and (has_tables or has_metadata(file)):
            return CARD
        return CACHE if re.fullmatch(r"cache-\w+\.arrow", name) else ""

    return {file: reason(file) for file in files}


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
            if name[0] != "." and not (has_tokens and OURS.fullmatch(name)) and is_regular(file):
                yield file


def left_out(inputs: list[str]) -> list[str]:
    """What is not read of the folders: `not read, because of their endings: 8 .py, 3 .pdf`."""
    by_reason: dict[str, list[str]] = {}
    for folder in filter(os.path.isdir, inputs):
        for file, reason in select(folder).items():
            by_reason.setdefault(reason, []).append(file)
    endings = Counter(os.path.splitext(file)[1].lower() for file in by_reason.pop(ENDING, []))
    counts = [
        f"{count:,} {ending or 'without an ending'}" for ending, count in endings.most_common()
    ]
    lines = [f"not read, because of their endings: {', '.join(counts)}"] if counts else []
    by_reason.pop("", None)
    return lines + [
        f"not read, because {reason}: {some(by_reason[reason])}" for reason in by_reason
    ]


def some(files: list[str]) -> str:
    """The names of the first files, and how many more there are."""
    return ", ".join(sorted(files)[:3]) + (
        f" and {len(files) - 3:,} more" if len(files) > 3 else ""
    )


def is_regular(file: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(file).st_mode)
    except OSError:  # a broken link
        return False


def is_url(name: str) -> bool:
    return "://" in name


def is_hub(name: str) -> bool:
    """Whether an input is a data set on the Hub, which `datasets` streams, not a file there."""
    return name.startswith(HUB) and not is_url(name)


def bare(name: str) -> str:
    """The name in lower case, without the ending of a compressed file."""
    return name.lower().removesuffix(".gz").removesuffix(".zst")


def is_records(name: str) -> bool:
    return is_hub(name) or bare(name).endswith(RECORDS)
