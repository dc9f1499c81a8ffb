"""Writes a data directory: train.bin, val.bin, tokenizer.json and, last, meta.json.

`write` takes a text that is in memory and cuts its end off for validation, as nanoGPT does.
`write_corpus` takes documents of any total size, in constant memory, and divides them as
`data_prep.split` says:

    corpus.pieces() -> batches of 256k characters -> a tokenizing thread for each core -> append

The tokenizers release the GIL, so threads use all cores. Every few seconds the files are synced and
a hidden file records how many batches are written. After an interruption the same command reads the
text again, skips those batches without tokenizing them, and writes the same bytes.

All scripts write inside `writing`, which refuses a directory whose files are not an earlier output.
"""

import hashlib
import json
import os
import shlex
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.documents import Corpus, Piece
from data_prep.split import Split
from nanogpt.data.files import read_json, sync, write_atomic
from nanogpt.data.mixture import read_shares
from nanogpt.data.tokenizer import EOT_NAMES, FILE, CharTokenizer, get_tokenizer
from nanogpt.rundir import lock

BATCH = 1 << 18  # characters that a thread tokenizes at a time
SECONDS = 2.0  # between records of the progress
LOOKED = 1 << 22  # characters that are searched for MARKERS, at the beginning
SPLITS, META = ("train", "val"), "meta.json"
# what texts spell out between documents
MARKERS = [*EOT_NAMES, "[EOS]", "<|eos|>", "<|eot_id|>", "<|end_of_turn|>", "<|im_end|>"]


def hidden(path: Path, number: str = "") -> Path:
    """The name of a file until all of them are complete; `number` is a shard's suffix."""
    return path.with_name(f".{path.name}{number}.tmp")


class TokenFile:
    """A token file, under a hidden name until it is complete, and its entry in meta.json."""

    def __init__(self, path: Path, dtype: np.dtype, counts: dict | None = None):
        """With the `counts` of an interrupted run, resumes after those tokens."""
        self.path, self.dtype, self.temporary = path, dtype, hidden(path)
        self.counts = counts or {"tokens": 0, "bytes": 0, "documents": 0, "largest": 0}
        self.digest = hashlib.sha256()
        interrupted_while_renaming = path.exists() and not self.temporary.exists()
        if counts and interrupted_while_renaming:
            path.replace(self.temporary)
        self.file = open(self.temporary, "r+b" if counts else "wb")  # noqa: SIM115 - see `close`
        size = self.counts["tokens"] * dtype.itemsize
        self.file.truncate(size)
        while block := self.file.read(1 << 20) if counts else b"":
            self.digest.update(block)
        if self.file.tell() != size:
            advice = f"remove {path.parent} and start again"
            raise ValueError(f"{self.temporary} is shorter than it was: {advice}")

    def append(self, ids: np.ndarray, size: int, documents: int) -> None:
        """Appends the ids of a text of `size` bytes, in which `documents` end."""
        data = ids.astype(self.dtype).data
        self.file.write(data)
        self.digest.update(data)
        self.counts["tokens"] += len(ids)
        self.counts["bytes"] += size
        self.counts["documents"] += documents
        self.counts["largest"] = max(self.counts["largest"], int(ids.max(initial=0)))

    def sync(self) -> None:
        """Flushes what was appended to disk."""
        self.file.flush()
        sync(self.file.fileno())

    def close(self) -> dict:
        """Completes the file, which keeps its hidden name; returns its entry in meta.json."""
        self.sync()
        self.file.close()
        return self.counts | {"sha256": self.digest.hexdigest()}


