"""Memory-mapped tokens to batches.

A batch is a pure function of (seed, sample number): there is no loader state. An epoch cuts the
tokens into windows of block_size, from an offset that differs from epoch to epoch, and reads every
window once in a shuffled order:

    tokens   |offset|---window---|---window---| … |---last window---|

Sample number i, counted from the start of the run, is window permute(i mod n) of epoch i // n. Each
epoch draws its own offset below block_size. A step reads the same tokens for any micro-batch size
and any number of processes, and resuming needs no bookkeeping.

A data directory holds `train.bin` and `val.bin` (raw little-endian token ids, nanoGPT's format),
`meta.json` (see `nanogpt.data.meta`) and `tokenizer.json`.

Conversations (`data_prep.chat`) fill blocks of a size that meta.json gives. Every window is such a
block, without an offset. Only the assistant's messages are targets; `answers` finds them in the
window itself.
"""

import math
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from nanogpt.data.files import local_copy
from nanogpt.data.meta import open_split, read_meta

# inputs and targets, both (B, T) int64; targets are one token ahead, and -1 is ignored by the loss
Batch = tuple[torch.Tensor, torch.Tensor]


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on `device`. From pinned memory, the host need not wait for a copy to CUDA."""
    on_cuda = torch.device(device).type == "cuda"
    x, y = (tokens.pin_memory() if on_cuda else tokens for tokens in batch)
    return x.to(device, non_blocking=on_cuda), y.to(device, non_blocking=on_cuda)


def hash64(x: np.ndarray) -> np.ndarray:
    """Hashes uint64 arrays to uint64 (SplitMix64, Steele et al. 2014), modulo 2^64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(i: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Elements i (0 <= i < n) of a pseudo-random permutation of n elements, without storing it.

    `key` (1,) uint64 chooses the permutation. A Feistel network permutes the next even power of
    two; results outside n are permuted again until they are inside (cycle walking, Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))  # bits in each half
    mask = np.uint64((1 << int(half)) - 1)
    top = np.uint64(64) - half
    golden_ratio = np.uint64(0x9E3779B97F4A7C15)
    round_keys = hash64(key + np.arange(6, dtype=np.uint64))
    i = i.astype(np.uint64)
    outside = np.arange(len(i))
    while len(outside):
        left, right = i[outside] >> half, i[outside] & mask
        for round_key in round_keys:
            left, right = right, left ^ (((right + round_key) * golden_ratio) >> top)
        i[outside] = (left << half) | right
        outside = outside[i[outside] >= n]
    return i.astype(np.int64)


def answers(tokens: np.ndarray, begin: list[int], end: int) -> np.ndarray:
    """Mask (B, T), true for the tokens of the assistant's answers in windows (B, T).

    An answer is what follows the tokens `begin` (<|im_start|>assistant and a line break), up to and
    including the token `end` (<|im_end|>). A window that starts inside a message does not show
    whose message that is: those tokens are not part of an answer.
    """
    B, T = tokens.shape
    positions = np.arange(T)
    begins = np.zeros((B, T), dtype=bool)
    if len(begin) < T:
        candidates = sliding_window_view(tokens, len(begin), axis=1)[:, :-1]
        begins[:, len(begin) :] = (candidates == begin).all(-1)
    # the last begin up to each position, and the last end before it; -1 if there is none
    last_begin = np.maximum.accumulate(np.where(begins, positions, -1), axis=1)
    last_end = np.maximum.accumulate(np.where(tokens == end, positions, -1), axis=1)
    last_end = np.pad(last_end[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return last_begin > last_end


class TokenDataset:
    """One split of a data directory, checked against `meta.json` and the model's vocabulary.

    `tokens` (N,) is the memory-mapped file.
    """

    RELEASE = 1024  # windows

    def __init__(
        self,
        directory: Path | str,
        split: str,
        block_size: int,
        vocab_size: int | None = None,
        meta: dict | None = None,
    ):
        """If `meta` is given, meta.json is not read.

        Raises ValueError for missing, damaged or short files, and ids >= `vocab_size`.
        """
        self.block_size = block_size
        self.meta = meta or read_meta(directory)
        size = vocab_size or self.meta["vocab_size"]
        self.tokens = open_split(local_copy(directory), self.meta, split, block_size, size)
        counts = self.meta["splits"][split]
        self.token_count = counts["tokens"]
        counted = counts.get("answers", counts)  # of conversations only the answers
        self.bytes_per_token = counted["bytes"] / counted["tokens"]  # for bits per byte
        self.windows_read = 0

    def starts(self, seed: int, samples: np.ndarray) -> np.ndarray:
        """Index of the first token of each sample's window, int64."""
        T = self.block_size
        n = (self.token_count - 1) // T  # windows in an epoch
        last = self.token_count - 1 - T
        starts = np.empty(len(samples), dtype=np.int64)
        epochs = samples // n
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = hash64(hash64(np.array([seed], dtype=np.uint64)) ^ np.uint64(epoch))
            window = permute(samples[here] % n, n, key)
            offset = 0 if "chat" in self.meta else int(hash64(key)[0]) % T
            # the last window always ends with the last token, so that the end is learned as well
            starts[here] = np.where(window == n - 1, last, offset + window * T)
        return starts

    def batch(self, seed: int, first_sample: int, batch_size: int) -> Batch:
        """Samples `first_sample` to `first_sample + batch_size - 1` of the run with this seed."""
        samples = np.arange(first_sample, first_sample + batch_size, dtype=np.int64)
        return self.windows(self.starts(seed, samples))

    def windows(self, starts: np.ndarray) -> Batch:
        """The windows that begin with the tokens `starts` (B,)."""
        self.windows_read += len(starts)
        if self.windows_read > self.RELEASE:  # pages that were read count as this process's memory
            self.windows_read = 0
            self.tokens.base.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
        ids = self.tokens[starts[:, None] + np.arange(self.block_size + 1)].astype(np.int64)
        x, y = torch.tensor(ids[:, :-1]), torch.tensor(ids[:, 1:])  # copies: targets are changed
        if chat := self.meta.get("chat"):
            y[torch.from_numpy(~answers(ids, chat["answer"], chat["end"])[:, 1:])] = -1
        return x, y

    def whole_split(
        self, batch_size: int, process: int = 0, processes: int = 1, stride: int = 0
    ) -> Iterator[Batch]:
        """Batches in which every token but the first is a target once, divided among processes.

        Windows start every `stride` tokens (0: block_size). A smaller stride overlaps them, and
        gives each target at least block_size - stride tokens of context.

        The last window and the last batch are padded with targets of -1, so all processes get the
        same number of batches, as sharded models require.
        """
        T, stride = self.block_size, stride or self.block_size
        last = self.token_count - 1 - T  # where the last window starts
        n = 1 + math.ceil(last / stride)
        batches = math.ceil(n / (batch_size * processes))
        for b in range(batches):
            windows = (b * processes + process) * batch_size + np.arange(batch_size)
            starts = np.minimum(windows * stride, last)
            x, y = self.windows(starts)
            predicted = np.where(windows > 0, (windows - 1) * stride + T, 0)  # by earlier windows
            repeated = torch.from_numpy(np.minimum(predicted - starts, T))
            y[torch.arange(T)[None, :] < repeated[:, None]] = -1
            yield x, y
