"""Checks a data directory: `meta.json`, the files that it describes, their tokenizer.

`meta.json` describes the tokens: vocab_size, dtype, source and, for each split, the number of
tokens, the bytes of their text and the largest id. Directories that nanoGPT wrote have none: the
same is derived from their tokens.
"""

from pathlib import Path

import numpy as np

from nanogpt.data.files import on_disk, one_line_errors, read_json
from nanogpt.data.tokenizer import FILE, load_tokenizer, sha256, written_by_nanogpt

SPLITS = ("train", "val")
SAMPLE = 1 << 22  # tokens from which the bytes of the training text are estimated
AGAIN = "prepare the data again in a new directory"


def read_meta(directory: Path | str) -> dict:
    """`meta.json` of a data directory, or its equivalent if nanoGPT wrote the directory.

    Raises ValueError if it is missing or damaged, or if tokenizer.json did not make the tokens.
    """
    directory = on_disk(directory)
    if written_by_nanogpt(directory):
        return derive_meta(directory)
    path, tokenizer = directory / "meta.json", directory / FILE
    if not path.exists():
        lacks = "has no meta.json" if directory.exists() else f"does not exist in {Path.cwd()}"
        near = Path("data", directory.name)
        hint = f"did you mean {near}? Or " if near != directory and near.is_dir() else ""
        raise ValueError(
            f"data directory {str(directory)!r} {lacks}: {hint}name another with --data, or "
            "prepare it, or describe its tokens (data_prep/README.md)"
        )
    meta = read_json(path)
    with one_line_errors(f"{path} is damaged", f"restore it, or {AGAIN}"):
        check_meta(meta)
    recorded = meta.get("tokenizer_sha256")
    if recorded and tokenizer.is_file() and sha256(directory) != recorded:
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
        optional = ("largest", "documents")  # which may be 0
        numbers |= {f"{split}: {name}": counts.get(name, 0) + 1 for name in optional}
        for name in ("tokens", "bytes"):
            numbers[f"{split}: answers: {name}"] = counts.get("answers", counts)[name]
    if "chat" in meta:
        numbers |= {"chat: block": meta["chat"]["block"], "chat: end": meta["chat"]["end"] + 1}
    for name, number in numbers.items():
        if type(number) is not int or not 0 < number < 1 << 63:
            raise ValueError(f"{name} is not valid")


def check_split(
    directory: Path, meta: dict, split: str, block_size: int, vocab_size: int
) -> np.memmap:
    """The tokens of a split.

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
        other = f"give --block_size={block}, or prepare them with --block_size {block_size}"
        raise ValueError(f"the conversations in {path} fill blocks of {block} tokens: {other}")
    if count < block_size + 1:
        most = f"--block_size={count - 1} at most" if count > 1 else "more text or --val_fraction"
        why = f"{path} has {count} tokens, too few; give {most}"
        raise ValueError(f"block_size={block_size} is too long: {why}")
    tokens = np.memmap(path, dtype, "r")
    largest = counts["largest"] if "largest" in counts else int(tokens.max())
    if largest >= vocab_size:
        why = f"contains token {largest}, but the vocabulary has {vocab_size} tokens"
        raise ValueError(f"{path} {why}: {AGAIN}, or give the vocab_size that it was made with")
    return tokens


def derive_meta(directory: Path) -> dict:
    """The equivalent of meta.json for a directory that nanoGPT wrote. Writes nothing.

    Without meta.pkl the tokens are GPT-2's. All tokens of the validation text are counted; the
    bytes of the training text are estimated. Raises ValueError if the tokens are not uint16.
    """
    tokenizer, splits = load_tokenizer(directory), {}
    lengths = np.zeros(tokenizer.vocab_size, dtype=np.int64)  # bytes of each token's text (V,)
    for token, i in tokenizer.vocabulary.items():
        if token not in tokenizer.special:  # byte-level tokens are spelled with a character a byte
            lengths[i] = len(token.encode()) if tokenizer.characters else len(token)
    for split in SPLITS:
        path = directory / f"{split}.bin"
        ids = np.fromfile(path, dtype="<u2", count=SAMPLE if split == "train" else -1)
        if ids.any() and not ids[1::2].any():
            why = "is 0 when read as uint16, nanoGPT's format"
            raise ValueError(f"every second token of {path} {why}: store the tokens as uint16")
        tokens = path.stat().st_size // 2
        known = lengths[ids[ids < len(lengths)]]
        splits[split] = {"tokens": tokens, "bytes": int(known.sum() * tokens / max(1, len(ids)))}
    about = {"vocab_size": tokenizer.vocab_size, "dtype": "uint16", "tokenizer": tokenizer.name}
    return about | {"source": "nanoGPT's files", "splits": splits}
