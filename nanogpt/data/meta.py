"""Checks a data directory: `meta.json`, the files that it describes, their tokenizer.

`meta.json` describes the tokens: vocab_size, dtype, source and, for each split, the number of
tokens, the bytes of their text, the largest id, and the names of the files if it is not one.
Directories that nanoGPT wrote have none: the same is derived from their tokens.
"""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from nanogpt.data import tokenizer as tokenizers
from nanogpt.data.files import is_count, read_json
from nanogpt.data.remote import local
from nanogpt.data.tokenizer import FILE, BPETokenizer, load_tokenizer, written_by_nanogpt

SPLITS = ("train", "val")


def read_meta(directory: Path | str) -> dict:
    """`meta.json` of a data directory, or its equivalent if nanoGPT wrote the directory.

    Raises ValueError if it is missing or damaged, or if tokenizer.json did not make the tokens.
    """
    path = local(directory) / "meta.json"
    if not path.parent.is_dir():
        where = f"data directory {str(directory)!r} does not exist in {Path.cwd()}"
        raise ValueError(f"{where}: name it with --data, or prepare it (data_prep/README.md)")
    if derived := derive_meta(path.parent):
        return derived
    if not path.exists():
        describe = "or describe the tokens in meta.json and tokenizer.json (data_prep/README.md)"
        raise ValueError(f"{path} is missing: {advice({})}, {describe}")
    try:
        meta = read_json(path)
        check_meta(meta, path.with_name(FILE))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): restore it, or {advice({})}"
        ) from None
    check_tokenizer(path.with_name(FILE), meta)
    return meta


def advice(meta: dict) -> str:
    """How to get undamaged data without overwriting anything."""
    source = f" (its source: {str(meta['source'])[:200]})" if meta.get("source") else ""
    return f"prepare the data again in a new directory{source}"


def require(valid: object, name: str, value: object) -> None:
    """Raises ValueError naming a value of meta.json unless it is valid."""
    if not valid:
        raise ValueError(f"{name} is {str(value)[:80]!r}")


def check_meta(meta: dict, tokenizer: Path) -> None:
    """Raises ValueError or KeyError if meta.json lacks a value or has an impossible one."""
    for split in SPLITS:
        optional = {"largest": 0, "documents": 0, "files": ["x.bin"], "sha256": ""}
        counts = optional | meta["splits"][split]
        for name in ("tokens", "bytes", "largest", "documents"):
            require(is_count(counts[name]), f"{split}: {name}", counts[name])
        require(counts["bytes"] or not counts["tokens"], f"{split}: bytes", 0)
        files = counts["files"]
        inside = isinstance(files, list) and files and all(map(is_plain_name, files))
        require(inside, f"{split}: files (names in this directory)", files)
        require(isinstance(counts["sha256"], str), f"{split}: sha256", counts["sha256"])
        if "chat" in meta:
            answers = counts["answers"]
            both = all(is_count(answers[name], 1) for name in ("tokens", "bytes"))
            require(both, f"{split}: answers", answers)
    if chat := meta.get("chat"):
        ids = [*chat["answer"], chat["end"]]
        fits = len(ids) >= 2 and all(map(is_count, ids)) and is_count(chat["block"], len(ids))
        require(fits, "chat", chat)
    # each token of a large vocabulary takes several bytes of its file
    most = max(1 << 20, tokenizer.stat().st_size if tokenizer.is_file() else 0)
    size = meta["vocab_size"]
    require(is_count(size, 1) and size <= most, "vocab_size", size)
    require(meta["dtype"] in ("uint16", "uint32"), "dtype", meta["dtype"])


def is_plain_name(file: object) -> bool:
    """Whether it is a plain file name, not a path to another directory."""
    return isinstance(file, str) and file == Path(file).name and file not in ("", "..")


def check_tokenizer(path: Path, meta: dict) -> None:
    """Raises ValueError if the tokenizer.json beside the tokens is not the one that made them.

    meta.json records its SHA-256. If it does not, the vocabulary must be large enough for all its
    tokens, and have the largest id of the data.
    """
    if not path.is_file():  # `load_tokenizer` names it
        return
    if recorded := meta.get("tokenizer_sha256"):
        same = tokenizers.sha256(path.parent) == recorded
    else:
        largest = max(counts.get("largest", 0) for counts in meta["splits"].values())
        same = largest < load_tokenizer(path.parent).vocab_size <= meta["vocab_size"]
    if not same:
        raise ValueError(
            f"{path} is not the tokenizer of the tokens beside it, whose vocabulary has "
            f"{meta['vocab_size']} tokens: put the original file back, or {advice(meta)}"
        )


# The files of a split


def token_dtype(meta: dict) -> np.dtype:
    """The little-endian dtype of the tokens."""
    return np.dtype(meta["dtype"]).newbyteorder("<")


