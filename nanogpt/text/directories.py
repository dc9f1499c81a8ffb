"""Opens data by name.

A name is a directory (ours or nanoGPT's), hf://datasets/USER/NAME, or a mixture of these.
"""

import re
from pathlib import Path

import numpy as np

from nanogpt.data.files import local_copy
from nanogpt.data.meta import SPLITS, read_meta
from nanogpt.data.mixture import Mixture
from nanogpt.data.tokens import TokenDataset
from nanogpt.text.tokenizer import load_tokenizer, written_by_nanogpt

SAMPLE = 1 << 22  # tokens from which the bytes of the training text are estimated


def open_data(
    data: str, split: str, block_size: int, vocab_size: int | None = None
) -> TokenDataset:
    """A split of a data directory, or of a mixture of them, which must share a tokenizer.

    Raises ValueError as `TokenDataset` does.
    """
    shares = read_shares(data)
    metas = {directory: load_meta(directory) for directory in shares}
    if len(shares) > 1:
        first, *others = [load_tokenizer(directory).vocabulary for directory in shares]
        if any(other != first for other in others):
            raise ValueError(f"{', '.join(shares)} have different tokenizers: prepare with one")
    sizes = (split, block_size, vocab_size)
    datasets = [TokenDataset(directory, *sizes, meta) for directory, meta in metas.items()]
    return datasets[0] if len(datasets) == 1 else Mixture(datasets, list(shares.values()), split)


def read_shares(data: str) -> dict[str, float]:
    """{directory: share} of a `data` setting, the shares adding up to 1. Raises ValueError.

    A directory that exists under that very name, such as v1:2, is not a mixture.
    """
    is_mixture = "," in data or re.search(r":[\d.]+(e-?\d+)?$", data)
    if not is_mixture or Path(data).is_dir():
        return {data: 1.0}
    shares: dict[str, float] = {}
    for item in data.split(","):
        match = re.fullmatch(r"\s*(.+):((?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)\s*", item)
        if not match or match[1] in shares or float(match[2]) == 0:
            form = "DIR:SHARE,DIR:SHARE with different directories and shares > 0"
            raise ValueError(f"data={data!r}: a mixture is {form}")
        shares[match[1]] = float(match[2])
    return {directory: share / sum(shares.values()) for directory, share in shares.items()}


def load_meta(directory: Path | str) -> dict:
    """`meta.json` of a data directory, or its equivalent if nanoGPT wrote the directory.

    Raises ValueError as `read_meta` does.
    """
    directory = local_copy(directory)
    return derive_meta(directory) if written_by_nanogpt(directory) else read_meta(directory)


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
