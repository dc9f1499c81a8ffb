"""Writes a data directory: train.bin, val.bin, tokenizer.json and, last, meta.json (see `nanogpt.data.tokens`).

`write` takes a text that is in memory and cuts its end off for validation, as nanoGPT does. `write_corpus` takes
documents of any total size, in constant memory, and divides them as `data_prep.split` says:

    corpus.pieces() -> batches of 256k characters -> tokenized by a thread for each core -> appended, in order

The tokenizers release the GIL, so threads use all cores. Every few seconds the files are synced and a hidden file
records the progress. After an interruption the same command resumes from there, and writes the same bytes.

All scripts write inside `writing`, which refuses a directory whose files are not an earlier output.
"""

import hashlib
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.documents import Corpus, Piece
from data_prep.split import Split
from nanogpt.data.files import read_json, sync, write_atomic
from nanogpt.data.mixture import read_shares
from nanogpt.data.tokenizer import EOT_NAMES, FILE, CharTokenizer, get_tokenizer, sha256
from nanogpt.run.lock import Lock

BATCH = 1 << 18  # characters that a thread tokenizes at a time
SECONDS = 2.0  # between records of the progress
# what texts spell out between documents
MARKERS = (
    *EOT_NAMES,
    "[EOS]",
    "<EOS>",
    "<eot>",
    "<|eos|>",
    "<|eot_id|>",
    "<|end_of_turn|>",
    "<|endofdoc|>",
    "<|im_end|>",
)


class TokenFile:
    """A token file, under a hidden name until it is complete, and its entry in meta.json."""

    def __init__(self, path: Path, dtype: np.dtype, counts: dict | None = None):
        """With the `counts` of an interrupted run, resumes after those tokens and discards later ones."""
        self.path, self.dtype = path, dtype
        self.temporary = path.with_name(f".{path.name}.tmp")
        self.counts = counts or {"tokens": 0, "bytes": 0, "documents": 0, "largest": 0}
        self.digest = hashlib.sha256()
        if counts and path.exists() and not self.temporary.exists():  # interrupted while files were renamed
            path.replace(self.temporary)
        self.file = open(self.temporary, "r+b" if counts else "wb")  # noqa: SIM115 - closed by `close`
        self.file.truncate(self.counts["tokens"] * dtype.itemsize)
        while block := self.file.read(1 << 20) if counts else b"":
            self.digest.update(block)
        if self.file.tell() != self.counts["tokens"] * dtype.itemsize:
            raise ValueError(f"{self.temporary} is shorter than it was: remove {path.parent} and start again")

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
        self.file.flush()
        sync(self.file.fileno())

    def close(self) -> None:
        self.file.close()

    def meta(self) -> dict:
        return self.counts | {"sha256": self.digest.hexdigest()}


def token_dtype(tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= 65536 else "<u4")


def check_fraction(val_fraction: float) -> None:
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction={val_fraction} must lie between 0 and 1")


def check_name(out: Path | str) -> None:
    """Raises ValueError if --data would not read the name of a data directory as one."""
    try:
        fits = "://" not in str(out) and read_shares(str(out)) == {str(out): 1.0} and str(out).encode() != b""
    except ValueError:  # of read_shares, or not UTF-8
        fits = False
    if not fits:
        raise ValueError(
            f"--out={str(out)!r}: --data would read this name as a mixture or a URL: choose one in UTF-8 without "
            "a comma and without a colon before a number"
        )


def check_out(out: Path | str, files: dict[str, bytes | None], chat: bool = False) -> None:
    """Raises ValueError if `out` has some of the files with other contents, and is not an earlier output of this kind.

    `files` are the contents by name, None if they are unknown. `chat` is whether they are those of `data_prep.chat`.
    """
    check_name(out)
    meta = read_json(Path(out, "meta.json")) if is_json(Path(out, "meta.json")) else {}
    if isinstance(meta.get("splits"), dict) and ("chat" in meta) == chat:
        return
    begun = (".tokenizer-*.tmp",) if chat else (".tokenizer-*.tmp", ".progress*.json", "part-*.json")
    if any(any(Path(out).glob(pattern)) for pattern in begun):
        return
    for name, content in files.items():
        path = Path(out, name)
        if os.path.lexists(path) and not (content is not None and path.is_file() and path.read_bytes() == content):
            raise ValueError(
                f"{path} is not an earlier output of this command, and nothing is overwritten: name another --out"
            )


