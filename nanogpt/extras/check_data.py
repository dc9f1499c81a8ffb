"""`nanogpt check-data DIR`: the contents of a data directory, and warnings.

Counts are exact. The text is checked in the first and last tokens of each split, so that a large
corpus takes seconds. Text without end-of-text tokens is compared paragraph by paragraph.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from nanogpt.data.meta import read_meta
from nanogpt.data.tokenizer import load_tokenizer
from nanogpt.data.tokens import TokenDataset, Tokens

SAMPLE = 1 << 23  # tokens of a split that are read
SHORTEST = 50  # letters and digits; shorter documents may be equal by chance
BINARY = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]")  # control characters, and not UTF-8


@dataclass
class Split:
    """The counts of a split in meta.json, and the part of it that is read."""

    counts: dict
    ids: np.ndarray  # (N,) int64
    documents: list[str]  # or paragraphs, if the data has no end-of-text tokens


def examine(
    directory: Path | str, block_size: int, parameters: int, sha256: bool = False, say=print
) -> list[str]:
    """Prints a report on a data directory; returns the warnings in it.

    `block_size` and `parameters` are those of the model to be trained; `sha256` also verifies
    checksums. Raises ValueError if the files do not match meta.json or tokenizer.json.
    """
    meta = read_meta(directory)
    tokenizer = load_tokenizer(directory)
    size = f"vocabulary {meta['vocab_size']:,}, {meta['dtype']}"
    say(f"{directory}: tokenizer {tokenizer.name}, {size}")
    say(f"source: {meta.get('source', 'not recorded')}")
    block = meta["chat"]["block"] if "chat" in meta else 1
    train, val = (
        read_split(directory, name, block, meta["splits"][name], tokenizer, sha256, say)
        for name in ("train", "val")
    )
    counts = np.bincount(train.ids, minlength=tokenizer.vocab_size)[: tokenizer.vocab_size]
    total = max(counts.sum(), 1)
    top = [f"{tokenizer.decode([i])!r} {counts[i] / total:.1%}" for i in np.argsort(-counts)[:8]]
    say(f"{(counts > 0).sum():,} of {len(counts):,} tokens occur; most often {', '.join(top)}")
    say("windows:")
    for start in np.random.default_rng(0).integers(max(len(train.ids) - 64, 1), size=3):
        say(f"  {tokenizer.decode(train.ids[start : start + 64].tolist())[:90]!r}")
    same = same_again(tokenizer, train.ids)
    if same < 0.97:  # 0.96 between encodings trained on parts of one text
        warnings = [
            f"only {same:.0%} of the tokens are the same after decoding and encoding again: "
            "a different tokenizer made these tokens; put its tokenizer.json there, or prepare the "
            "data again"
        ]
    else:  # with the wrong tokenizer the text means nothing
        warnings = [
            *size_warnings(train, val, block_size, parameters),
            *vocabulary_warnings(counts, tokenizer, train),
            *text_warnings(train, val),
        ]
    for line in warnings:
        say(f"warning: {line}")
    if not warnings:
        say("no warnings")
    return warnings


def read_split(directory, name: str, block: int, counts: dict, tokenizer, sha256: bool, say):
    """Describes a split, and reads its first and last tokens."""
    tokens = TokenDataset(directory, name, block, tokenizer.vocab_size).tokens
    per_token = counts["bytes"] / max(counts["tokens"], 1)
    files = f" in {len(tokens.paths)} files" if len(tokens.paths) > 1 else ""
    documents = f", {counts['documents']:,} documents" if "documents" in counts else ""
    say(
        f"{name:>5}: {counts['tokens']:,} tokens{files}, {counts['bytes']:,} bytes, "
        f"{per_token:.2f} bytes per token{documents}"
    )
    if sha256:
        say(f"       {check_sha256(name, counts, tokens)}")
    if len(tokens) <= SAMPLE:
        ids = tokens[:].astype(np.int64)
    else:
        ids = np.concatenate([tokens[: SAMPLE // 2], tokens[-SAMPLE // 2 :]]).astype(np.int64)
    parts = split_documents(ids, tokenizer.eot_id)
    texts = [tokenizer.decode(part.tolist()) for part in parts]
    if tokenizer.eot_id is None:
        text = "".join(texts)
        texts = text.split("\n\n" if "\n\n" in text else "\n")
    return Split(counts, ids, texts)


def split_documents(ids: np.ndarray, *ends: int | None) -> list[np.ndarray]:
    """The documents in tokens (N,), which the tokens `ends` end; without ends, a single one."""
    places = np.flatnonzero(np.isin(ids, [i for i in ends if i is not None]))
    parts = [ids[start + 1 : end] for start, end in pairwise([-1, *places, len(ids)])]
    return [part for part in parts if len(part)]


def check_sha256(split: str, counts: dict, tokens: Tokens) -> str:
    """Compares the files with the SHA-256 that was recorded. Raises ValueError if it differs."""
    hash = hashlib.sha256()
    for path in tokens.paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                hash.update(block)
    digest = hash.hexdigest()
    if "sha256" not in counts:
        return f"SHA-256 {digest} (none was recorded)"
    if digest != counts["sha256"]:
        raise ValueError(
            f"{tokens.paths[0].parent}: the {split} split was changed: its SHA-256 is "
            f"{digest[:16]}…, not {counts['sha256'][:16]}…; prepare the data again"
        )
    return f"SHA-256 {digest}, as written"


def same_again(tokenizer, ids: np.ndarray) -> float:
    """The share of tokens unchanged by decoding and encoding; 1.0 if they cannot be compared."""
    if tokenizer.name == "bytes" or (ids == unknown_id(tokenizer)).mean() > 0.01:
        return 1.0
    same = total = 0
    for start in np.linspace(0, max(len(ids) - 512, 0), 16).astype(int):
        window = ids[start : start + 512]
        for document in split_documents(window, tokenizer.eot_id, *tokenizer.special.values()):
            total += len(document)
            with suppress(ValueError):  # a character that has no token
                again = tokenizer.encode(tokenizer.decode(document.tolist())).tolist()
                same += (Counter(document.tolist()) & Counter(again)).total()
    return same / max(total, 1)


def unknown_id(tokenizer) -> int | None:
    """The id of the unknown token, if the tokenizer has one."""
    if tokenizer.characters:  # an unknown character is an error
        return None
    model = tokenizer.to_dict()["model"]
    return model.get("unk_id", tokenizer.vocabulary.get(model.get("unk_token")))


def size_warnings(train: Split, val: Split, block_size: int, parameters: int) -> Iterator[str]:
    """Warns if there is too little text."""
    for name, split in (("train", train), ("val", val)):
        tokens = split.counts["tokens"]
        if tokens <= block_size:
            yield (
                f"the {name} split ({tokens:,} tokens) is shorter than a block of {block_size}: "
                "a larger --val_fraction, more text, or a smaller --block_size"
            )
    if block_size < val.counts["tokens"] < 64 * block_size:
        yield f"the val split has fewer than 64 blocks of {block_size}: its loss will be noisy"
    tokens = train.counts["tokens"]
    if tokens < parameters:
        yield (
            f"fewer training tokens ({tokens:,}) than parameters ({parameters:,}): "
            "the model will memorize the text; use a smaller model, more text, or dropout"
        )
    if train.counts.get("documents", 2) + val.counts.get("documents", 0) < 2:
        yield "all text is one document: are end-of-text tokens missing between documents?"


def vocabulary_warnings(counts: np.ndarray, tokenizer, train: Split) -> Iterator[str]:
    """Warns if the vocabulary does not suit the text; `counts` (V,) are those of its tokens."""
    used = (counts > 0).sum()
    if used < 0.1 * len(counts) and train.counts["tokens"] > 10 * len(counts):
        yield (
            f"only {used:,} of {len(counts):,} tokens of the vocabulary occur: "
            "a smaller vocabulary is faster"
        )
    unknown = unknown_id(tokenizer)
    if unknown is not None and counts[unknown] > 0.01 * counts.sum():
        yield (
            f"{counts[unknown] / counts.sum():.0%} of the tokens are "
            f"{tokenizer.decode([unknown])!r}: that text is lost; use --tokenizer bytes, "
            "or a tokenizer trained on such text"
        )


def text_warnings(train: Split, val: Split) -> Iterator[str]:
    """Warns of binary files, repetitions and leaks."""
    binary = max(
        share(split.documents, lambda text: len(BINARY.findall(text))) for split in (train, val)
    )
    if binary > 0.01:
        yield (
            f"{binary:.0%} of the characters are control characters or were not UTF-8: "
            "are there binary files?"
        )
    counts = Counter(train.documents)
    repeated = share(train.documents, lambda text: len(text) * (1 - 1 / counts[text]))
    if repeated > 0.05:
        yield f"{repeated:.0%} of the training text is repeated: leave copies out"
    known = {letters(text) for text in counts}
    leaks = {text for text in val.documents if letters(text) in known}
    leaks = {text for text in leaks if len(letters(text)) >= SHORTEST}
    leaked = sum(text in leaks for text in val.documents)
    if leaked and leaked >= 0.001 * len(val.documents):
        part = share(val.documents, lambda text: len(text) if text in leaks else 0)
        yield (
            f"{leaked:,} of {len(val.documents):,} validation documents are also training "
            f"documents, {part:.0%} of the validation text: its loss will be too low; "
            "remove one of each pair"
        )


def share(texts: list[str], count) -> float:
    """The share of characters in texts that `count` counts."""
    return sum(map(count, texts)) / max(sum(map(len, texts)), 1)


def letters(text: str) -> str:
    """The letters and digits of a text, in lower case: case and line breaks do not matter."""
    return re.sub(r"[\W_]+", "", text).lower()
