"""Memory-mapped tokens to batches. A batch is a pure function of (seed, sample number); there is no loader state.

A data directory holds `train.bin` and `val.bin` (bare little-endian token ids, nanoGPT's format), `meta.json` (what
they contain) and `tokenizer.json`; a directory that nanoGPT prepared works as it is. If meta.json lists several files
for a split (`train-00001.bin` and so on), they are read as one. An epoch cuts the tokens into windows of block_size,
from a start that differs from epoch to epoch, and reads every window once in a shuffled order:

    tokens   |.r.|---window---|---window---|---window---| … |---last window---|      r drawn anew for each epoch

Sample number i, counted from the start of the run, is window permute(i mod n) of epoch i // n. So step s of a run
reads the same tokens whatever the micro-batch size or the number of processes, and resuming needs no bookkeeping.

Conversations (`data_prep.chat`) fill blocks of a size that meta.json names. Every window is such a block: r is 0. Only
the assistant's tokens are targets; `answers` finds them in the window itself.
"""

import contextlib
import json
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from nanogpt.data import tokenizer_json
from nanogpt.data.files import is_count, read_json, write_atomic
from nanogpt.data.remote import local
from nanogpt.data.tokenizer import FILE, BPETokenizer, is_nanogpts, load_tokenizer

Batch = tuple[torch.Tensor, torch.Tensor]  # inputs and targets, both (B, T) int64; targets are one token ahead


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on `device`. For CUDA it is copied from pinned memory, so that the host does not wait for the copy."""
    on_cuda = torch.device(device).type == "cuda"  # elsewhere the tokens could change underway
    x, y = (tokens.pin_memory() if on_cuda else tokens for tokens in batch)
    return x.to(device, non_blocking=on_cuda), y.to(device, non_blocking=on_cuda)


def cut(batch: Batch, size: int) -> Batch:
    """The windows (B, T) in pieces, (B T / size, size): the same tokens, with less context."""
    x, y = batch
    return x.view(-1, size), y.view(-1, size)


def mix(x: np.ndarray) -> np.ndarray:
    """Hashes uint64 arrays to uint64 (SplitMix64, Steele et al. 2014); arithmetic is modulo 2^64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(i: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Elements i (0 <= i < n) of the pseudo-random permutation `key` (1,) uint64 of n elements, without storing it.

    A Feistel network permutes the next even power of two; results outside n are permuted again until they are inside
    (cycle walking, Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))  # bits in each half
    mask = np.uint64((1 << int(half)) - 1)
    top = np.uint64(64) - half
    round_keys = mix(key + np.arange(6, dtype=np.uint64))
    i = i.astype(np.uint64)
    outside = np.arange(len(i))
    while len(outside):
        left, right = i[outside] >> half, i[outside] & mask
        for round_key in round_keys:
            left, right = right, left ^ (((right + round_key) * np.uint64(0x9E3779B97F4A7C15)) >> top)
        i[outside] = (left << half) | right
        outside = outside[i[outside] >= n]
    return i.astype(np.int64)


def answers(tokens: np.ndarray, begin: list[int], end: int) -> np.ndarray:
    """Which tokens of windows (B, T) are an answer of the assistant: bool (B, T), a function of each window alone.

    An answer begins after the tokens `begin`, <|im_start|>assistant and a line break, and ends with the token `end`,
    <|im_end|>, which is a part of it. Where a window starts inside a message, nothing in it says whose message that is,
    so its tokens are no answer.
    """
    B, T = tokens.shape
    places, begins = np.arange(T), np.zeros((B, T), dtype=bool)
    if len(begin) < T:
        begins[:, len(begin) :] = (sliding_window_view(tokens, len(begin), axis=1)[:, :-1] == begin).all(-1)
    begun = np.maximum.accumulate(np.where(begins, places, -1), axis=1)  # the last place up to here
    ended = np.maximum.accumulate(np.where(tokens == end, places, -1), axis=1)
    ended = np.pad(ended[:, :-1], ((0, 0), (1, 0)), constant_values=-1)  # before here
    return begun > ended