def token_dtype(tokenizer) -> np.dtype:
    """The little-endian dtype of a tokenizer's ids."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 65536 else "<u4")


def check_fraction(val_fraction: float | None) -> None:
    """Raises ValueError unless there is text on both sides."""
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction={val_fraction} must lie between 0 and 1")


def check_name(out: Path | str) -> None:
    """Raises ValueError if --data would not read the name of a data directory as one."""
    name = str(out)
    try:
        fits = "://" not in name and bool(name.encode()) and read_shares(name) == {name: 1.0}
    except ValueError:  # of read_shares, or not UTF-8
        fits = False
    if not fits:
        why = "--data would read this name as a mixture or a URL"
        raise ValueError(f"--out={name!r}: {why}: choose one without commas and colons")


def check_out(out: Path | str, files: dict[str, bytes | None], chat: bool = False) -> None:
    """Raises ValueError if `out` has some of the files and is not an earlier output of this kind.

    `files` are the contents by name, None if they are unknown; a file with the same content is not
    in the way. `chat` is whether they are those of `data_prep.chat`.
    """
    check_name(out)
    out = Path(out)
    meta = read_json_or_empty(out / META)
    if isinstance(meta.get("splits"), dict) and ("chat" in meta) == chat:
        return
    begun = (".tokenizer*.tmp", ".progress*.json", "part-*.json")
    if any(any(out.glob(pattern)) for pattern in begun):
        return
    for name, content in files.items():
        path = out / name
        is_same = content is not None and path.is_file() and path.read_bytes() == content
        if os.path.lexists(path) and not is_same:
            why = "is not an earlier output of this command, and nothing is overwritten"
            raise ValueError(f"{path} {why}: name another --out")


def write_source(out: Path, name: str, lines: list[str], chat: bool = False) -> str:
    """Writes the text of a data directory into it; returns its name. Raises as `check_out`."""
    content = "".join(f"{line}\n" for line in lines).encode()
    check_out(out, {name: content}, chat)
    with write_atomic(out / name) as file:
        file.write(content)
    return str(out / name)


def read_json_or_empty(path: Path) -> dict:
    """The object in a JSON file, or {} if there is none."""
    try:
        return read_json(path)
    except ValueError:
        return {}


def write_json(path: Path, value: dict) -> None:
    """Writes a JSON file atomically."""
    with write_atomic(path) as file:
        file.write(f"{json.dumps(value, indent=2)}\n".encode())


def saved(tokenizer) -> bytes:
    """The tokenizer.json of a tokenizer."""
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save(directory)
        return Path(directory, FILE).read_bytes()


@contextmanager
def writing(out: Path, tokenizer, number: str = "", chat: bool = False) -> Iterator[bytes]:
    """Creates and locks a data directory while its files are written; `number` is a shard's suffix.

    Yields the content of tokenizer.json. A failure or an interruption removes temporary files that
    nothing can resume from. Raises ValueError as `check_out` does. Every OSError names a path.
    """
    progress = out / f".progress{number}.json"
    names = [f"train{number}.bin", f"val{number}.bin", f"part{number}.json" if number else META]
    temporary = [hidden(out / FILE, number), *(hidden(out / name) for name in names)]
    content = saved(tokenizer)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with lock(out, f".lock{number}"):
            check_out(out, {FILE: content} | dict.fromkeys(names), chat)
            for path in (progress, *temporary):
                for leftover in out.glob(f".{path.name}.*"):  # of `write_atomic` and a kill
                    leftover.unlink(missing_ok=True)
            try:
                yield content
            except BaseException:
                if not progress.exists():
                    for path in temporary:
                        path.unlink(missing_ok=True)
                raise
    except OSError as error:
        if error.errno and not error.filename:
            raise OSError(error.errno, error.strerror, str(out)) from None
        raise


def write(
    out: Path | str, text: str, tokenizer_name: str, val_fraction: float, source: str
) -> dict:
    """Tokenizes `text`, the last `val_fraction` of its characters for validation.

    Returns the meta data. Files are renamed when all of them are complete, so an interrupted run
    leaves no incomplete directory.
    """
    check_name(out)
    check_fraction(val_fraction)
    if not text.strip():
        raise ValueError(f"the text is empty ({source}): there is nothing to train on")
    out, cut = Path(out), int(len(text) * (1 - val_fraction))
    is_char = tokenizer_name == "char"
    tokenizer = CharTokenizer.train(text) if is_char else get_tokenizer(tokenizer_name)
    with writing(out, tokenizer) as content:
        files = {split: TokenFile(out / f"{split}.bin", token_dtype(tokenizer)) for split in SPLITS}
        for split, part in zip(SPLITS, (text[:cut], text[cut:]), strict=True):
            files[split].append(tokenizer.encode(part), len(part.encode("utf-8")), 1)
        return finish(out, files, tokenizer, content, source)


def describe(tokenizer, content: bytes, source: str, splits: dict, **more) -> dict:
    """The contents of meta.json; `content` is that of tokenizer.json, `more` further entries."""
    return {
        "vocab_size": tokenizer.vocab_size,
        "dtype": token_dtype(tokenizer).name,
        "tokenizer": tokenizer.name,
        "source": source,
        "splits": splits,
        **more,
        "tokenizer_sha256": hashlib.sha256(content).hexdigest(),
    }


def finish(
    out: Path,
    files: dict[str, TokenFile],
    tokenizer,
    content: bytes,
    source: str,
    shard: tuple[int, int] = (1, 1),
    **more,
) -> dict:
    """Renames complete files and describes them in meta.json, or for a shard in part-00002.json.

    `content` is that of tokenizer.json, `more` are further entries of meta.json.
    """
    splits = {split: file.close() for split, file in files.items()}
    for split, counts in splits.items():
        if shard[1] == 1 and counts["tokens"] < 2:
            why = f"the text ({source}) is too short"
            raise ValueError(f"the {split} split has {counts['tokens']} tokens: {why}")
    number = suffix(shard)
    if number:
        more["shard"] = list(shard)
    meta = describe(tokenizer, content, source, splits, **more)
    described = out / (f"part{number}.json" if number else META)
    # everything is written before anything is replaced: the disk may be full
    with write_atomic(hidden(out / FILE, number)) as written:
        written.write(content)
    write_json(hidden(described), meta)
    described.unlink(missing_ok=True)  # the directory is incomplete until the new one is there
    for file in files.values():
        file.temporary.replace(file.path)
    os.replace(hidden(out / FILE, number), out / FILE)
    os.replace(hidden(described), described)
    return meta


class Batch:
    """Texts to tokenize together."""

    def __init__(self):
        # by split: (text, whether an end-of-text token follows)
        self.texts: dict[str, list[tuple[str, bool]]] = {split: [] for split in SPLITS}
        self.documents = dict.fromkeys(SPLITS, 0)  # that end in it
        self.characters = 0
        self.at = 0  # bytes of input read

    def add(self, split: str, text: str, end: bool) -> None:
        """Adds a text; `end` is whether an end-of-text token follows."""
        if text:
            self.texts[split].append((text, end))
            self.characters += len(text)


class CorpusWriter:
    """Tokenizes a corpus into a data directory; see `write_corpus`."""

    def __init__(
        self, out: Path, corpus: Corpus, tokenizer, content: bytes, val_fraction: float, dedup: bool
    ):
        """`content` is that of tokenizer.json."""
        self.corpus, self.tokenizer, self.dedup = corpus, tokenizer, dedup
        number = suffix(corpus.shard)
        self.path = out / f".progress{number}.json"
        digest = hashlib.sha256(content).hexdigest()
        job = json.dumps([5, BATCH, corpus.fingerprint(), digest, val_fraction, dedup])
        # `batches` is how many are written
        self.state = {"job": hashlib.sha256(job.encode()).hexdigest(), "batches": 0, "splits": {}}
        found = read_json_or_empty(self.path)
        if found.get("job") == self.state["job"]:
            self.state = found
        else:
            self.path.unlink(missing_ok=True)  # it describes files that are overwritten now
        self.split = Split(corpus, val_fraction)
        dtype, counts = token_dtype(tokenizer), self.state["splits"]
        self.files = {s: TokenFile(out / f"{s}{number}.bin", dtype, counts.get(s)) for s in SPLITS}
        self.special = list(getattr(tokenizer, "special", {}))
        self.marker = ""  # of the end of a document, the first that a text spells out
        self.duplicates = self.cut = 0  # documents

    def run(self, show: bool) -> None:
        """Reads, tokenizes in threads, and appends in the order of reading."""
        threads, pending = os.cpu_count() or 1, deque()
        recorded = time.monotonic()
        written = self.state["batches"]
        with ThreadPoolExecutor(threads) as pool, progress_bar(self.corpus, show) as bar:

            def take() -> None:
                batch, future = pending.popleft()
                self.append(batch, future.result())
                bar.update(max(batch.at - bar.n, 0))

            try:
                for number, batch in enumerate(self.batches()):
                    if number < written:
                        continue
                    pending.append((batch, pool.submit(self.encode, batch)))
                    if len(pending) > 2 * threads:
                        take()
                    if time.monotonic() - recorded > SECONDS:
                        self.record()
                        recorded = time.monotonic()
                while pending:
                    take()
            except KeyboardInterrupt:
                self.record()
                raise
            finally:
                pool.shutdown(cancel_futures=True)
        self.record()

    def batches(self) -> Iterator[Batch]:
        """All batches of the corpus, in order."""
        markers = [] if self.corpus.separator else [*dict.fromkeys((*MARKERS, *self.special))]
        batch, looked = Batch(), 0
        seen: set[int] = set()  # hashes of the documents so far
        is_copy = False
        for piece in self.corpus.pieces():
            if self.dedup and piece.place == 0:
                is_copy = piece.digest in seen
                seen.add(piece.digest)
                self.duplicates += is_copy
            if not is_copy:
                self.divide(piece, batch)
            if not self.marker and looked < LOOKED:
                looked += len(piece.text)
                self.marker = next((marker for marker in markers if marker in piece.text), "")
            batch.at = piece.at
            if batch.characters >= BATCH:
                yield batch
                batch = Batch()
        yield batch

    def divide(self, piece: Piece, batch: Batch) -> None:
        """Adds a piece to its split."""
        boundary = self.split.boundary(piece)
        cut = min(max(boundary - piece.place, 0), len(piece.text))
        is_whole = boundary == piece.length
        # other documents follow the part for training, if there are several
        end = boundary == piece.place + cut and (is_whole or self.split.several)
        batch.add("train", piece.text[:cut], end)
        batch.add("val", piece.text[cut:], piece.last)
        if piece.last:
            batch.documents["train" if is_whole else "val"] += 1
            self.cut += 0 < boundary < piece.length

    def encode(self, batch: Batch) -> dict[str, tuple[np.ndarray, int]]:
        """The tokens of a batch by split, an end-of-text token after each document, and bytes."""
        eot, tokens = self.tokenizer.eot_id, {}
        for split, items in batch.texts.items():
            texts = [ended(text) if end and eot is None else text for text, end in items]
            parts = [np.zeros(0, np.int64)]
            for ids, (_, end) in zip(self.tokenizer.encode_batch(texts), items, strict=True):
                parts += [ids, [eot]] if end and eot is not None else [ids]
            ids = np.concatenate([np.asarray(part, np.int64) for part in parts])
            if len(ids) and not 0 <= ids.min() <= ids.max() < self.tokenizer.vocab_size:
                found = f"tokenizer {self.tokenizer.name} gave the ids {ids.min()} to {ids.max()}"
                raise ValueError(f"{found}, but its vocab_size is {self.tokenizer.vocab_size}")
            tokens[split] = ids, sum(len(text.encode("utf-8")) for text, _ in items)
        return tokens

    def append(self, batch: Batch, tokens: dict[str, tuple[np.ndarray, int]]) -> None:
        """Appends a batch to the token files."""
        for split, (ids, size) in tokens.items():
            self.files[split].append(ids, size, batch.documents[split])
        self.state["batches"] += 1

    def record(self) -> None:
        """Syncs the files, then records the progress: in this order a crash loses only time."""
        if not self.state["batches"]:
            return
        for file in self.files.values():
            file.sync()
        self.state["splits"] = {split: file.counts for split, file in self.files.items()}
        write_json(self.path, self.state)

    def notes(self, meta: dict) -> Iterator[str]:
        """What the user should know about the data."""
        corpus = self.corpus
        if self.tokenizer.eot_id is None and self.special:
            why = f"none of its special tokens ({' '.join(self.special[:5])}) is known to do so"
            yield f"note: a newline ends each document: {why}"
        if self.duplicates:
            yield f"{self.duplicates:,} duplicate documents were left out"
        if corpus.skipped:
            what = "lines, records or files without a text in UTF-8"
            yield f"{corpus.skipped:,} {what} were left out"
        if self.marker:
            option = f"--separator={shlex.quote(self.marker)}"
            yield f"the text spells out {self.marker} as plain text: {option} ends documents there"
        if corpus.separator and not corpus.separated:
            yield f"the separator {corpus.separator!r} is nowhere in the text"
        train, val = (meta["splits"][split]["documents"] for split in SPLITS)
        counts = {"for training": train, "for validation": val - self.cut}
        counts["cut once, the end for validation"] = self.cut
        parts = [f"{count:,} {where}" for where, count in counts.items() if count]
        yield "documents: " + ", ".join(parts)


def suffix(shard: tuple[int, int]) -> str:
    """What the names of a shard's files end with."""
    return f"-{shard[0]:05}" if shard[1] > 1 else ""