def is_json(path: Path) -> bool:
    try:
        return bool(read_json(path))
    except ValueError:
        return False


def write_json(path: Path, value: dict) -> None:
    with write_atomic(path) as file:
        file.write(f"{json.dumps(value, indent=2)}\n".encode())


def saved(tokenizer) -> bytes:
    """The tokenizer.json of a tokenizer."""
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save(directory)
        return Path(directory, FILE).read_bytes()


@contextmanager
def writing(out: Path, tokenizer: bytes, number: str = "", chat: bool = False) -> Iterator[None]:
    """Creates and locks a data directory while its files are written; `number` is that of a shard.

    If that fails or is interrupted, removes temporary files that nothing can resume from. Raises ValueError as
    `check_out` does. Every OSError names a path.
    """
    names = [f"train{number}.bin", f"val{number}.bin", f"part{number}.json" if number else "meta.json"]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with Lock(out, f".lock{number}"):
            check_out(out, {FILE: tokenizer} | dict.fromkeys(names), chat)
            for path in out.glob(f"..progress{number}.json.*"):  # of a process that was killed
                path.unlink(missing_ok=True)
            try:
                yield
            except BaseException:
                if not tokens_kept(out / f".progress{number}.json"):
                    remove_temporaries(out, number)
                raise
    except OSError as error:
        if error.errno and not error.filename:
            raise OSError(error.errno, error.strerror, str(out)) from None
        raise


def remove_temporaries(out: Path, number: str) -> None:
    """Removes the hidden files of an unfinished output."""
    for path in (*(out / f".{split}{number}.bin.tmp" for split in ("train", "val")), out / f".progress{number}.json"):
        path.unlink(missing_ok=True)
    (out / f".hashes{number}.tmp").unlink(missing_ok=True)
    shutil.rmtree(out / f".tokenizer{number or '-00001'}.tmp", ignore_errors=True)


def write(out: Path | str, text: str, tokenizer_name: str, val_fraction: float, source: str) -> dict:
    """Tokenizes `text`, the last `val_fraction` of its characters as validation split; returns the meta data.

    Files are renamed when all of them are complete, so an interrupted run leaves no incomplete directory.
    """
    check_name(out)
    check_fraction(val_fraction)
    if not text.strip():
        raise ValueError(f"the text is empty ({source}): there is nothing to train on")
    out = Path(out)
    tokenizer = CharTokenizer.train(text) if tokenizer_name == "char" else get_tokenizer(tokenizer_name)
    cut = int(len(text) * (1 - val_fraction))
    with writing(out, saved(tokenizer)):
        files = {split: TokenFile(out / f"{split}.bin", token_dtype(tokenizer)) for split in ("train", "val")}
        for split, part in (("train", text[:cut]), ("val", text[cut:])):
            files[split].append(tokenizer.encode(part), len(part.encode("utf-8")), 1)
        return finish(out, files, tokenizer, source)


def finish(
    out: Path,
    files: dict[str, TokenFile],
    tokenizer,
    source: str,
    shard: tuple[int, int] = (1, 1),
    more: dict | None = None,
) -> dict:
    """Renames complete files and describes them in meta.json, or in part-00002.json for one shard of many.

    `more` are further entries.
    """
    for split, file in files.items():
        file.sync()
        file.close()
        if shard[1] == 1 and file.counts["tokens"] < 2:
            raise ValueError(f"the {split} split has {file.counts['tokens']} tokens: the text ({source}) is too short")
    dtype = token_dtype(tokenizer)
    meta = {"vocab_size": tokenizer.vocab_size, "dtype": dtype.name, "tokenizer": tokenizer.name}
    meta |= {"source": source, "splits": {split: file.meta() for split, file in files.items()}} | (more or {})
    if shard[1] > 1:
        meta |= {"shard": list(shard)}
    name = "meta.json" if shard[1] == 1 else f"part-{shard[0]:05}.json"
    directory = out / f".tokenizer-{shard[0]:05}.tmp"  # a fixed name, which is found again after a kill
    with write_atomic(directory / FILE) as written:  # all is written before anything is replaced: the disk may be full
        written.write(saved(tokenizer))
    meta["tokenizer_sha256"] = sha256(directory)
    write_json(directory / name, meta)
    (out / name).unlink(missing_ok=True)  # the directory is incomplete until the new one is there
    for file in files.values():
        file.temporary.replace(file.path)
    for file_name in (FILE, name):
        os.replace(directory / file_name, out / file_name)
    shutil.rmtree(directory)
    return meta


