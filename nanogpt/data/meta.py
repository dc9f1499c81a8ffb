"""Checks a data directory: `meta.json`, the files that it describes, their tokenizer.

`meta.json` describes the tokens: vocab_size, dtype, source and, for each split, the number of
tokens, the bytes of their text, the largest id, and the names of the files if it is not one.
Directories that nanoGPT wrote have none: the same is derived from their tokens.
"""

from pathlib import Path

import numpy as np

from nanogpt.data.files import is_count, read_json
from nanogpt.data.remote import local
from nanogpt.data.tokenizer import FILE, Tokenizer, load_tokenizer, sha256, written_by_nanogpt

SPLITS = ("train", "val")
SAMPLE = 1 << 22  # tokens from which the bytes of the training text are estimated


def read_meta(directory: Path | str) -> dict:
    """`meta.json` of a data directory, or its equivalent if nanoGPT wrote the directory.

    Raises ValueError if it is missing or damaged, or if tokenizer.json did not make the tokens.
    """
    path = local(directory) / "meta.json"
    if not path.parent.is_dir():
        where = f"data directory {str(directory)!r} does not exist in {Path.cwd()}"
        raise ValueError(f"{where}: name it with --data, or prepare it (data_prep/README.md)")
    if written_by_nanogpt(path.parent):
        return derive_meta(path.parent)
    if not path.exists():
        describe = "or describe the tokens in meta.json and tokenizer.json (data_prep/README.md)"
        raise ValueError(f"{path} is missing: {advice({})}, {describe}")
    meta = read_json(path)
    try:
        check_meta(meta)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): restore it, or {advice({})}"
        ) from None
    recorded, tokenizer = meta.get("tokenizer_sha256"), path.with_name(FILE)
    if recorded and tokenizer.is_file() and sha256(path.parent) != recorded:
        why = "is not the tokenizer of the tokens beside it"
        raise ValueError(f"{tokenizer} {why}: put the original back, or {advice(meta)}")
    return meta


def advice(meta: dict) -> str:
    """How to get undamaged data without overwriting anything."""
    source = f" (its source: {str(meta['source'])[:200]})" if meta.get("source") else ""
    return f"prepare the data again in a new directory{source}"


def check_meta(meta: dict) -> None:
    """Raises ValueError or KeyError if meta.json lacks a value or has an impossible one."""
    wrong = []
    if not is_count(meta["vocab_size"], 1):
        wrong.append("vocab_size")
    if meta["dtype"] not in ("uint16", "uint32"):
        wrong.append("dtype")
    for split in SPLITS:
        counts = meta["splits"][split]
        names = ("tokens", "bytes", "largest", "documents")
        wrong += [f"{split}: {name}" for name in names if not is_count(counts.get(name, 0))]
        if not counts["bytes"] and counts["tokens"]:
            wrong.append(f"{split}: bytes")
        for file in counts.get("files", []):
            if file in ("", "..") or file != Path(file).name:  # of another directory
                wrong.append(f"{split}: files")
    if wrong:
        raise ValueError(f"{wrong[0]} is not valid")


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
    does not give the largest one.
    """
    dtype, counts = token_dtype(meta), meta["splits"][split]
    paths = [local(directory) / name for name in counts.get("files", [f"{split}.bin"])]
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
    largest = counts["largest"] if "largest" in counts else largest_token(paths, dtype)
    if largest >= vocab_size:
        why = f"contains token {largest}, but the vocabulary has {vocab_size} tokens"
        other = "give the vocab_size that it was made with"
        raise ValueError(f"{name} {why}: {advice(meta)}, or {other}")
    return paths


def largest_token(paths: list[Path], dtype: np.dtype) -> int:
    """The largest id in token files."""
    return max(int(np.memmap(p, dtype, "r").max()) for p in paths if p.stat().st_size)


# Directories of nanoGPT


def derive_meta(directory: Path) -> dict:
    """The equivalent of meta.json for a directory that nanoGPT wrote. Writes nothing.

    Without meta.pkl the tokens are GPT-2's. All tokens of the validation text are counted; the
    bytes of the training text are estimated. Raises ValueError if the tokens are not uint16.
    """
    tokenizer, splits = load_tokenizer(directory), {}
    lengths = token_lengths(tokenizer)
    for split in SPLITS:
        path = directory / f"{split}.bin"
        if not path.is_file():
            raise ValueError(f"{path} is missing: {advice({})}")
        tokens = path.stat().st_size // 2
        ids = np.fromfile(path, dtype="<u2", count=SAMPLE if split == "train" else -1)
        if ids.any() and not ids[1::2].any():
            why = "is 0 when read as uint16, nanoGPT's format"
            raise ValueError(f"every second token of {path} {why}: store the tokens as uint16")
        known = lengths[ids[ids < len(lengths)]]
        size = int(known.sum() * (tokens / max(1, len(ids))))
        splits[split] = {"tokens": tokens, "bytes": size}
    about = {"vocab_size": tokenizer.vocab_size, "dtype": "uint16", "tokenizer": tokenizer.name}
    return about | {"source": "nanoGPT's files", "splits": splits}


def token_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of text of each token (V,) of characters or byte-level BPE; special ones have none."""
    lengths = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for token, i in tokenizer.vocabulary.items():
        if token not in tokenizer.special:  # byte-level tokens are spelled with a character a byte
            lengths[i] = len(token.encode()) if tokenizer.characters else len(token)
    return lengths