def ended(text: str) -> str:
    """Adds the newline that ends a document if there is no end-of-text token."""
    return text if text.endswith("\n") else text + "\n"


def train_characters(corpus: Corpus, show: bool = False) -> CharTokenizer:
    """Trains a character tokenizer on a corpus, which is read completely, whatever its shard."""
    found = np.zeros(sys.maxunicode + 1, bool)
    with progress_bar(corpus, show) as bar:
        for piece in corpus.pieces(shard=(1, 1)):
            text = ended(piece.text) if piece.last else piece.text
            found[np.frombuffer(text.encode("utf-32-le"), np.uint32)] = True
            bar.update(max(piece.at - bar.n, 0))
    return CharTokenizer.train("".join(map(chr, np.flatnonzero(found))))


def progress_bar(corpus: Corpus, show: bool) -> tqdm:
    """A progress bar over the bytes of the input."""
    look = {"unit": "B", "unit_scale": True, "dynamic_ncols": True, "leave": False}
    return tqdm(total=corpus.size or None, disable=not show, **look)


def write_corpus(
    out: Path | str,
    corpus: Corpus,
    tokenizer,
    val_fraction: float,
    source: str,
    dedup: bool = False,
    say=print,
) -> dict:
    """Tokenizes the documents of `corpus`; returns the meta data.

    `dedup` leaves out duplicate documents, by a hash of 64 bits; memory grows with the number of
    documents.
    """
    out, number = Path(out), suffix(corpus.shard)
    progress = out / f".progress{number}.json"
    with writing(out, tokenizer, number) as content:
        try:
            writer = CorpusWriter(out, corpus, tokenizer, content, val_fraction, dedup)
            if writer.state["batches"]:
                written = sum(file.counts["tokens"] for file in writer.files.values())
                say(f"resuming after the {written:,} tokens already written")
            writer.run(show=sys.stderr.isatty())
            meta = finish(out, writer.files, tokenizer, content, source, corpus.shard)
            progress.unlink()
        except (KeyboardInterrupt, OSError) as error:
            resumes = progress.exists() and not corpus.stdin
            then = f"the same command {'resumes where it stopped' if resumes else 'starts again'}"
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(f"stopped: {then}") from None
            what = f"{error.filename or out}: {error.strerror or error}"
            raise OSError(f"{what}; {then}") from error
    for note in writer.notes(meta):
        say(note)
    return meta
