"""`nanogpt check-data DIR`: what a data directory holds, and what will go wrong with it.

Counts are exact. The rest is measured on the first and last tokens of each split, so that a large
corpus takes seconds:

    wrong tokenizer   decoding and encoding again gives other tokens; a different alphabet of the
                      same size is not detected
    unknown, binary   more than 1 % of the tokens are unknown, or of the characters are not text
    repetitions       5 % of the training text repeats earlier documents
    leaks             one in a thousand validation documents has the letters and digits of a
                      training document, at least SHORTEST of them

Text without end-of-text tokens is compared paragraph by paragraph.
"""

import contextlib
import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from nanogpt.data.meta import largest_token, read_meta
from nanogpt.data.tokenizer import load_tokenizer
from nanogpt.data.tokens import TokenDataset, Tokens

SAMPLE = 1 << 23  # tokens of a split that are read
SHORTEST = 50  # letters and digits; shorter documents may be equal by chance
OWN = "put its tokenizer.json there, or prepare the data again"
BINARY = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]")  # control characters, and not UTF-8


@dataclass
class Text:
    """What is read of a split."""

    documents: list[str]  # or paragraphs, if the data has no end-of-text tokens
    longest: float  # share of the longest document in the tokens; 0 without end-of-text tokens
    binary: float  # share of the characters that are not text


def examine(
    directory: Path | str, block_size: int, parameters: int, sha256: bool = False, say=print
) -> list[str]:
    """Prints a report on a data directory; returns the warnings in it.

    `block_size` and `parameters` are those of the model to be trained; `sha256` also verifies
    checksums. Raises ValueError if the files do not match meta.json or tokenizer.json.
    """
    meta = read_meta(directory)
    smallest = meta["chat"]["block"] if "chat" in meta else 1
    splits = {split: TokenDataset(directory, split, smallest).tokens for split in ("train", "val")}
    tokenizer = load_tokenizer(directory)
    require_own_tokenizer(directory, meta, tokenizer, splits)
    size = f"vocabulary {meta['vocab_size']:,}, {meta['dtype']}"
    say(f"{directory}: tokenizer {tokenizer.name}, {size}")
    say(f"source: {meta.get('source', 'not recorded')}")
    for split, tokens in splits.items():
        say(describe(split, meta["splits"][split], tokens))
        if sha256:
            say(f"       {check_sha256(split, meta['splits'][split], tokens)}")
    train_ids, val_ids = sample(splits["train"]), sample(splits["val"])
    counts = np.bincount(train_ids, minlength=meta["vocab_size"])
    say(frequencies(counts[: tokenizer.vocab_size], tokenizer))
    train, val = read_text(train_ids, tokenizer), read_text(val_ids, tokenizer)
    repeated = repeated_share(train)
    leaked, leaked_share = leaks(train, val)
    say(
        f"repetition: {repeated:.1%} of the training text occurs twice, "
        f"{leaked_share:.1%} of the validation text is in it"
    )
    say("windows:")
    rng = np.random.default_rng(0)
    for start in rng.integers(max(len(splits["train"]) - 64, 1), size=3).tolist():
        text = tokenizer.decode(splits["train"][start : start + 64].tolist())
        say(f"  {start:>14,}  {text[:90]!r}")
    warnings = other_tokenizer(tokenizer, train_ids)
    if not warnings:  # with the wrong tokenizer the text means nothing
        warnings += sizes(meta, block_size, parameters)
        warnings += tokens_used(meta, tokenizer, counts)
        warnings += texts(meta, train, val, repeated, leaked, leaked_share)
    for warning in warnings:
        say(f"warning: {warning}")
    if not warnings:
        say("no warnings")
    return warnings


def require_own_tokenizer(
    directory: Path | str, meta: dict, tokenizer, splits: dict[str, Tokens]
) -> None:
    """Raises ValueError if a token is not in tokenizer.json."""
    if tokenizer.vocab_size >= meta["vocab_size"]:
        return
    largest = max(largest_token(tokens.paths, tokens.dtype) for tokens in splits.values())
    if largest >= tokenizer.vocab_size:
        raise ValueError(
            f"{directory} has token {largest}, but its tokenizer.json has {tokenizer.vocab_size} "
            f"tokens: another tokenizer made these tokens; {OWN}"
        )


