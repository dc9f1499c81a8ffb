"""Several data directories read as one, in given proportions: `--data data/a:0.7,data/b:0.3`.

A fixed table, repeated every 10,000 samples, says which directory a sample comes from. The
directories take turns as evenly as their shares allow: 0.7 and 0.3 give a b a a a b a a b a ...
After any number of samples, each directory is within a sample or two of its share. The table also
counts the earlier samples of each directory, so a sample of a mixture is a pure function of (seed,
sample number), too. Each directory has its own epochs. Evaluation reads the validation tokens of
all directories once, whatever the shares.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from nanogpt.data.meta import read_meta
from nanogpt.data.tokenizer import load_tokenizer
from nanogpt.data.tokens import Batch, TokenDataset

PERIOD = 10_000  # samples; shares are rounded to multiples of 1/PERIOD


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


def open_data(
    data: str, split: str, block_size: int, vocab_size: int | None = None
) -> TokenDataset:
    """A split of a data directory or a mixture of them. Raises ValueError, as `TokenDataset`."""
    shares = read_shares(data)
    if len(shares) == 1:
        return TokenDataset(next(iter(shares)), split, block_size, vocab_size)
    return Mixture(shares, split, block_size, vocab_size)


class Mixture(TokenDataset):
    """One split of several data directories, {directory: share}."""

    def __init__(
        self, shares: dict[str, float], split: str, block_size: int, vocab_size: int | None = None
    ):
        """Raises ValueError if a directory cannot be used, or its tokenizer is not the first's."""
        for directory in shares:
            read_meta(directory)  # its error names one that does not exist
        first, *others = [load_tokenizer(directory).vocabulary for directory in shares]
        if any(other != first for other in others):
            raise ValueError(f"{', '.join(shares)} have different tokenizers: prepare with one")
        self.block_size = block_size
        self.datasets = [TokenDataset(d, split, block_size, vocab_size) for d in shares]
        if any("chat" in dataset.meta for dataset in self.datasets):
            raise ValueError("a mixture cannot have conversations: data_prep.chat takes many files")
        self.quotas = round_shares(list(shares.values()))
        self.meta = self.datasets[0].meta | {"splits": {}}
        for name in ("train", "val"):
            counts = [dataset.meta["splits"][name] for dataset in self.datasets]
            sums = {key: sum(c[key] for c in counts) for key in ("tokens", "bytes")}
            # compared on resume: other shares or directories of the same size are noticed
            parts = [
                {"share": int(quota) / PERIOD, "tokens": c["tokens"], "sha256": c.get("sha256")}
                for quota, c in zip(self.quotas, counts, strict=True)
            ]
            self.meta["splits"][name] = sums | {"parts": parts}
        self.token_count = self.meta["splits"][split]["tokens"]
        self.bytes_per_token = self.meta["splits"][split]["bytes"] / self.token_count
        # sample m of a directory with q samples in a period belongs at (m + 1/2) / q of the period
        due = np.concatenate([(np.arange(q) + 0.5) / q for q in self.quotas])
        order = np.argsort(due, kind="stable")
        # for each sample of a period: which directory it comes from, and how many samples of that
        # directory come before it in the period; both (PERIOD,)
        self.dataset_of = np.repeat(np.arange(len(self.quotas)), self.quotas)[order]
        self.earlier = np.concatenate([np.arange(q) for q in self.quotas])[order]

    def batch(self, seed: int, first_sample: int, batch_size: int) -> Batch:
        """Samples `first_sample` to `first_sample + batch_size - 1` of the run with this seed."""
        samples = np.arange(first_sample, first_sample + batch_size, dtype=np.int64)
        period, place = np.divmod(samples, PERIOD)
        source = self.dataset_of[place]
        numbers = period * self.quotas[source] + self.earlier[place]
        x = torch.empty(batch_size, self.block_size, dtype=torch.int64)
        y = torch.empty_like(x)
        for k, dataset in enumerate(self.datasets):
            rows = torch.from_numpy(source == k)
            x[rows], y[rows] = dataset.windows(dataset.starts(seed + k, numbers[source == k]))
        return x, y

    def whole_split(self, *args, **options) -> Iterator[Batch]:
        """The batches of `TokenDataset.whole_split` of one directory after another."""
        for dataset in self.datasets:
            yield from dataset.whole_split(*args, **options)


def round_shares(shares: list[float]) -> np.ndarray:
    """Rounds shares to integers that add up to PERIOD, by largest remainders.

    Raises ValueError if one becomes 0.
    """
    exact = np.array(shares) * PERIOD
    quotas = np.floor(exact + 1e-9).astype(np.int64)
    for k in np.argsort(quotas - exact, kind="stable")[: PERIOD - quotas.sum()]:
        quotas[k] += 1
    if (quotas == 0).any():
        raise ValueError(f"the smallest share of a mixture is {min(shares):.2g}, below 1/{PERIOD}")
    return quotas
