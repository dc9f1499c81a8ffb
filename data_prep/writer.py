"""Writes a data directory: train.bin, val.bin, tokenizer.json and, last, meta.json.

`write_corpus` takes documents of any total size and divides them as `data_prep.split` says:

    corpus.documents() -> batches of 256k characters -> a tokenizing thread for each core -> append

The tokenizers release the GIL, so threads use all cores. Every few seconds the files are synced and
progress.json records how many batches are written. After an interruption the same command reads the
text again, skips those batches without tokenizing them, and writes the same bytes.
"""

import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.documents import PIECE, Corpus, passages
from data_prep.split import Split
from nanogpt.data.files import read_json, sync, write_atomic, write_json
from nanogpt.data.meta import SPLITS, TOKENIZER, tokenizer_sha256
from nanogpt.rundir import lock

BATCH = 1 << 18  # characters that a thread tokenizes at a time
SECONDS = 2.0  # between records of the progress
META, PROGRESS = "meta.json", "progress.json"
NEW = ".preparing"  # the hidden folder
FILES = (TOKENIZER, "train.bin", "val.bin", META)  # in the order in which they are completed


class TokenFile:
    """A token file being written, and its entry in meta.json."""

    def __init__(self, path: Path, dtype: np.dtype, counts: dict | None = None):
        """With the `counts` of an interrupted run, resumes after those tokens."""
        self.path, self.dtype = path, dtype
        self.counts = counts or {"tokens": 0, "bytes": 0, "documents": 0, "largest": 0}
        self.file = open(path, "ab" if counts else "wb")  # noqa: SIM115 - see `close`
        size = self.counts["tokens"] * dtype.itemsize
        if self.file.tell() < size:
            raise ValueError(f"{path} is shorter than it was: remove {path.parent} to begin again")
        self.file.truncate(size)

    def append(self, ids: np.ndarray, size: int, documents: int) -> None:
        """Appends the ids of a text of `size` bytes, in which `documents` end."""
        self.file.write(ids.astype(self.dtype).data)
        self.counts["tokens"] += len(ids)
        self.counts["bytes"] += size
        self.counts["documents"] += documents
        self.counts["largest"] = max(self.counts["largest"], int(ids.max(initial=0)))

    def sync(self) -> None:
        """Flushes what was appended to disk."""
        self.file.flush()
        sync(self.file.fileno())

    def close(self) -> dict:
        """Completes the file; returns its entry in meta.json."""
        self.sync()
        self.file.close()
        digest = hashlib.sha256(np.memmap(self.path, mode="r")).hexdigest()
        return self.counts | {"sha256": digest}


def token_files(new: Path, tokenizer, counts: dict | None = None) -> dict[str, TokenFile]:
    """The token files of both splits; `counts` by split are those of an interrupted run."""
    counts = counts or {}
    if not counts:
        (new / PROGRESS).unlink(missing_ok=True)  # what it describes is overwritten now
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 65536 else "<u4")
    return {split: TokenFile(new / f"{split}.bin", dtype, counts.get(split)) for split in SPLITS}


def check_out(out: Path, names: Iterable[str] = FILES) -> None:
    """Raises ValueError if `out` has one of these files and is not an earlier output."""
    found = [out / name for name in names if os.path.lexists(out / name)]
    is_ours = (out / META).exists() and "tokenizer_sha256" in read_json(out / META)
    if found and not is_ours:
        why = "is not an earlier output of this command, and nothing is overwritten"
        raise ValueError(f"{found[0]} {why}: name another --out")


def write_source(out: Path, name: str, lines: list[str]) -> str:
    """Writes the text of a data directory into it; returns its name. Raises as `check_out`."""
    path, content = out / name, "".join(f"{line}\n" for line in lines).encode()
    if not path.is_file() or path.read_bytes() != content:
        check_out(out, [name])
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    return str(path)


@contextmanager
def writing(out: Path, tokenizer) -> Iterator[Path]:
    """Locks a data directory; yields the hidden folder for its files until `finish` moves them.

    A failure removes them unless the progress is recorded. Raises ValueError as `check_out` does.
    """
    new = out / NEW
    with lock(out):
        if (new / META).exists():
            move_files(out)  # resumes an interrupted `finish`
        check_out(out)
        new.mkdir(exist_ok=True)
        try:
            tokenizer.save(new)
            yield new
        except BaseException:
            # META is there while `move_files` moves the files: the next run resumes it
            if not (new / PROGRESS).exists() and not (new / META).exists():
                shutil.rmtree(new, ignore_errors=True)
            raise


