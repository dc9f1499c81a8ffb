"""`nanogpt check-data DIR`: the contents of a data directory, and warnings.

The text is checked in the first and last tokens of each split, so that a large corpus takes
seconds. Text without end-of-text tokens is compared paragraph by paragraph.
"""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from nanogpt.data.meta import SPLITS
from nanogpt.data.tokens import TokenDataset
from nanogpt.text.directories import load_meta
from nanogpt.text.tokenizer import load_tokenizer

SAMPLE = 1 << 23  # tokens of a split that are read
SHORTEST = 50  # letters and digits; shorter documents may be equal by chance
BINARY = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]")  # control characters, and not UTF-8


def examine(directory: Path | str, block_size: int, parameters: int, say=print) -> list[str]:
    """Prints a report on a data directory; returns the warnings in it.

    `block_size` and `parameters` are those of the model to be trained. Raises ValueError if the
    files do not match meta.json or tokenizer.json.
    """
    meta, tokenizer = load_meta(directory), load_tokenizer(directory)
    say(f"{directory}: tokenizer {tokenizer.name}, vocabulary {meta['vocab_size']:,}")
    say(f"source: {meta.get('source', 'not recorded')}")
    block = meta["chat"]["block"] if "chat" in meta else 1
    splits = {}
    for name in SPLITS:
        counts = meta["splits"][name]
        tokens = TokenDataset(directory, name, block, meta=meta).tokens
        if len(tokens) > SAMPLE:
            tokens = np.concatenate([tokens[: SAMPLE // 2], tokens[-SAMPLE // 2 :]])
        splits[name] = tokens[:].astype(np.int64)
        ended = counts.get("documents")
        documents = f", {ended:,} documents" if ended else ""
        say(f"{name:>5}: {counts['tokens']:,} tokens, {counts['bytes']:,} bytes{documents}")
    ids = splits["train"]
    uses = np.bincount(ids, minlength=meta["vocab_size"])
    top = [f"{tokenizer.decode([i])!r} {uses[i] / len(ids):.1%}" for i in np.argsort(-uses)[:8]]
    say(f"{(uses > 0).sum():,} of {len(uses):,} tokens occur; most often {', '.join(top)}")
    for start in np.random.default_rng(0).integers(max(len(ids) - 64, 1), size=3):
        say(f"  {tokenizer.decode(ids[start : start + 64].tolist())[:90]!r}")
    # without empty ones: blocks of conversations are padded with end-of-text tokens
    train, val = (list(filter(None, split_documents(splits[name], tokenizer))) for name in SPLITS)
    warnings = list(find_warnings(train, val, meta["splits"], block_size, parameters))
    for line in warnings:
        say(f"warning: {line}")
    if not warnings:
        say("no warnings")
    return warnings


def split_documents(ids: np.ndarray, tokenizer) -> list[str]:
    """The texts in tokens (N,), or paragraphs if no token ends a text."""
    if tokenizer.eot_id not in ids:
        text = tokenizer.decode(ids.tolist())
        return text.split("\n\n" if "\n\n" in text else "\n")
    ends = [-1, *np.flatnonzero(ids == tokenizer.eot_id), len(ids)]
    return [tokenizer.decode(ids[start + 1 : end].tolist()) for start, end in pairwise(ends)]


def find_warnings(
    train: list[str], val: list[str], splits: dict, block_size: int, parameters: int
) -> Iterator[str]:
    """Warns of too little text, binary files, repetitions and leaks."""
    if splits["val"]["tokens"] < 64 * block_size:
        yield f"the val split has fewer than 64 blocks of {block_size}: its loss will be noisy"
    if (tokens := splits["train"]["tokens"]) < parameters:
        yield (
            f"{tokens:,} training tokens are fewer than the model's {parameters:,} parameters: it "
            "will memorize them; use a smaller model (recipes/own_text.py does) or more text"
        )
    binary = max(share(texts, lambda text: len(BINARY.findall(text))) for texts in (train, val))
    if binary > 0.01:
        yield f"{binary:.0%} of the characters are control characters or were not UTF-8"
    counts = Counter(train)
    repeated = share(train, lambda text: len(text) * (1 - 1 / counts[text]))
    if repeated > 0.05:
        yield f"{repeated:.0%} of the training text is repeated: leave copies out"
    known = {letters(text) for text in counts}
    leaks = [text for text in val if len(letters(text)) >= SHORTEST and letters(text) in known]
    if len(leaks) > 0.001 * len(val):
        yield (
            f"{len(leaks):,} of {len(val):,} validation documents (or paragraphs of a single one) "
            "are also in the training text: the loss will be too low; remove one of each pair"
        )


def share(texts: list[str], count) -> float:
    """The share of characters in texts that `count` counts."""
    return sum(map(count, texts)) / max(sum(map(len, texts)), 1)


def letters(text: str) -> str:
    """The letters and digits of a text, in lower case: case and line breaks do not matter."""
    return re.sub(r"[\W_]+", "", text).lower()
