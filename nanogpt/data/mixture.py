"""Several data sets read as one, in given proportions: `--data data/a:0.7,data/b:0.3`.

A fixed table, repeated every 10,000 samples, says which data set a sample comes from. They take
turns as evenly as their shares allow: 0.7 and 0.3 give a b a a a b a a b a ... After any number of
samples, each is within a sample or two of its share. The table also counts the earlier samples of
each data set, so a sample of a mixture is a pure function of (seed, sample number), too. Each data
set has its own epochs. Evaluation reads the validation tokens of all once, whatever the shares.
"""

from collections.abc import Iterator

import numpy as np
import torch

from nanogpt.data.tokens import Batch, TokenDataset

PERIOD = 10_000  # samples; shares are rounded to multiples of 1/PERIOD


class Mixture(TokenDataset):
    """One split of several data sets, each with its share; it has no `tokens` of its own."""

    def __init__(self, datasets: list[TokenDataset], shares: list[float], split: str):
        """The shares add up to 1. Raises ValueError if one is too small, or for conversations."""
        if any("chat" in dataset.meta for dataset in datasets):
            raise ValueError("a mixture cannot have conversations: data_prep.chat takes many files")
        self.datasets = datasets
        self.block_size = datasets[0].block_size
        self.quotas = round_shares(shares)
        self.meta = datasets[0].meta | {"splits": {}}
        for name in ("train", "val"):
            counts = [dataset.meta["splits"][name] for dataset in datasets]
            sums = {key: sum(c[key] for c in counts) for key in ("tokens", "bytes")}
            # compared on resume: other shares or directories of the same size are noticed
            parts = [
                {"share": int(quota) / PERIOD, "tokens": c["tokens"], "sha256": c.get("sha256")}
                for quota, c in zip(self.quotas, counts, strict=True)
            ]
            self.meta["splits"][name] = sums | {"parts": parts}
        self.token_count = self.meta["splits"][split]["tokens"]
        self.bytes_per_token = self.meta["splits"][split]["bytes"] / self.token_count
        # sample m of a data set with q samples in a period belongs at (m + 1/2) / q of the period
        due = np.concatenate([(np.arange(q) + 0.5) / q for q in self.quotas])
        order = np.argsort(due, kind="stable")
        # for each sample of a period: which data set it comes from, and how many samples of that
        # data set come before it in the period; both (PERIOD,)
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
        """The batches of `TokenDataset.whole_split` of one data set after another."""
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