def check_split(
    directory: Path | str, meta: dict, split: str, block_size: int, vocab_size: int
) -> list[Path]:
    """The token files of a split.

    Raises ValueError if they are missing or have another size, if a window of `block_size` tokens
    and one more do not fit, or if a token is not below `vocab_size`. Reads the tokens if meta.json
    does not give the largest one, or is older than they are.
    """
    directory, dtype, counts = local(directory), token_dtype(meta), meta["splits"][split]
    paths = [directory / name for name in counts.get("files", [f"{split}.bin"])]
    if missing := next((path for path in paths if not path.is_file()), None):
        raise ValueError(f"{missing} is missing: {advice(meta)}")
    name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    tokens, size = counts["tokens"], sum(path.stat().st_size for path in paths)
    if size != tokens * dtype.itemsize:
        need = f"{tokens} tokens of {dtype.name} need {tokens * dtype.itemsize}"
        why = "it is truncated or was changed"
        raise ValueError(f"{name} has {size} bytes, but its {need}: {why}; {advice(meta)}")
    if "chat" in meta and block_size != (block := meta["chat"]["block"]):
        other = f"give --block_size={block}, or prepare them with --block_size {block_size}"
        raise ValueError(f"the conversations in {name} fill blocks of {block} tokens: {other}")
    if tokens < block_size + 1:
        most = f"--block_size={tokens - 1} at most" if tokens > 1 else "more text or --val_fraction"
        why = f"{name} has {tokens} tokens, too few; give {most}"
        raise ValueError(f"block_size={block_size} is too long: {why}")
    largest, file = counts.get("largest"), directory / "meta.json"
    written = file.stat().st_mtime_ns if file.exists() else np.inf
    if largest is None or any(path.stat().st_mtime_ns > written for path in paths):
        largest = largest_token(paths, dtype)
    if largest >= vocab_size:
        why = f"contains token {largest}, but the vocabulary has {vocab_size} tokens"
        other = "give the vocab_size that it was made with"
        raise ValueError(f"{name} {why}: {advice(meta)}, or {other}")
    return paths


def largest_token(paths: list[Path], dtype: np.dtype) -> int:
    """The largest id in token files."""
    return max((int(block.max()) for block in read_blocks(paths, dtype)), default=0)


def read_blocks(paths: list[Path], dtype: np.dtype) -> Iterator[np.ndarray]:
    """The tokens of the files in blocks of at most 4 million."""
    for path in paths:
        with open(path, "rb") as file:
            while len(block := np.fromfile(file, dtype, 1 << 22)):
                yield block


# Directories of nanoGPT


def derive_meta(directory: Path) -> dict | None:
    """The equivalent of meta.json for a directory that nanoGPT wrote, or None. Writes nothing.

    The bytes of text follow from the counts of the tokens. Without meta.pkl the tokens must be
    GPT-2's. Raises ValueError if the tokens are not uint16.
    """
    files = {split: directory / f"{split}.bin" for split in SPLITS}
    if not written_by_nanogpt(directory) or not all(path.is_file() for path in files.values()):
        return None
    for path in files.values():
        pairs = np.fromfile(path, dtype="<u4", count=1 << 15)  # of uint16 tokens
        if pairs.any() and pairs.max() < 1 << 16:
            raise ValueError(
                f"every second token of {path} is 0 when read as uint16, nanoGPT's format: store "
                "the tokens as uint16 in a new directory (numpy: tokens.astype('<u2').tofile(path))"
            )
    counts = {s: count_ids(path.resolve(), path.stat().st_mtime_ns) for s, path in files.items()}
    # any text in GPT-2's tokens soon has ids above 10,000: others do not need its files
    may_be_gpt2s = counts["train"][10_000:].any()
    if not (directory / "meta.pkl").exists() and not (may_be_gpt2s and is_gpt2s(files["train"])):
        return None
    tokenizer = load_tokenizer(directory)
    lengths, splits = token_lengths(tokenizer), {}
    for split, n in counts.items():
        text_bytes, largest = n[: len(lengths)] @ lengths, n.nonzero()[0].max(initial=0)
        splits[split] = {"tokens": int(n.sum()), "bytes": int(text_bytes), "largest": int(largest)}
    about = {"vocab_size": tokenizer.vocab_size, "dtype": "uint16", "tokenizer": tokenizer.name}
    return about | {"source": "nanoGPT's files", "splits": splits}


def token_lengths(tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """Bytes of text of each token (V,) of characters or byte-level BPE; special ones have none."""
    lengths = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for token, i in tokenizer.vocabulary.items():
        if token not in tokenizer.special:  # byte-level tokens are spelled with a character a byte
            lengths[i] = len(token.encode()) if tokenizer.characters else len(token)
    return lengths


@lru_cache
def count_ids(path: Path, changed_ns: int) -> np.ndarray:
    """How often each id occurs in a file of uint16 tokens, (65536,) int64.

    `changed_ns`, its modification time, is part of the cache's key.
    """
    counts = np.zeros(1 << 16, dtype=np.int64)
    for block in read_blocks([path], np.dtype("<u2")):
        counts += np.bincount(block, minlength=1 << 16)
    return counts


def is_gpt2s(path: Path) -> bool:
    """Whether the tokens of a file are GPT-2's: if so, their text gets the same tokens again."""
    ids, gpt2 = np.fromfile(path, dtype="<u2", count=10_000).astype(np.int64), BPETokenizer.gpt2()
    ids = ids[ids != gpt2.eot_id]
    if not len(ids) or ids.max() >= gpt2.vocab_size:
        return False
    again = gpt2.encode(gpt2.decode(ids))
    # texts tokenized line by line differ a little
    same = (Counter(ids.tolist()) & Counter(again.tolist())).total()
    return same > 0.9 * max(len(ids), len(again))