@lru_cache
def count_ids(path: Path, changed_ns: int) -> np.ndarray:
    """How often each id occurs in a file of uint16 tokens, (65536,) int64; `changed_ns` is part of the cache's key."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    with open(path, "rb") as file:
        while len(tokens := np.fromfile(file, dtype="<u2", count=1 << 18)):
            counts += np.bincount(tokens, minlength=1 << 16)
    return counts


def check_width(path: Path) -> None:
    """Raises ValueError if the tokens of a file have 4 or 8 bytes: as uint16, every second one is 0."""
    ids = np.fromfile(path, dtype="<u2", count=1 << 16)
    halves = ids[: len(ids) // 2 * 2].reshape(-1, 2).T
    zero = [not half.any() for half in halves]
    if sum(zero) == 1 and len(np.unique(halves[zero.index(False)])) > 2:  # else it may be a text such as ababab
        raise ValueError(
            f"every second token of {path} is 0 when read as uint16, nanoGPT's format: its tokens seem to be uint32 or "
            "int64. Store them as little-endian uint16 in a new directory (numpy: tokens.astype('<u2').tofile(path))"
        )


def is_gpt2s(path: Path) -> bool:
    """Whether the tokens of a file are GPT-2's: if so, their text is tokenized in the same way again."""
    ids, gpt2 = np.fromfile(path, dtype="<u2", count=10_000).tolist(), BPETokenizer.gpt2()
    if max(ids, default=gpt2.vocab_size) >= gpt2.vocab_size:
        return False
    both = []
    for tokens in (ids, gpt2.encoding.encode(gpt2.decode(ids), allowed_special="all")):
        ends = np.cumsum([len(gpt2.one_token(i)) for i in tokens])
        both.append(set(zip(ends.tolist(), tokens, strict=True)))
    # texts tokenized line by line differ a little; other tokenizers' ids agree in less than 0.6
    return len(both[0] & both[1]) > 0.9 * len(ids)


def nanogpt_meta(directory: Path) -> dict | None:
    """The equivalent of `meta.json` for a directory that nanoGPT wrote, or None. Writes nothing.

    The bytes of text follow from the counts of the tokens. Without meta.pkl the tokens must be GPT-2's. Raises
    ValueError if the tokens are not uint16.
    """
    files = {split: directory / f"{split}.bin" for split in ("train", "val")}
    if not is_nanogpts(directory) or not all(path.is_file() for path in files.values()):
        return None
    for path in files.values():
        check_width(path)
    counts = {split: count_ids(path.resolve(), path.stat().st_mtime_ns) for split, path in files.items()}
    # any text in GPT-2's tokens soon has ids above 10,000: others do not need its files
    if not (directory / "meta.pkl").exists() and not (counts["train"][10_000:].any() and is_gpt2s(files["train"])):
        return None
    tokenizer = load_tokenizer(directory)
    lengths = np.array([len(token) for token in tokenizer.token_bytes()])
    meta = {"vocab_size": tokenizer.vocab_size, "dtype": "uint16", "tokenizer": tokenizer.name}
    meta["source"] = "nanoGPT's files"
    meta["splits"] = {
        split: {
            "tokens": int(n.sum()),
            "bytes": int(n[: len(lengths)] @ lengths),
            "largest": int(n.nonzero()[0].max(initial=0)),
        }
        for split, n in counts.items()
    }
    return meta


def read_meta(directory: Path | str) -> dict:
    """`meta.json` of a data directory, or its equivalent if nanoGPT wrote the directory.

    Raises ValueError if it is missing or damaged, or if tokenizer.json is not the one that made the tokens.
    """
    path = local(directory) / "meta.json"
    if not path.parent.is_dir():
        raise ValueError(
            f"data directory {str(directory)!r} does not exist in {Path.cwd()}: name it with --data, or prepare the "
            "data first (data_prep/README.md)"
        )
    if from_nanogpt := nanogpt_meta(path.parent):
        return from_nanogpt
    if not path.exists():
        raise ValueError(
            f"{path} is missing, so the tokens in that directory are unknown: prepare the text into a new directory, "
            "or describe the tokens in meta.json and tokenizer.json (data_prep/README.md)"
        )
    try:
        meta = read_json(path)
        check_meta(meta, path.with_name(FILE))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): restore it, or {prepare_again({})}"
        ) from None
    check_own_tokenizer(path.with_name(FILE), meta)
    return meta


