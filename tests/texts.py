"""Made-up documents as files of every kind, and what their tokens should be: for the tests of `data_prep`."""

import csv
import hashlib
import json
import multiprocessing
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tiktoken

from data_prep import writer
from data_prep.documents import Corpus
from nanogpt.text.tokenizer import EOT, BPETokenizer, byte_tokenizer, char_tokenizer, get_tokenizer

fork = multiprocessing.get_context("fork")
KINDS = ["jsonl", "jsonl.gz", "json.zst", "csv", "parquet"]
SCRIPTS = "Hello\r\nWörld|नमस्ते दुनिया|שלום עולם|你好，世界|😀👩‍👩‍👧 🏳️‍🌈|a\0b\nc|\u2028 strange\x85 spaces\u3000".split(
    "|"
)


def silent(message: str) -> None:
    pass


def documents(count: int = 300) -> list[str]:
    """Made-up documents of one to sixty lines; the hash of the second, not of the first, is for validation."""
    chance = random.Random(1)
    words = "the king and queen of hearts did speak to me in anger o my lord what news from court".split()
    lines = lambda: "\n".join(" ".join(chance.choices(words, k=9)) for _ in range(chance.randint(1, 60)))  # noqa: E731
    found = [f"Number {i}, {SCRIPTS[i % 5]}\n{lines()}" for i in range(count)]
    found.insert(1, found.pop(next(i for i, t in enumerate(found) if is_val(t, 0.1))))
    return found


def write_jsonl(path, texts: list[str], column: str = "text") -> str:
    path.write_text("".join(json.dumps({column: t, "id": i}) + "\n" for i, t in enumerate(texts)))
    return str(path)


def put(path: Path, content: bytes | str) -> str:
    """Writes a file and returns its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def write_data(out, text: str, tokenizer: str = "char", source: str = "made up") -> dict:
    """A data directory of a text, the last tenth for validation, as nanoGPT makes it; returns the meta data."""
    chosen = char_tokenizer(sorted(set(text))) if tokenizer == "char" else get_tokenizer(tokenizer)
    cut = int(len(text) * 0.9)
    with writer.writing(Path(out), chosen) as new:
        files = writer.token_files(new, chosen)
        for split, part in (("train", text[:cut]), ("val", text[cut:])):
            files[split].append(chosen.encode(part), len(part.encode()), 1)
        corpus = SimpleNamespace(inputs=[source], say_skipped=lambda: None)
        return writer.finish(Path(out), files, chosen, corpus)


def read(*inputs, **options) -> list[str]:
    """The documents that a corpus of these inputs has."""
    return list(Corpus([str(name) for name in inputs], **options).documents())


def small_bpe(eot: int = 260) -> BPETokenizer:
    ranks = {bytes([b]): b for b in range(256)} | {b"he": 256, b" t": 257, b" the": 258, b"in": 259}
    encoding = tiktoken.Encoding(
        "small", pat_str=r" ?\w+|\s+|[^\w\s]+", mergeable_ranks=ranks, special_tokens={EOT: eot}
    )
    return BPETokenizer(encoding)


def tokens(directory, split: str) -> np.ndarray:
    return np.fromfile(directory / f"{split}.bin", dtype=json.loads((directory / "meta.json").read_text())["dtype"])


def texts_of(directory) -> dict[str, list[str]]:
    """The texts of each split of byte tokens, between the end-of-text tokens."""
    found = {split: byte_tokenizer().decode(tokens(directory, split)) for split in ("train", "val")}
    return {split: [text for text in decoded.split(EOT) if text] for split, decoded in found.items()}


def is_val(document: str, fraction: float) -> bool:
    digest = hashlib.blake2b(document.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64 < fraction


def expected(texts: list[str], fraction: float, val: bool) -> list[int]:
    """What nanoGPT's prepare.py would write of the documents of a split: each with an end-of-text token behind it."""
    return [i for t in texts if is_val(t, fraction) == val for i in (*t.encode(), 256)]


def sha256(directory) -> list[str]:
    return [hashlib.sha256((directory / f"{s}.bin").read_bytes()).hexdigest() for s in ("train", "val")]


def save_as(kind: str, folder, texts: list[str]) -> str:
    """Writes the texts as a file of that kind, and returns its name."""
    import pyarrow.parquet  # not above: the tests of a device do not need it

    path, lines = folder / f"input.{kind}", [json.dumps({"text": t}) + "\n\n" for t in texts]
    if kind == "parquet":
        table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
        pyarrow.parquet.write_table(table, path, row_group_size=70)
    elif kind == "csv":
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([["id", "text"], *enumerate(texts)])
    else:
        with pyarrow.output_stream(path) as file:  # which compresses by the ending of the name
            file.write("".join(lines).encode())
    return str(path)
