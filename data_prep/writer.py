"""Writes a data directory: train.bin, val.bin, tokenizer.json and, last, meta.json.

`write` takes a text that is in memory and cuts its end off for validation, as nanoGPT does.
`write_corpus` takes documents of any total size, in constant memory, and divides them as
`data_prep.split` says:

    corpus.pieces() -> batches of 256k characters -> a tokenizing thread for each core -> append

The tokenizers release the GIL, so threads use all cores. Every few seconds the files are synced and
a hidden file records the progress. After an interruption the same command resumes from there, and
writes the same bytes.

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
from nanogpt.rundir import Lock

BATCH = 1 << 18  # characters that a thread tokenizes at a time
SECONDS = 2.0  # between records of the progress
LOOKED = 1 << 22  # characters that are searched for MARKERS, at the beginning
SPLITS, META = ("train", "val"), "meta.json"
# what texts spell out between documents
MARKERS = (
    *EOT_NAMES,
    *"[EOS] <EOS> <eot> <|eos|> <|eot_id|> <|end_of_turn|> <|endofdoc|> <|im_end|>".split(),
)


class TokenFile:
    """A token file, under a hidden name until it is complete, and its entry in meta.json."""

    def __init__(self, path: Path, dtype: np.dtype, counts: dict | None = None):
        """With the `counts` of an interrupted run, resumes after those tokens."""
        self.path, self.dtype = path, dtype
        self.temporary = path.with_name(f".{path.name}.tmp")
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
        self.file.flush()
        sync(self.file.fileno())

    def close(self) -> None:
        self.sync()
        self.file.close()

    def meta(self) -> dict:
        return self.counts | {"sha256": self.digest.hexdigest()}


def token_dtype(tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= 65536 else "<u4")


def check_fraction(val_fraction: float | None) -> None:
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
        raise ValueError(
            f"--out={name!r}: --data would read this name as a mixture or a URL: choose one in "
            "UTF-8 without a comma and without a colon before a number"
        )


def check_out(out: Path | str, files: dict[str, bytes | None], chat: bool = False) -> None:
    """Raises ValueError if `out` has some of the files and is not an earlier output of this kind.

    `files` are the contents by name, None if they are unknown; a file with the same content is not
    in the way. `chat` is whether they are those of `data_prep.chat`.
    """
    check_name(out)
    out = Path(out)
    meta = read_json_or_empty(out / "meta.json")
    if isinstance(meta.get("splits"), dict) and ("chat" in meta) == chat:
        return
    begun = [".tokenizer-*.tmp"] if chat else [".tokenizer-*.tmp", ".progress*.json", "part-*.json"]
    if any(any(out.glob(pattern)) for pattern in begun):
        return
    for name, content in files.items():
        path = out / name
        is_same = content is not None and path.is_file() and path.read_bytes() == content
        if os.path.lexists(path) and not is_same:
            raise ValueError(
                f"{path} is not an earlier output of this command, and nothing is overwritten: "
                "name another --out"
            )


def read_json_or_empty(path: Path) -> dict:
    try:
        return read_json(path)
    except ValueError:
        return {}


def write_json(path: Path, value: dict) -> None:
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
    content = saved(tokenizer)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with Lock(out, f".lock{number}"):
            check_out(out, {FILE: content} | dict.fromkeys(names), chat)
            for path in out.glob(f".{progress.name}.*"):  # of a process that was killed
                path.unlink(missing_ok=True)
            try:
                yield content
            except BaseException:
                if not tokens_kept(progress):
                    for path in (*(out / f".{name}.tmp" for name in names[:2]), progress):
                        path.unlink(missing_ok=True)
                    shutil.rmtree(staging(out, number), ignore_errors=True)
                raise
    except OSError as error:
        if error.errno and not error.filename:
            raise OSError(error.errno, error.strerror, str(out)) from None
        raise


def staging(out: Path, number: str) -> Path:
    """Where files are written before any is replaced; the name is the same after a kill."""
    return out / f".tokenizer{number or '-00001'}.tmp"


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
    if tokenizer_name == "char":
        tokenizer = CharTokenizer.train(text)
    else:
        tokenizer = get_tokenizer(tokenizer_name)
    with writing(out, tokenizer) as content:
        files = {split: TokenFile(out / f"{split}.bin", token_dtype(tokenizer)) for split in SPLITS}
        for split, part in zip(SPLITS, (text[:cut], text[cut:]), strict=True):
            files[split].append(tokenizer.encode(part), len(part.encode("utf-8")), 1)
        return finish(out, files, tokenizer, content, source)


def finish(
    out: Path,
    files: dict[str, TokenFile],
    tokenizer,
    content: bytes,
    source: str,
    shard: tuple[int, int] = (1, 1),
    more: dict | None = None,
) -> dict:
    """Renames complete files and describes them in meta.json, or for a shard in part-00002.json.

    `content` is that of tokenizer.json, `more` are further entries of meta.json.
    """
    for split, file in files.items():
        file.close()
        if shard[1] == 1 and file.counts["tokens"] < 2:
            why = f"the text ({source}) is too short"
            raise ValueError(f"the {split} split has {file.counts['tokens']} tokens: {why}")
    meta = {
        "vocab_size": tokenizer.vocab_size,
        "dtype": token_dtype(tokenizer).name,
        "tokenizer": tokenizer.name,
        "source": source,
        "splits": {split: file.meta() for split, file in files.items()},
        **(more or {}),
    }
    if shard[1] > 1:
        meta["shard"] = list(shard)
    number = suffix(shard)
    name = f"part{number}.json" if number else META
    directory = staging(out, number)
    # everything is written before anything is replaced: the disk may be full
    with write_atomic(directory / FILE) as written:
        written.write(content)
    meta["tokenizer_sha256"] = hashlib.sha256(content).hexdigest()
    write_json(directory / name, meta)
    (out / name).unlink(missing_ok=True)  # the directory is incomplete until the new one is there
    for file in files.values():
        file.temporary.replace(file.path)
    for file_name in (FILE, name):
        os.replace(directory / file_name, out / file_name)
    shutil.rmtree(directory)
    return meta


class Batch:
    """Texts to tokenize together, and the progress to record when their tokens are on disk."""

    def __init__(self):
        self.texts: dict[str, list[str]] = {split: [] for split in SPLITS}
        self.ends: dict[str, list[bool]] = {
            split: [] for split in SPLITS
        }  # an end-of-text token follows
        self.bytes = dict.fromkeys(SPLITS, 0)
        self.documents = dict.fromkeys(SPLITS, 0)  # that end in it
        self.characters = 0
        self.at = 0  # bytes of input read
        self.progress: dict = {}

    def add(self, split: str, text: str, end: bool) -> None:
        if text:
            self.texts[split].append(text)
            self.ends[split].append(end)
            self.bytes[split] += len(text.encode("utf-8"))
            self.characters += len(text)


class CorpusWriter:
    """Tokenizes a corpus into a data directory; see `write_corpus`."""

    def __init__(
        self, out: Path, corpus: Corpus, tokenizer, content: bytes, val_fraction: float, dedup: bool
    ):
        """`content` is that of tokenizer.json."""
        self.corpus, self.tokenizer, self.dedup, self.content = corpus, tokenizer, dedup, content
        number = suffix(corpus.shard)
        self.path = out / f".progress{number}.json"
        digest = hashlib.sha256(content).hexdigest()
        job = json.dumps([4, corpus.fingerprint(), digest, val_fraction, dedup])
        job = hashlib.sha256(job.encode()).hexdigest()
        # `next` is the first piece that is not written yet: file, document, passage
        self.state: dict = {"job": job, "next": [0, 0, 0], "splits": {}, "chosen": {}}
        self.state |= {"skipped": 0, "duplicates": 0, "cut": 0}
        found = read_json_or_empty(self.path)
        self.resumed = found.get("job") == job
        if self.resumed:
            self.state = found
        else:
            self.path.unlink(missing_ok=True)  # it describes files that are overwritten now
        self.split = Split(corpus, val_fraction, self.state["chosen"])
        self.state["chosen"] = self.split.chosen
        dtype, counts = token_dtype(tokenizer), self.state["splits"]
        self.files = {s: TokenFile(out / f"{s}{number}.bin", dtype, counts.get(s)) for s in SPLITS}
        special = getattr(tokenizer, "special", {})
        self.markers = [] if corpus.separator else [*dict.fromkeys((*MARKERS, *special))]
        self.marker = ""  # the first of them that a text spells out

    @property
    def tokens(self) -> int:
        return sum(file.counts["tokens"] for file in self.files.values())

    def run(self, show: bool) -> None:
        """Reads, tokenizes in threads, and appends in the order of reading."""
        threads, pending = os.cpu_count() or 1, deque()
        recorded = start = time.monotonic()
        before = self.tokens
        with ThreadPoolExecutor(threads) as pool, progress_bar(self.corpus, show) as bar:

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
        progress = {key: self.state[key] for key in ("next", "skipped", "duplicates", "cut")}
        begin, batch = tuple(progress["next"]), Batch()
        seen: set[int] = set()  # hashes of the documents so far, which are read again when resuming
        looked, is_copy = 0, False
        start = () if self.dedup else (*begin, progress["skipped"])
        for piece in self.corpus.pieces(*start):
            if self.dedup and piece.passage == 0:
                is_copy = piece.digest in seen
                seen.add(piece.digest)
            if piece[:3] < begin:
                continue
            if is_copy:
                progress["duplicates"] += piece.passage == 0
            else:
                progress["cut"] += self.divide(piece, batch)
            if not self.marker and looked < LOOKED:
                looked += len(piece.text)
                self.marker = next((marker for marker in self.markers if marker in piece.text), "")
            passage = 0 if piece.last else piece.passage + 1
            progress["next"] = [piece.file, piece.document + piece.last, passage]
            progress["skipped"] = self.corpus.skipped_before
            batch.progress = dict(progress)
            batch.at = self.corpus.before[piece.file] + piece.at
            if batch.characters >= BATCH:
                yield batch
                batch = Batch()
        if batch.progress:
            yield batch

    def divide(self, piece: Piece, batch: Batch) -> bool:
        """Adds a piece to its split; returns whether it ends a document that is cut."""
        boundary = self.split.boundary(piece)
        cut = min(max(boundary - piece.place, 0), len(piece.text))
        is_whole = boundary == piece.length
        # other documents follow the part for training, if there are several
        end = boundary == piece.place + cut and (is_whole or self.split.chosen["several"])
        batch.add("train", piece.text[:cut], end)
        batch.add("val", piece.text[cut:], piece.last)
        batch.documents["train" if is_whole else "val"] += piece.last
        return piece.last and 0 < boundary < piece.length

    def encode(self, batch: Batch) -> dict[str, np.ndarray]:
        """The tokens of a batch by split, with an end-of-text token after each document."""
        eot, tokens = self.tokenizer.eot_id, {}
        for split, texts in batch.texts.items():
            ends = batch.ends[split]
            if eot is None:
                texts = [ended(t) if end else t for t, end in zip(texts, ends, strict=True)]
            parts = [np.zeros(0, np.int64)]
            for ids, end in zip(self.tokenizer.encode_batch(texts), ends, strict=True):
                parts += [ids, [eot]] if end and eot is not None else [ids]
            ids = np.concatenate([np.asarray(part, np.int64) for part in parts])
            if len(ids) and not 0 <= ids.min() <= ids.max() < self.tokenizer.vocab_size:
                raise ValueError(
                    f"tokenizer {self.tokenizer.name} gave the ids {ids.min()} to {ids.max()}, "
                    f"but its vocab_size is {self.tokenizer.vocab_size}"
                )
            tokens[split] = ids
        return tokens

    def append(self, batch: Batch, tokens: dict[str, np.ndarray]) -> None:
        for split, ids in tokens.items():
            self.files[split].append(ids, batch.bytes[split], batch.documents[split])
        self.state |= batch.progress

    def record(self) -> None:
        """Syncs the files, then records the progress: in this order a crash loses only time."""
        for file in self.files.values():
            file.sync()
        self.state["splits"] = {split: file.counts for split, file in self.files.items()}
        write_json(self.path, self.state)

    def finish(self, source: str) -> dict:
        out, shard = self.path.parent, self.corpus.shard
        meta = finish(out, self.files, self.tokenizer, self.content, source, shard)
        self.path.unlink()
        return meta

    def notes(self, meta: dict) -> Iterator[str]:
        """What the user should know about the data."""
        corpus, special = self.corpus, [*getattr(self.tokenizer, "special", {})]
        if self.tokenizer.eot_id is None and special:
            yield (
                f"note: none of the special tokens ({' '.join(special[:5])}) is known to end a "
                "text: a newline ends each document, unless tokenizer_config.json beside the "
                "tokenizer.json names an eos_token"
            )
        if self.state["duplicates"]:
            yield f"{self.state['duplicates']:,} duplicate documents were left out"
        if corpus.skipped:
            left_out = "lines, records or files without a text in UTF-8 were left out"
            yield f"{corpus.skipped:,} {left_out}"
        if self.marker:
            yield (
                f"the text spells out {self.marker}, which is read as plain text: "
                f"--separator={shlex.quote(self.marker)} ends documents there"
            )
        if corpus.separator and not self.resumed and not corpus.separated:
            yield f"the separator {corpus.separator!r} is nowhere in the text"
        train, val = (meta["splits"][split]["documents"] for split in SPLITS)
        cut = self.state["cut"]
        counts = {"for training": train, "for validation": val - cut}
        counts["cut once, the end for validation"] = cut
        parts = [f"{count:,} {where}" for where, count in counts.items() if count]
        yield "documents: " + ", ".join(parts)


def suffix(shard: tuple[int, int]) -> str:
    """What the names of a shard's files end with."""
    return f"-{shard[0]:05}" if shard[1] > 1 else ""


