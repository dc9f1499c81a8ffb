"""`nanogpt check-data DIR`: what a data directory holds, and what about it will go wrong in training.

Counts are exact. Frequencies, repetitions and document lengths come from the first and the last tokens of each split,
so that a large corpus takes seconds. Repetitions are found whatever their place: of all passages of 32 tokens in a row
those are compared whose hash is divisible by 16 (winnowing, Schleimer et al. 2003).
"""

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np

from nanogpt.data.tokenizer import load_tokenizer
from nanogpt.data.tokens import TokenDataset, Tokens, mix, read_meta

SAMPLE = 1 << 24  # tokens of a split that are looked at
PASSAGE = 32  # tokens
KEEP = 16  # a passage in so many is compared


def examine(directory: Path | str, block_size: int, parameters: int, sha256: bool = False, say=print) -> list[str]:
    """Prints a report on a data directory; returns the warnings in it.

    `block_size` and `parameters` are those of the model to be trained. Raises ValueError where the files do not fit
    meta.json or the vocabulary, and with `sha256` where they are not what was written.
    """
    meta = read_meta(directory)
    splits = {split: TokenDataset(directory, split, 1).tokens for split in ("train", "val")}
    words = load_tokenizer(directory)
    say(f"{directory}: tokenizer {words.name}, vocabulary {meta['vocab_size']:,}, {meta['dtype']}")
    say(f"source: {meta.get('source', 'not recorded')}")
    for split, tokens in splits.items():
        say(describe(split, meta["splits"][split], tokens))
        if sha256:
            say(f"       {check_sha256(split, meta['splits'][split], tokens)}")
    looked_at = {split: sample(tokens) for split, tokens in splits.items()}
    counts = np.bincount(looked_at["train"], minlength=meta["vocab_size"])
    say(frequencies(counts, words))
    hashes = {split: passages(ids) for split, ids in looked_at.items()}
    repeated = 1 - len(np.unique(hashes["train"])) / max(len(hashes["train"]), 1)
    shared = np.isin(hashes["val"], hashes["train"]).mean() if len(hashes["val"]) else 0.0
    say(f"repetition: {repeated:.1%} of the training text occurs twice, {shared:.1%} of the validation text is in it")
    longest = longest_document(looked_at["train"], words.eot_id)
    say("windows:")
    chance = np.random.default_rng(0)
    for start in chance.integers(max(len(splits["train"]) - 64, 1), size=3).tolist():
        text = words.decode(splits["train"][start : start + 64].tolist())
        say(f"  {start:>14,}  {text[:90]!r}")
    warnings = find_warnings(meta, counts, repeated, shared, longest, block_size, parameters)
    for warning in warnings:
        say(f"warning: {warning}")
    if not warnings:
        say("nothing to warn of")
    return warnings


def describe(split: str, counts: dict, tokens: Tokens) -> str:
    files = f" in {len(tokens.paths)} files" if len(tokens.paths) > 1 else ""
    documents = f", {counts['documents']:,} documents" if "documents" in counts else ""
    return (
        f"{split:>5}: {counts['tokens']:,} tokens{files}, {counts['bytes']:,} bytes, "
        f"{counts['bytes'] / max(counts['tokens'], 1):.2f} bytes per token{documents}"
    )


def check_sha256(split: str, counts: dict, tokens: Tokens) -> str:
    """Compares the files with the SHA-256 that was recorded when they were written. Raises ValueError."""
    digest = hashlib.sha256()
    for path in tokens.paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    if "sha256" not in counts:
        return f"SHA-256 {digest.hexdigest()} (none was recorded)"
    if digest.hexdigest() != counts["sha256"]:
        raise ValueError(
            f"{tokens.paths[0].parent}: the {split} split was changed: its SHA-256 is {digest.hexdigest()[:16]}…, "
            f"not {counts['sha256'][:16]}…; prepare the data again"
        )
    return f"SHA-256 {digest.hexdigest()}, as written"