def describe(split: str, counts: dict, tokens: Tokens) -> str:
    per_token = counts["bytes"] / max(counts["tokens"], 1)
    files = f" in {len(tokens.paths)} files" if len(tokens.paths) > 1 else ""
    documents = f", {counts['documents']:,} documents" if "documents" in counts else ""
    return (
        f"{split:>5}: {counts['tokens']:,} tokens{files}, {counts['bytes']:,} bytes, "
        f"{per_token:.2f} bytes per token{documents}"
    )


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


def sample(tokens: Tokens) -> np.ndarray:
    """The first and the last tokens of a split, or all of them, int64."""
    if len(tokens) <= SAMPLE:
        return tokens[:].astype(np.int64)
    return np.concatenate([tokens[: SAMPLE // 2], tokens[-SAMPLE // 2 :]]).astype(np.int64)


def frequencies(counts: np.ndarray, tokenizer) -> str:
    """The most frequent tokens, and how many tokens occur how often."""
    total = max(counts.sum(), 1)
    top = [f"{tokenizer.decode([int(i)])!r} {counts[i] / total:.1%}" for i in np.argsort(-counts)]
    lines = [f"most frequent: {', '.join(top[:8])}"]
    lines.append(f"{'times':>17}  tokens of the vocabulary that occur so often")
    for low, high in pairwise([0, 1, *(10**k for k in range(1, 20))]):
        n = int(((counts >= low) & (counts < high)).sum())
        if n:
            bar = "#" * max(1, round(40 * n / len(counts)))
            label = "never" if high == 1 else f"{low:,} to {high - 1:,}"
            lines.append(f"{label:>17}  {n:>7,} {bar}")
    return "\n".join(lines)


def unknown_id(tokenizer) -> int | None:
    """The id of the unknown token, if the tokenizer has one."""
    if tokenizer.characters:  # an unknown character is an error
        return None
    model = tokenizer.to_dict()["model"]
    if model.get("unk_id") is not None:
        return model["unk_id"]
    return tokenizer.vocabulary.get(model.get("unk_token"))


def split_documents(ids: np.ndarray, *ends: int | None) -> list[np.ndarray]:
    """The documents in tokens (N,), which the tokens `ends` end; without ends, a single one."""
    places = np.flatnonzero(np.isin(ids, [i for i in ends if i is not None]))
    parts = [ids[start + 1 : end] for start, end in pairwise([-1, *places, len(ids)])]
    return [part for part in parts if len(part)]


def read_text(ids: np.ndarray, tokenizer) -> Text:
    """The documents in tokens (N,)."""
    parts = split_documents(ids, tokenizer.eot_id)
    documents = [tokenizer.decode(part.tolist()) for part in parts]
    characters = sum(len(text) for text in documents)
    binary = sum(len(BINARY.findall(text)) for text in documents) / max(characters, 1)
    if tokenizer.eot_id is not None:
        longest = max((len(part) for part in parts), default=0) / max(len(ids), 1)
        return Text(documents, longest, binary)
    (text,) = documents or [""]
    paragraphs = text.split("\n\n")
    if len(paragraphs) == 1:
        paragraphs = text.splitlines()
    return Text(paragraphs, 0.0, binary)


def repeated_share(text: Text) -> float:
    """The share of the characters that are in documents equal to an earlier one."""
    seen, repeated, total = set(), 0, 0
    for document in text.documents:
        total += len(document)
        repeated += len(document) if document in seen else 0
        seen.add(document)
    return repeated / max(total, 1)


def leaks(train: Text, val: Text) -> tuple[int, float]:
    """Validation documents that are also training documents: their number and share of the text."""
    known = {letters(document) for document in train.documents}
    found = [d for d in val.documents if len(letters(d)) >= SHORTEST and letters(d) in known]
    total = sum(len(document) for document in val.documents)
    return len(found), sum(len(document) for document in found) / max(total, 1)


def letters(document: str) -> str:
    """The letters and digits of a document, in lower case: case and line breaks do not matter."""
    return re.sub(r"[\W_]+", "", document).lower()


def other_tokenizer(tokenizer, ids: np.ndarray) -> list[str]:
    """Warns if another tokenizer seems to have made the tokens."""
    same = same_again(tokenizer, ids)
    if same >= 0.97:  # 0.96 between encodings trained on parts of one text
        return []
    return [
        f"only {same:.0%} of the tokens are the same after decoding and encoding again: "
        f"another tokenizer made these tokens; {OWN}"
    ]


def same_again(tokenizer, ids: np.ndarray) -> float:
    """The share of tokens unchanged by decoding and encoding; 1.0 if that means nothing."""
    if tokenizer.name == "bytes" or (ids == unknown_id(tokenizer)).mean() > 0.01:
        return 1.0
    same = total = 0
    for start in np.linspace(0, max(len(ids) - 512, 0), 16).astype(int):
        window = ids[start : start + 512]
        for document in split_documents(window, tokenizer.eot_id, *tokenizer.special.values()):
            with contextlib.suppress(ValueError):  # a character that has no token
                again = tokenizer.encode(tokenizer.decode(document.tolist())).tolist()
                same += (Counter(document.tolist()) & Counter(again)).total()
            total += len(document)
    return same / max(total, 1)


def sizes(meta: dict, block_size: int, parameters: int) -> list[str]:
    """Warns if there is too little text."""
    train, val = meta["splits"]["train"], meta["splits"]["val"]
    found = []
    if min(train["tokens"], val["tokens"]) <= block_size:
        split = "val" if val["tokens"] <= block_size else "train"
        found.append(
            f"the {split} split ({meta['splits'][split]['tokens']:,} tokens) is shorter than a "
            f"block of {block_size}: a larger --val_fraction, more text, or a smaller --block_size"
        )
    if block_size < val["tokens"] < 64 * block_size:
        found.append(
            f"the validation split has fewer than 64 blocks of {block_size}: its loss will be noisy"
        )
    if train["tokens"] < parameters:
        found.append(
            f"fewer training tokens ({train['tokens']:,}) than parameters ({parameters:,}): "
            "the model will memorize the text; use a smaller model, more text, or dropout"
        )
    if train.get("documents", 2) + val.get("documents", 0) < 2:
        found.append(
            "all text is one document, so its end is the validation text instead of other documents"
        )
    return found


def tokens_used(meta: dict, tokenizer, counts: np.ndarray) -> list[str]:
    """Warns if the vocabulary does not suit the text."""
    found = []
    used = int((counts > 0).sum())
    if used < 0.1 * len(counts) and meta["splits"]["train"]["tokens"] > 10 * len(counts):
        found.append(
            f"only {used:,} of {len(counts):,} tokens of the vocabulary occur: "
            "a smaller vocabulary is faster"
        )
    unknown = unknown_id(tokenizer)
    if unknown is not None and counts[unknown] > 0.01 * counts.sum():
        found.append(
            f"{counts[unknown] / counts.sum():.0%} of the tokens are "
            f"{tokenizer.decode([unknown])!r}: that text is lost; use --tokenizer bytes, "
            "or a tokenizer trained on such text"
        )
    return found


def texts(
    meta: dict, train: Text, val: Text, repeated: float, leaked: int, leaked_share: float
) -> list[str]:
    """Warns of binary files, missing end-of-text tokens, repetitions and leaks."""
    found = []
    binary = max(train.binary, val.binary)
    if binary > 0.01:
        found.append(
            f"{binary:.0%} of the characters are control characters or were not UTF-8: "
            "are there binary files?"
        )
    if train.longest > 0.5 and meta["splits"]["train"].get("documents", 2) > 1:
        found.append(
            f"a single document is {train.longest:.0%} of the text: "
            "are end-of-text tokens missing between documents?"
        )
    if repeated > 0.05:
        found.append(f"{repeated:.0%} of the training text is repeated: try --dedup")
    if leaked and leaked >= 0.001 * len(val.documents):
        found.append(
            f"{leaked:,} of {len(val.documents):,} validation documents are also training "
            f"documents, {leaked_share:.0%} of the validation text: its loss will be too low; "
            "remove one of each pair"
        )
    return found