def tokens_kept(path: Path) -> int:
    """From how many tokens the same command can resume after an interruption."""
    return sum(counts["tokens"] for counts in read_json_or_empty(path).get("splits", {}).values())


def kept(path: Path, corpus: Corpus) -> str:
    """What the same command can resume from after an interruption."""
    tokens = tokens_kept(path)
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
    with progress_bar(corpus, show) as bar:
        for piece in corpus.pieces():
            text = ended(piece.text) if piece.last else piece.text
            found[np.frombuffer(text.encode("utf-32-le"), np.uint32)] = True
            bar.update(max(corpus.before[piece.file] + piece.at - bar.n, 0))
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
    check_fraction(val_fraction)
    check_name(out)
    out, number = Path(out), suffix(corpus.shard)
    path = out / f".progress{number}.json"
    with writing(out, tokenizer, number) as content:
        try:
            writer = CorpusWriter(out, corpus, tokenizer, content, val_fraction, dedup)
            if writer.resumed:
                say(f"resuming after the {writer.tokens:,} tokens already written")
            writer.run(show=sys.stderr.isatty())
            meta = writer.finish(source)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped: {kept(path, corpus)}") from None
        except OSError as error:
            what = f"{error.filename or out}: {error.strerror or error}"
            raise OSError(f"{what}; {kept(path, corpus)}") from error
    for note in writer.notes(meta):
        say(note)
    return meta