def prepare_again(meta: dict) -> str:
    """Advice that overwrites nothing."""
    source = meta.get("source")
    return "prepare the data again in a new directory" + (f" (its source: {str(source)[:200]})" if source else "")


def check_own_tokenizer(path: Path, meta: dict) -> None:
    """Raises ValueError if the tokenizer.json beside the tokens is not the one that made them.

    meta.json records its SHA-256. Without the record, the vocabulary of the data must have room for all its tokens,
    and it must have the largest id of the data.
    """
    if not path.is_file():  # `load_tokenizer` names it
        return
    if recorded := meta.get("tokenizer_sha256"):
        same = tokenizer_json.sha256(path.parent) == recorded
    else:
        size = 1 + max(tokenizer_json.vocabulary(tokenizer_json.read(path.parent)).values())
        largest = max(counts.get("largest", 0) for counts in meta["splits"].values())
        same = largest < size <= meta["vocab_size"]
    if not same:
        raise ValueError(
            f"{path} is not the tokenizer of the tokens beside it, which meta.json describes (vocab_size="
            f"{meta['vocab_size']}): put the original tokenizer.json back, or {prepare_again(meta)}"
        )


def check_meta(meta: dict, tokenizer: Path) -> None:
    """Raises ValueError or KeyError if meta.json lacks a value or has an impossible one.

    Its files must be in the directory itself. Each token of a large vocabulary takes several bytes of `tokenizer`.
    """
    for split in ("train", "val"):
        counts = {"largest": 0, "documents": 0, "files": ["train.bin"], "sha256": ""} | meta["splits"][split]
        for name in ("tokens", "bytes", "largest", "documents"):
            if not is_count(counts[name]):
                raise ValueError(f"{split}: {name} is {str(counts[name])[:40]!r}")
        if counts["tokens"] and not counts["bytes"]:
            raise ValueError(f"{split}: {counts['tokens']} tokens have 0 bytes of text")
        files = counts["files"]
        if not isinstance(files, list) or not files or not all(is_name(file) for file in files):
            raise ValueError(f"{split}: files is {str(files)[:80]!r}, not a list of names in this directory")
        if "chat" in meta and not all(is_count(counts["answers"][name], 1) for name in ("tokens", "bytes")):
            raise ValueError(f"{split}: answers is {str(counts['answers'])[:40]!r}")
        if not isinstance(counts["sha256"], str):
            raise ValueError(f"{split}: sha256 is {str(counts['sha256'])[:40]!r}")
    if chat := meta.get("chat"):
        ids = [*chat["answer"], chat["end"]]
        if not is_count(chat["block"], len(ids)) or not all(map(is_count, ids)) or len(ids) < 2:
            raise ValueError(f"chat is {str(chat)[:80]!r}")
    most = max(1 << 20, tokenizer.stat().st_size if tokenizer.is_file() else 0)
    if not is_count(meta["vocab_size"], 1) or meta["vocab_size"] > most:
        raise ValueError(f"vocab_size is {str(meta['vocab_size'])[:40]!r}")
    if meta["dtype"] not in ("uint16", "uint32"):
        raise ValueError(f"dtype is {str(meta['dtype'])[:40]!r}, neither uint16 nor uint32")


def is_name(file: object) -> bool:
    """Whether it is a plain file name, not a path to another directory."""
    return isinstance(file, str) and file == Path(file).name and file not in ("", "..")