def sample(tokens: Tokens) -> np.ndarray:
    """The first and the last tokens of a split, or all of them, int64."""
    if len(tokens) <= SAMPLE:
        return tokens[:].astype(np.int64)
    return np.concatenate([tokens[: SAMPLE // 2], tokens[-SAMPLE // 2 :]]).astype(np.int64)


def frequencies(counts: np.ndarray, words) -> str:
    """The most frequent tokens, and how many tokens occur how often."""
    total = max(counts.sum(), 1)
    top = ", ".join(f"{words.decode([int(i)])!r} {counts[i] / total:.1%}" for i in np.argsort(-counts)[:8])
    lines = [f"most frequent: {top}", f"{'times':>17}  tokens of the vocabulary that occur so often"]
    edges = [0, 1, *(10**k for k in range(1, 20))]
    for low, high in pairwise(edges):
        n = int(((counts >= low) & (counts < high)).sum())
        if n:
            bar = "#" * max(1, round(40 * n / len(counts)))
            label = "never" if high == 1 else f"{low:,} to {high - 1:,}"
            lines.append(f"{label:>17}  {n:>7,} {bar}")
    return "\n".join(lines)


def passages(ids: np.ndarray) -> np.ndarray:
    """Hashes, uint64, of those passages of PASSAGE tokens that are compared."""
    n = max(len(ids) - PASSAGE + 1, 0)
    found = []
    for start in range(0, n, 1 << 20):
        stop = min(start + (1 << 20), n)
        rolling = np.zeros(stop - start, np.uint64)
        for j in range(PASSAGE):
            rolling = rolling * np.uint64(0x9E3779B97F4A7C15) + ids[start + j : stop + j].astype(np.uint64)
        hashes = mix(rolling)
        found.append(hashes[hashes % np.uint64(KEEP) == 0])
    return np.concatenate([np.zeros(0, np.uint64), *found])


def longest_document(ids: np.ndarray, eot_id: int | None) -> float:
    """Share of the longest document among the tokens; 0 where there is no end-of-text token to tell by."""
    if eot_id is None or not len(ids):
        return 0.0
    ends = np.flatnonzero(ids == eot_id)
    return float(np.diff([-1, *ends, len(ids)]).max() / len(ids))


def find_warnings(
    meta: dict, counts: np.ndarray, repeated: float, shared: float, longest: float, block_size: int, parameters: int
) -> list[str]:
    """What is likely to go wrong, one line each with the way out."""
    train, val = meta["splits"]["train"], meta["splits"]["val"]
    found = []
    if min(train["tokens"], val["tokens"]) <= block_size:
        split = "val" if val["tokens"] <= block_size else "train"
        found.append(
            f"the {split} split ({meta['splits'][split]['tokens']:,} tokens) is shorter than a block of {block_size}: "
            "a larger --val_fraction, more text, or a smaller --block_size"
        )
    if val["tokens"] > block_size and val["tokens"] < 64 * block_size:
        found.append(f"the validation split has fewer than 64 blocks of {block_size}: its loss will be noisy")
    if train["tokens"] < parameters:
        found.append(
            f"fewer training tokens ({train['tokens']:,}) than parameters ({parameters:,}): "
            "the model will learn the text by heart; take a smaller one, more text, or dropout"
        )
    if train.get("documents", 2) + val.get("documents", 0) < 2:
        found.append("all text is one document: its passages, not documents, are divided into training and validation")
    elif longest > 0.5:
        found.append(
            f"a single document makes up {longest:.0%} of what was looked at: is something missing between texts?"
        )
    if repeated > 0.1:
        found.append(f"{repeated:.0%} of the training text is repeated: try --dedup")
    if shared > 0.05:
        found.append(f"{shared:.0%} of the validation text is in the training text: its loss will be too low")
    used = int((counts > 0).sum())
    if used < 0.1 * len(counts) and train["tokens"] > 10 * len(counts):
        found.append(f"only {used:,} of {len(counts):,} tokens of the vocabulary occur: a smaller one is faster")
    return found
