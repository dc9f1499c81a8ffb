"""Small data directories for tests."""

import json
import pickle
from pathlib import Path

import numpy as np

from nanogpt.data.tokens import TokenDataset


def numbered(directory, tokens: int, block_size: int, split: str = "train") -> TokenDataset:
    """A data set whose token i is i, so that a window shows where it came from."""
    for name in ("train", "val"):
        np.arange(tokens, dtype="<u4").tofile(directory / f"{name}.bin")
    counts = {"tokens": tokens, "bytes": tokens}
    meta = {"vocab_size": tokens, "dtype": "uint32", "splits": {"train": counts, "val": counts}}
    (directory / "meta.json").write_text(json.dumps(meta))
    return TokenDataset(directory, split, block_size)


def change(directory, split: str | None = None, **values) -> None:
    """Changes what meta.json says, of a split if one is given."""
    meta = json.loads((directory / "meta.json").read_text())
    (meta["splits"][split] if split else meta).update(values)
    (directory / "meta.json").write_text(json.dumps(meta))


def nanogpts(directory, characters: str | None = None, dtype: str = "<u2", **splits) -> Path:
    """A directory as nanoGPT writes it: the tokens of each split and, for characters, meta.pkl."""
    if characters:
        meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": {}}
        (directory / "meta.pkl").write_bytes(pickle.dumps(meta))
    for split, tokens in splits.items():
        np.array(tokens).astype(dtype).tofile(directory / f"{split}.bin")
    return directory