@dataclass
class Batch:
    """Texts to tokenize together, and the progress to record when they are on disk."""

    texts: dict[str, list[str]] = field(default_factory=lambda: {"train": [], "val": []})
    ends: dict[str, list[bool]] = field(default_factory=lambda: {"train": [], "val": []})  # end-of-text token follows
    sizes: Counter = field(default_factory=Counter)  # bytes by split
    documents: Counter = field(default_factory=Counter)  # that end in it, by split
    characters: int = 0
    hashes: list[int] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)  # documents that are duplicates, and those that are cut
    next: list[int] = field(default_factory=list)  # the piece after the last one: file, document, passage
    copy: list[int] = field(default_factory=list)  # file and document of the last duplicate
    at: int = 0  # bytes of input read
    skipped: int = 0  # before the input of the last piece

    def add(self, split: str, text: str, end: bool) -> None:
        self.texts[split].append(text)
        self.ends[split].append(end)
        self.sizes[split] += len(text.encode("utf-8"))
        self.characters += len(text)


class CorpusWriter:
    """Tokenizes a corpus into a data directory; see `write_corpus`."""

    def __init__(self, out: Path, corpus: Corpus, tokenizer, val_fraction: float, dedup: bool):
        self.corpus, self.tokenizer, self.dedup = corpus, tokenizer, dedup
        number = part(corpus.shard)
        self.progress, self.hashes = out / f".progress{number}.json", out / f".hashes{number}.tmp"
        digest = hashlib.sha256(saved(tokenizer)).hexdigest()
        job = hashlib.sha256(json.dumps([3, corpus.fingerprint(), digest, val_fraction, dedup]).encode()).hexdigest()
        self.state: dict = {"job": job, "next": [0, 0, 0], "copy": [], "splits": {}, "chosen": {}}
        self.state |= dict.fromkeys(("skipped", "hashes", "duplicates", "cut"), 0)
        found = read_progress(self.progress)
        self.resumed = found.get("job") == job
        if self.resumed:
            self.state = found
        else:
            self.progress.unlink(missing_ok=True)  # it describes files that are overwritten now
        self.split = Split(corpus, val_fraction, self.state["chosen"])
        self.state["chosen"] = self.split.chosen
        corpus.skipped = self.state["skipped"]  # in the inputs before the current one, which is read again
        dtype, counts = token_dtype(tokenizer), self.state["splits"]
        self.files = {s: TokenFile(out / f"{s}{number}.bin", dtype, counts.get(s)) for s in ("train", "val")}
        special = getattr(tokenizer, "special", {})
        self.markers = [] if corpus.separator else [*dict.fromkeys((*MARKERS, *special))]
        self.marker = ""  # the first of them that a text spells out
        self.seen: set[int] = set()
        if dedup and self.resumed:
            self.seen.update(np.fromfile(self.hashes, np.uint64, self.state["hashes"]).tolist())

    @property
    def tokens(self) -> int:
        return sum(file.counts["tokens"] for file in self.files.values())

    def run(self, show: bool) -> None:
        """Reads, tokenizes in threads, and appends in the order of reading."""
        threads, pending = os.cpu_count() or 1, deque()
        recorded = start = time.monotonic()
        before = self.tokens
        with ThreadPoolExecutor(threads) as pool, progress(self.corpus, show) as bar:

            def take() -> None:
                batch, future = pending.popleft()
                self.append(batch, future.result())
                speed = (self.tokens - before) / (time.monotonic() - start)
                bar.set_postfix_str(f"{speed:,.0f} tokens/s", refresh=False)
                bar.update(max(batch.at - bar.n, 0))

            try:
                for batch in self.batches():
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
        """The batches to write, in order, from the recorded progress on."""
        batch = Batch(copy=self.state["copy"])
        for piece in self.corpus.pieces(*self.state["next"]):
            batch.next = [piece.file, piece.document + piece.last, 0 if piece.last else piece.passage + 1]
            batch.at = self.corpus.before[piece.file] + piece.at
            batch.skipped = self.corpus.skipped_before
            self.marker = self.marker or next((marker for marker in self.markers if marker in piece.text), "")
            if not self.is_copy(piece, batch):
                self.divide(piece, batch)
            if batch.characters >= BATCH:
                yield batch
                batch = Batch(copy=batch.copy)
        if batch.next:
            yield batch

    def is_copy(self, piece: Piece, batch: Batch) -> bool:
        """Whether a piece belongs to a duplicate document, which is left out."""
        document = [piece.file, piece.document]
        if self.dedup and piece.passage == 0:
            if piece.digest in self.seen:
                batch.copy = document
                batch.counts["duplicates"] += 1
            else:
                self.seen.add(piece.digest)
                batch.hashes.append(piece.digest)
        return batch.copy == document

    def divide(self, piece: Piece, batch: Batch) -> None:
        """Adds each part of a piece to its split in the batch."""
        boundary = self.split.boundary(piece)
        cut = min(max(boundary - piece.place, 0), len(piece.text))
        whole = boundary == piece.length
        if cut:  # other documents follow, if there are several
            ends = boundary == piece.place + cut
            batch.add("train", piece.text[:cut], ends and (whole or self.split.chosen["several"]))
        if cut < len(piece.text):
            batch.add("val", piece.text[cut:], piece.last)
        batch.documents["train" if whole else "val"] += piece.last
        batch.counts["cut"] += piece.last and 0 < boundary < piece.length

    def encode(self, batch: Batch) -> dict[str, np.ndarray]:
        """The tokens of a batch by split, with an end-of-text token after each document."""
        eot = self.tokenizer.eot_id
        found = {}
        for split, texts in batch.texts.items():
            ends = batch.ends[split]
            if eot is None:
                texts = [ended(text) if end else text for text, end in zip(texts, ends, strict=True)]
            parts = []
            for ids, end in zip(self.tokenizer.encode_batch(texts), ends, strict=True):
                parts += [ids, [eot]] if end and eot is not None else [ids]
            ids = np.concatenate([np.asarray(part, np.int64) for part in parts]) if parts else np.zeros(0, np.int64)
            if len(ids) and not 0 <= ids.min() <= ids.max() < self.tokenizer.vocab_size:
                raise ValueError(
                    f"tokenizer {self.tokenizer.name} gave the ids {ids.min()} to {ids.max()}, "
                    f"but its vocab_size is {self.tokenizer.vocab_size}"
                )
            found[split] = ids
        return found

    def append(self, batch: Batch, found: dict[str, np.ndarray]) -> None:
        for split, ids in found.items():
            self.files[split].append(ids, batch.sizes[split], batch.documents[split])
        if batch.hashes:
            with open(self.hashes, "r+b" if self.state["hashes"] else "wb") as file:
                file.seek(8 * self.state["hashes"])
                file.write(np.array(batch.hashes, np.uint64).data)
        self.state["hashes"] += len(batch.hashes)
        for what in ("duplicates", "cut"):
            self.state[what] += batch.counts[what]
        self.state |= {"skipped": batch.skipped, "next": batch.next, "copy": batch.copy}

    def record(self) -> None:
        """Syncs the files, then records the progress: in this order a crash loses only time."""
        for file in self.files.values():
            file.sync()
        self.state["splits"] = {split: file.counts for split, file in self.files.items()}
        write_json(self.progress, self.state)

    def finish(self, source: str) -> dict:
        meta = finish(self.progress.parent, self.files, self.tokenizer, source, self.corpus.shard)
        self.progress.unlink()
        self.hashes.unlink(missing_ok=True)
        return meta