class Tokens:
    """Token files read as one long array: `len(tokens)`, `tokens[start:stop]`, `windows`."""

    RELEASE = 1024  # windows

    def __init__(self, paths: list[Path], dtype: np.dtype):
        self.paths = [path for path in paths if path.stat().st_size]  # an empty file cannot be mapped
        self.dtype = dtype
        self.ends = np.cumsum([path.stat().st_size // dtype.itemsize for path in self.paths]).tolist()
        self.read = 0
        self.maps, self.files = [], []  # the files: (mmap, path, its stat)
        for path in self.paths:
            with open(path, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self.files.append((mapped, path, os.fstat(file.fileno())))
            self.maps.append(np.frombuffer(mapped, dtype=dtype))

    def release(self) -> None:
        """Releases the pages that were read, which count as this process's memory. Raises ValueError if they changed.

        The files are never opened again: a file that replaces one of them under its name is not read.
        """
        for mapped, path, before in self.files:
            with contextlib.suppress(OSError):
                now = path.stat()
                same_file = (now.st_dev, now.st_ino) == (before.st_dev, before.st_ino)
                if same_file and (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                    raise ValueError(f"{path} was changed while it was read: restore it and resume, or start anew")
            if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
                mapped.madvise(mmap.MADV_DONTNEED)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, place: slice) -> np.ndarray:
        start, stop, _ = place.indices(len(self))
        stop = max(start, stop)
        parts = []
        for k in range(bisect_right(self.ends, start), len(self.ends)):
            first = self.ends[k - 1] if k else 0
            parts.append(self.maps[k][max(start - first, 0) : stop - first])
            if stop <= self.ends[k]:
                break
        return parts[0] if len(parts) == 1 else np.concatenate([*parts, np.zeros(0, self.dtype)])

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """`length` tokens from each of the starts (B,): (B, length)."""
        self.read += len(starts)
        if self.read > self.RELEASE:
            self.read = 0
            self.release()
        if len(self.maps) == 1:
            return self.maps[0][starts[:, None] + np.arange(length)]
        return np.stack([self[start : start + length] for start in starts.tolist()])

    def largest(self) -> int:
        """The largest token id."""
        largest = 0
        for path in self.paths:
            with open(path, "rb") as file:
                while len(block := np.fromfile(file, self.dtype, 1 << 22)):
                    largest = max(largest, int(block.max()))
        return largest


class TokenDataset:
    """One split of a data directory. Opening it checks the file against `meta.json` and the model's vocabulary."""

    def __init__(self, directory: Path | str, split: str, block_size: int, vocab_size: int | None = None):
        """Raises ValueError if the files are missing, damaged, too short, or have ids beyond `vocab_size`."""
        self.meta, self.split = read_meta(directory), split
        self.directory, self.block_size = directory, block_size
        again = prepare_again(self.meta)
        dtype = np.dtype(self.meta["dtype"]).newbyteorder("<")
        names = self.meta["splits"][split].get("files", [f"{split}.bin"])
        paths = [local(directory) / name for name in names]
        for path in paths:
            if not path.is_file():
                raise ValueError(f"{path} is missing: {again}")
        path = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        size, expected = sum(path.stat().st_size for path in paths), self.meta["splits"][split]["tokens"]
        if size != expected * dtype.itemsize:
            raise ValueError(
                f"{path} has {size} bytes, but its {expected} tokens of {dtype.name} need {expected * dtype.itemsize}: "
                f"it is truncated or was changed; {again}"
            )
        if "chat" in self.meta and block_size != (block := self.meta["chat"]["block"]):
            raise ValueError(
                f"the conversations in {directory} fill blocks of {block} tokens: give --block_size={block}, "
                f"or prepare them with --block_size {block_size}"
            )
        if expected < 2:
            raise ValueError(f"{path} has {expected} tokens, too few to predict one: add text, or divide it otherwise")
        if expected < block_size + 1:
            raise ValueError(
                f"block_size={block_size} is too long: {path} has {expected} tokens, enough for "
                f"--block_size={expected - 1} at most"
            )
        self.tokens = Tokens(paths, dtype)
        vocab_size = vocab_size or self.meta["vocab_size"]
        largest, meta = self.meta["splits"][split].get("largest"), Path(directory, "meta.json")
        changed = meta.exists() and any(p.stat().st_mtime_ns > meta.stat().st_mtime_ns for p in self.tokens.paths)
        if largest is None or changed:
            largest = recorded_largest(Path(directory, ".scan.json"), self.tokens, vocab_size)
        if largest >= vocab_size:
            raise ValueError(
                f"{path} contains token {largest}, but the vocabulary has {vocab_size} tokens (0 to {vocab_size - 1}): "
                f"{again}, or give the vocab_size that it was made with"
            )

    @cached_property
    def bytes_per_token(self) -> float:
        """Bytes of text per token of this split that is a target, for bits per byte: the first token is none."""
        counts = self.meta["splits"][self.split]
        if "answers" in counts:
            return counts["answers"]["bytes"] / counts["answers"]["tokens"]
        return (counts["bytes"] - self.first_bytes()) / (counts["tokens"] - 1)

    def first_bytes(self) -> int:
        """Bytes of text of the first token."""
        first = int(self.tokens[:1][0])
        tokenizer = load_tokenizer(self.directory)
        if first in getattr(tokenizer, "special", {}).values():
            return 0
        text = tokenizer.decode([first]).replace("\ufffd", "?")  # part of a character: one byte
        return len(text.encode("utf-8", "replace"))

    @property
    def beginning(self) -> np.ndarray:
        """What a run's samples continue: the first token, or the first conversation up to its first answer."""
        if chat := self.meta.get("chat"):
            first = self.tokens[: chat["block"]]
            return first[: int(answers(first[None], chat["answer"], chat["end"]).argmax())]
        return self.tokens[:1]

    @property
    def windows_per_epoch(self) -> int:
        return (len(self.tokens) - 1) // self.block_size

    def starts(self, seed: int, samples: np.ndarray) -> np.ndarray:
        """Index of the first token of each sample's window, int64."""
        n, T = self.windows_per_epoch, self.block_size
        last = len(self.tokens) - 1 - T
        starts = np.empty(len(samples), dtype=np.int64)
        epochs = samples // n
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = mix(mix(np.array([seed], dtype=np.uint64)) ^ np.uint64(epoch))
            window = permute(samples[here] % n, n, key)
            shift = 0 if "chat" in self.meta else int(mix(key)[0]) % T
            # the last window always ends with the last token, so that the end of the text is learnt as well
            starts[here] = np.where(window == n - 1, last, shift + window * T)
        return starts

    def batch(self, seed: int, first_sample: int, batch_size: int) -> Batch:
        """Samples `first_sample` to `first_sample + batch_size - 1` of the run with this seed."""
        starts = self.starts(seed, np.arange(first_sample, first_sample + batch_size, dtype=np.int64))
        return self._windows(starts)

    def _windows(self, starts: np.ndarray) -> Batch:
        ids = self.tokens.windows(starts, self.block_size + 1).astype(np.int64)
        tokens = torch.from_numpy(ids)  # (B, T + 1)
        # cloned: contiguous() would let x and y of a single window share memory, and targets are changed in place
        x, y = (part.clone(memory_format=torch.contiguous_format) for part in (tokens[:, :-1], tokens[:, 1:]))
        if chat := self.meta.get("chat"):
            y[torch.from_numpy(~answers(ids, chat["answer"], chat["end"])[:, 1:])] = -1  # ignored by the loss
        return x, y

    def whole_split(self, batch_size: int, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Batches in which every token of the split is a target once; each process gets its share of them.

        The last window and the last batch are padded with targets of -1, which are ignored: all processes get the same
        number of batches, as sharded models require.
        """
        T = self.block_size
        n = -(-(len(self.tokens) - 1) // T)  # windows, the last one perhaps shorter
        batches = -(-n // (batch_size * processes))
        for b in range(batches):
            windows = (b * processes + process) * batch_size + np.arange(batch_size)
            starts = np.minimum(windows * T, len(self.tokens) - 1 - T)
            x, y = self._windows(starts)
            # a window that was moved back to fit repeats targets of the one before it, which must not count twice
            repeated = torch.from_numpy(np.minimum(windows * T - starts, T))
            y[torch.arange(T)[None, :] < repeated[:, None]] = -1
            yield x, y


def recorded_largest(record: Path, tokens: Tokens, vocab_size: int) -> int:
    """The largest token id of files that are newer than meta.json, or whose meta.json does not record it.

    It is cached in `record` if the directory is writable and the id is below `vocab_size`.
    """
    stats = [path.stat() for path in tokens.paths]
    key = " ".join(f"{p.name}:{s.st_size}:{s.st_mtime_ns}" for p, s in zip(tokens.paths, stats, strict=True))
    try:
        known = read_json(record)
    except ValueError:
        known = {}
    if is_count(known.get(key)):
        return known[key]
    known[key] = largest = tokens.largest()
    if largest < vocab_size:
        with contextlib.suppress(OSError), write_atomic(record) as file:
            file.write(json.dumps(known).encode())
    return largest