def finish(out: Path, files: dict[str, TokenFile], tokenizer, corpus: Corpus, **more) -> dict:
    """Completes meta.json with `more` entries, moves all files into `out`, returns the metadata."""
    new, source = out / NEW, " ".join(corpus.inputs)
    for split, file in files.items():
        if (tokens := file.counts["tokens"]) < 2:
            why = f"the text ({source}) is too short"
            raise ValueError(f"the {split} split has {tokens} tokens: {why}")
    meta = {
        "vocab_size": tokenizer.vocab_size,
        "dtype": files["train"].dtype.name,
        "tokenizer": tokenizer.name,
        "source": source,
        "splits": {split: file.close() for split, file in files.items()},
        **more,
        "tokenizer_sha256": tokenizer_sha256(new),
    }
    write_json(new / META, meta)  # before anything is replaced: the disk may be full
    move_files(out)
    corpus.say_skipped()
    return meta


def move_files(out: Path) -> None:
    """Moves finished files into `out`, or those that are left. Raises ValueError as `check_out`."""
    new = out / NEW
    left = [name for name in FILES if (new / name).exists()]
    check_out(out, left)
    (new / PROGRESS).unlink(missing_ok=True)
    for name in left:  # META last: without it, `check_out` could not tell that the others are ours
        (out / name).unlink(missing_ok=True)
    for name in left:
        (new / name).replace(out / name)
    shutil.rmtree(new)


def batches(corpus: Corpus, split: Split) -> Iterator[dict[str, list]]:
    """Yields batches of texts by split, in the order of the corpus.

    Each is (text, whether an end-of-text token follows, how many documents it completes: 0 or 1).
    """
    batch: dict[str, list] = {"train": [], "val": []}
    characters = 0
    for document in corpus.documents():
        boundary = split.boundary(document)
        for name, part in (("train", document[:boundary]), ("val", document[boundary:])):
            is_end = name == "val" or boundary == len(document)
            rest = len(part)
            for text in passages(part, PIECE):
                rest -= len(text)
                is_last = rest == 0
                # nothing follows either part of a single document
                batch[name].append((text, is_last and split.several, int(is_last and is_end)))
                characters += len(text)
                if characters >= BATCH:
                    yield batch
                    batch, characters = {"train": [], "val": []}, 0
    yield batch


def encode(tokenizer, batch: dict[str, list]) -> dict[str, tuple[np.ndarray, int, int]]:
    """By split: ids, with the end-of-text tokens that follow; bytes of text; documents."""
    eot, tokens = tokenizer.eot_id, {}
    newline = "\n" if eot is None else ""  # ends a document if there is no end-of-text token
    for split, items in batch.items():
        texts = [text.removesuffix(newline) + newline if end else text for text, end, _ in items]
        parts = [np.zeros(0, np.int64)]
        for ids, (_, end, _) in zip(tokenizer.encode_batch(texts), items, strict=True):
            parts += [ids, [eot]] if end and eot is not None else [ids]
        ids = np.concatenate([np.asarray(part, np.int64) for part in parts])
        size = sum(len(text.encode("utf-8")) for text, _, _ in items)
        tokens[split] = ids, size, sum(documents for _, _, documents in items)
    return tokens


def in_threads(function: Callable, items: Iterator) -> Iterator:
    """The results of a function, in order; one thread per core works a few items ahead."""
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        pending = deque(pool.submit(function, item) for item in islice(items, 2 * threads))
        while pending:
            pending.extend(pool.submit(function, item) for item in islice(items, 1))
            yield pending.popleft().result()


def write_corpus(out: Path, corpus: Corpus, tokenizer, val_fraction: float | None) -> dict:
    """Tokenizes the documents of `corpus`; returns the metadata."""
    split = Split(corpus, val_fraction)
    with writing(out, tokenizer) as new:
        progress = new / PROGRESS
        job = json.dumps([BATCH, corpus.fingerprint, val_fraction, tokenizer_sha256(new)])
        state = read_json(progress) if progress.exists() else {}
        if state.get("job") == job:
            corpus.say(f"resuming after {state['batches']:,} batches of text")
        else:
            state = {"job": job, "batches": 0, "splits": {}}
        files = token_files(new, tokenizer, state["splits"])
        rest = islice(batches(corpus, split), state["batches"], None)
        recorded = time.monotonic()
        with tqdm(unit=" tokens", unit_scale=True, disable=None, leave=False) as bar:
            for tokens in in_threads(partial(encode, tokenizer), rest):
                for name, appended in tokens.items():
                    files[name].append(*appended)
                    bar.update(len(appended[0]))
                state["batches"] += 1
                if time.monotonic() - recorded > SECONDS:
                    for file in files.values():  # synced first: a crash loses only time
                        file.sync()
                    state["splits"] = {name: file.counts for name, file in files.items()}
                    write_json(progress, state)
                    recorded = time.monotonic()
        return finish(out, files, tokenizer, corpus)