def part(shard: tuple[int, int]) -> str:
    """The suffix in the names of a shard's files."""
    return f"-{shard[0]:05}" if shard[1] > 1 else ""


def read_progress(progress: Path) -> dict:
    """The progress that an interrupted command recorded, if any."""
    try:
        return read_json(progress)
    except ValueError:
        return {}


def tokens_kept(progress: Path) -> int:
    """From how many tokens the same command can resume after an interruption."""
    return sum(counts["tokens"] for counts in read_progress(progress).get("splits", {}).values())


def kept(progress: Path, corpus: Corpus) -> str:
    """What the same command can resume from after an interruption."""
    tokens = tokens_kept(progress)
    if not tokens or corpus.spool:
        return "nothing is kept, the same command starts again"
    return f"the same command resumes after the {tokens:,} tokens already written"


def ended(text: str) -> str:
    """Adds the newline that ends a document if there is no end-of-text token."""
    return text if text.endswith("\n") else text + "\n"


def train_characters(corpus: Corpus, show: bool = False) -> CharTokenizer:
    """Trains a character tokenizer on a corpus, which is read completely."""
    found = np.zeros(sys.maxunicode + 1, bool)
    corpus = corpus.unsharded()
    with progress(corpus, show) as bar:
        for piece in corpus.pieces():
            text = ended(piece.text) if piece.last else piece.text
            found[np.frombuffer(text.encode("utf-32-le"), np.uint32)] = True
            bar.update(max(corpus.before[piece.file] + piece.at - bar.n, 0))
    return CharTokenizer.train("".join(map(chr, np.flatnonzero(found))))


