"""Checks a data directory: `meta.json`, the files that it describes, their tokenizer.

`meta.json` describes the tokens: vocab_size, dtype, source and, for each split, the number of
tokens, the bytes of their text and the largest id. Conversations add `chat`: the size of a block,
and the tokens that begin and end an answer. Directories that nanoGPT wrote have no meta.json:
nanogpt/text/directories.py derives the same from their tokens.
"""

import hashlib
from pathlib import Path

import numpy as np

from nanogpt.data.files import local_copy, one_line_errors, read_json

SPLITS = ("train", "val")
TOKENIZER = "tokenizer.json"  # the tokenizer that made the tokens
AGAIN = "prepare the data again in a new directory"


def read_meta(directory: Path | str) -> dict:
    """`meta.json` of a data directory.

    Raises ValueError if it is missing or damaged, or if tokenizer.json did not make the tokens.
    """
    directory = local_copy(directory)
    path, tokenizer = directory / "meta.json", directory / TOKENIZER
    if not path.exists():
        lacks = "has no meta.json" if directory.exists() else f"does not exist in {Path.cwd()}"
        near = Path("data", directory.name)
        hint = f"did you mean {near}? Or " if near != directory and near.is_dir() else ""
        raise ValueError(
            f"data directory {str(directory)!r} {lacks}: {hint}name another directory, "
            "prepare this one, or describe its tokens (data_prep/README.md)"
        )
    meta = read_json(path)
    with one_line_errors(f"{path} is damaged", f"restore it, or {AGAIN}"):
        check_meta(meta)
    recorded = meta.get("tokenizer_sha256")
    if recorded and tokenizer.is_file() and tokenizer_sha256(directory) != recorded:
        why = "is not the tokenizer of the tokens beside it"
        raise ValueError(f"{tokenizer} {why}: put the original back, or {AGAIN}")
    return meta


def check_meta(meta: dict) -> None:
    """Raises ValueError or KeyError if meta.json lacks a value or has an impossible one."""
    if meta["dtype"] not in ("uint16", "uint32"):
        raise ValueError("dtype is not valid")
    numbers = {"vocab_size": meta["vocab_size"]}
    for split in SPLITS:
        counts = meta["splits"][split]
        numbers |= {f"{split}: {name}": counts[name] for name in ("tokens", "bytes")}
        optional = ("largest", "documents")  # may be 0, hence + 1
        numbers |= {f"{split}: {name}": counts.get(name, 0) + 1 for name in optional}
        for name in ("tokens", "bytes"):
            numbers[f"{split}: answers: {name}"] = counts.get("answers", counts)[name]
    if "chat" in meta:
        chat = meta["chat"]
        numbers |= {"chat: block": chat["block"], "chat: end": chat["end"] + 1}
        numbers |= {f"chat: answer, token {i}": id + 1 for i, id in enumerate(chat["answer"])}
    for name, number in numbers.items():
        if type(number) is not int or not 0 < number < 1 << 63:
            raise ValueError(f"{name} is not valid")


def open_split(
    directory: Path, meta: dict, split: str, block_size: int, vocab_size: int
) -> np.memmap:
    """The tokens of a split, memory-mapped and checked.

    Raises ValueError if they are missing or have another size, if a window of `block_size` tokens
    and one more do not fit, or if a token is not below `vocab_size`.
    """
    path, counts = directory / f"{split}.bin", meta["splits"][split]
    dtype, count = np.dtype(meta["dtype"]).newbyteorder("<"), counts["tokens"]
    if not path.is_file():
        raise ValueError(f"{path} is missing: {AGAIN}")
    size = path.stat().st_size
    if size != count * dtype.itemsize:
        why = f"its {count} tokens of {dtype.name} need {count * dtype.itemsize}"
        raise ValueError(f"{path} has {size} bytes, but {why}: it is truncated or changed; {AGAIN}")
    if "chat" in meta and block_size != (block := meta["chat"]["block"]):
        other = f"train with --block_size={block}, or prepare them with --block_size {block_size}"
        raise ValueError(f"the conversations in {path} fill blocks of {block} tokens: {other}")
    if count < block_size + 1:
        most = f"more text, or train with --block_size={count - 1} at most"
        why = f"{path} has {count} tokens, too few; prepare {most if count > 1 else 'more text'}"
        raise ValueError(f"block_size={block_size} is too long: {why}")
    tokens = np.memmap(path, dtype, "r")
    largest = counts["largest"] if "largest" in counts else int(tokens.max())
    if largest >= vocab_size:
        why = f"contains token {largest}, but the vocabulary has {vocab_size} tokens"
        raise ValueError(f"{path} {why}: {AGAIN}, or give the vocab_size that it was made with")
    return tokens


def tokenizer_sha256(directory: Path | str) -> str:
    """Checksum of a directory's tokenizer.json, recorded in meta.json beside the tokens it made."""
    return hashlib.sha256(Path(directory, TOKENIZER).read_bytes()).hexdigest()