def progress(corpus: Corpus, show: bool) -> tqdm:
    """A progress bar over the bytes of the input."""
    return tqdm(total=corpus.size or None, unit="B", unit_scale=True, dynamic_ncols=True, disable=not show, leave=False)


def write_corpus(
    out: Path | str, corpus: Corpus, tokenizer, val_fraction: float, source: str, dedup: bool = False, say=print
) -> dict:
    """Tokenizes the documents of `corpus`; returns the meta data.

    `dedup` leaves out duplicate documents, by a hash of 64 bits; memory grows with the number of documents.
    """
    check_fraction(val_fraction)
    check_name(out)
    out, number = Path(out), part(corpus.shard)
    progress = out / f".progress{number}.json"
    with writing(out, saved(tokenizer), number):
        try:
            writer = CorpusWriter(out, corpus, tokenizer, val_fraction, dedup)
            if writer.resumed:
                say(f"resuming after the {writer.tokens:,} tokens already written")
            writer.run(show=sys.stderr.isatty())
            meta = writer.finish(source)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped: {kept(progress, corpus)}") from None
        except OSError as error:
            what = f"{error.filename or out}: {error.strerror or error}"
            raise OSError(f"{what}; {kept(progress, corpus)}") from error
    if tokenizer.eot_id is None and (special := getattr(tokenizer, "special", {})):
        say(
            f"note: none of the tokenizer's special tokens ({' '.join(list(special)[:5])}) is known to end a text: a "
            "newline ends each document, unless tokenizer_config.json beside its tokenizer.json names an eos_token"
        )
    if writer.state["duplicates"]:
        say(f"{writer.state['duplicates']:,} duplicate documents were left out")
    if corpus.skipped:
        say(f"{corpus.skipped:,} lines, records or files without a text in UTF-8 were left out")
    if writer.marker:
        mark = shlex.quote(writer.marker)
        say(
            f"the text spells out {writer.marker}, which is read as plain text: --separator={mark} ends documents there"
        )
    if corpus.separator and not writer.resumed and not corpus.separated:
        say(f"the separator {corpus.separator!r} is nowhere in the text")
    train, val = (meta["splits"][split]["documents"] for split in ("train", "val"))
    cut = writer.state["cut"]
    counts = {"for training": train, "for validation": val - cut, "cut once, the end for validation": cut}
    say("documents: " + ", ".join(f"{count:,} {where}" for where, count in counts.items() if count))
    return meta
