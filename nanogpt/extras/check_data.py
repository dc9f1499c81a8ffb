"""`nanogpt check-data DIR`: the contents of a data directory, and warnings about what will go wrong in training.

Counts are exact. The rest is measured on the first and last tokens of each split, so a large corpus takes seconds:

    wrong tokenizer        tokenizer.json and meta.json disagree on the vocabulary size, or decoding and encoding again
                           gives other tokens. Another alphabet of the same size is not detected.
    unknown and binary     more than 1 % of the tokens are unknown, or of the characters are not text
    repetitions and leaks  compares passages of PASSAGE letters and digits at any position. Case, space and punctuation
                           are ignored, and a changed word affects only the passages that contain it. One passage in
                           KEEP is compared, chosen by its hash (winnowing, Schleimer et al. 2003). A stretch of
                           validation text has leaked if a share of COPIED of its passages is in the training text.
                           Reported from 5 % on, or from 0.5 % without an end-of-text token.
    copies of documents    the same letters and digits, or a share of COPIED of the passages in two documents of
                           similar length; an excerpt is not a copy. Reported from 5 % of the training text on, and
                           from one in a thousand validation documents that are also training documents.
"""

import contextlib
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from nanogpt.data.tokenizer import HFTokenizer, load_tokenizer
from nanogpt.data.tokens import TokenDataset, Tokens, mix, read_meta

SAMPLE = 1 << 23  # tokens of a split that are read
PASSAGE = 32  # letters and digits; a power of two
KEEP = 16
STRETCH = 300  # letters and digits
COPIED = 0.4
ALIKE = 0.85  # shorter length over longer length of two near copies
SHORTEST = 50  # letters and digits; copies of shorter documents are ignored
OWN = "put its tokenizer.json there, or prepare the data again"
BINARY = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]"
)  # control characters, and what was not UTF-8


@dataclass
class Text:
    """The documents in a sample of a split."""

    letters: list[str]  # the letters and digits of each document, in lower case
    lengths: np.ndarray  # tokens of each document (N,)
    equal: np.ndarray  # whether an earlier document has the same tokens (N,)
    binary: float  # share of the characters
    hashes: np.ndarray  # of the passages that are compared (P,) uint64
    places: np.ndarray  # of their first letters, counted through all documents (P,)
    owners: np.ndarray  # the documents that they are in (P,)


def examine(
    directory: Path | str, block_size: int, parameters: int, sha256: bool = False, say=print
) -> list[str]:
    """Prints a report on a data directory; returns the warnings in it.

    `block_size` and `parameters` are those of the model to be trained; `sha256` also verifies checksums. Raises
    ValueError if the files do not match meta.json or tokenizer.json.
    """
    meta = read_meta(directory)
    smallest = meta["chat"]["block"] if "chat" in meta else 1
    splits = {split: TokenDataset(directory, split, smallest).tokens for split in ("train", "val")}
    tokenizer = load_tokenizer(directory)
    require_own_tokenizer(directory, meta, tokenizer, splits)
    say(
        f"{directory}: tokenizer {tokenizer.name}, vocabulary {meta['vocab_size']:,}, {meta['dtype']}"
    )
    say(f"source: {meta.get('source', 'not recorded')}")
    for split, tokens in splits.items():
        say(describe(split, meta["splits"][split], tokens))
        if sha256:
            say(f"       {check_sha256(split, meta['splits'][split], tokens)}")
    looked_at = {split: sample(tokens) for split, tokens in splits.items()}
    counts = np.bincount(looked_at["train"], minlength=meta["vocab_size"])
    say(frequencies(counts[: tokenizer.vocab_size], tokenizer))
    train, val = (read(ids, tokenizer) for ids in looked_at.values())
    repeated = 1 - len(np.unique(train.hashes)) / len(train.hashes) if len(train.hashes) else 0.0
    shared = np.isin(val.hashes, train.hashes)
    known = mean(shared)
    say(
        f"repetition: {repeated:.1%} of the training text occurs twice, {known:.1%} of the validation text is in it"
    )
    say("windows:")
    chance = np.random.default_rng(0)
    for start in chance.integers(max(len(splits["train"]) - 64, 1), size=3).tolist():
        text = tokenizer.decode(splits["train"][start : start + 64].tolist())
        say(f"  {start:>14,}  {text[:90]!r}")
    documents = meta["splits"]["train"].get("documents", 2)
    warnings = other_tokenizer(tokenizer, looked_at["train"])
    if not warnings:  # with the wrong tokenizer the text means nothing
        warnings = sizes(meta, block_size, parameters) + tokens_used(meta, tokenizer, counts)
        warnings += binary_text(train, val) + repetitions(train, repeated, tokenizer, documents)
        warnings += leaks(train, val, shared, tokenizer)
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
    largest = max(tokens.largest() for tokens in splits.values())
    if largest >= tokenizer.vocab_size:
        raise ValueError(
            f"{directory} has token {largest}, but its tokenizer.json has {tokenizer.vocab_size} tokens: "
            f"another tokenizer made these tokens; {OWN}"
        )


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


def frequencies(counts: np.ndarray, tokenizer) -> str:
    """The most frequent tokens, and how many tokens occur how often."""
    total = max(counts.sum(), 1)
    top = ", ".join(
        f"{tokenizer.decode([int(i)])!r} {counts[i] / total:.1%}" for i in np.argsort(-counts)[:8]
    )
    lines = [
        f"most frequent: {top}",
        f"{'times':>17}  tokens of the vocabulary that occur so often",
    ]
    edges = [0, 1, *(10**k for k in range(1, 20))]
    for low, high in pairwise(edges):
        n = int(((counts >= low) & (counts < high)).sum())
        if n:
            bar = "#" * max(1, round(40 * n / len(counts)))
            label = "never" if high == 1 else f"{low:,} to {high - 1:,}"
            lines.append(f"{label:>17}  {n:>7,} {bar}")
    return "\n".join(lines)


def unknown_id(tokenizer) -> int | None:
    """The id of the unknown token, if the tokenizer has one."""
    if not isinstance(tokenizer, HFTokenizer):
        return None
    model = json.loads(tokenizer.tokenizer.to_str())["model"]
    named = tokenizer.tokenizer.token_to_id(model.get("unk_token") or "")
    return named if model.get("unk_id") is None else model["unk_id"]


def split_documents(ids: np.ndarray, *special: int | None) -> list[np.ndarray]:
    """The documents in tokens (N,), without the tokens `special` that end them; a single one without such tokens."""
    ends = np.flatnonzero(np.isin(ids, [i for i in special if i is not None]))
    parts = [ids[start + 1 : end] for start, end in pairwise([-1, *ends, len(ids)])]
    return [part for part in parts if len(part)]


def read(ids: np.ndarray, tokenizer) -> Text:
    """The documents in tokens (N,)."""
    letters, lengths, equal, seen = [], [], [], set()
    characters = binary = 0
    for document in split_documents(ids, tokenizer.eot_id):
        text, digest = (
            tokenizer.decode(document.tolist()),
            hashlib.blake2b(document.tobytes(), digest_size=8).digest(),
        )
        characters, binary = characters + len(text), binary + len(BINARY.findall(text))
        letters.append(re.sub(r"[\W_]+", "", text).lower())
        lengths.append(len(document))
        equal.append(digest in seen)
        seen.add(digest)
    codes = np.frombuffer("".join(letters).encode("utf-32-le", "replace"), np.uint32)
    hashes, places = passages(codes)
    ends = np.cumsum([len(each) for each in letters], dtype=np.int64)
    owners = np.searchsorted(ends, places, "right")
    inside = places + PASSAGE <= ends[owners] if len(ends) else np.zeros(0, bool)
    found = hashes[inside], places[inside], owners[inside]
    return Text(
        letters, np.array(lengths), np.array(equal, bool), binary / max(characters, 1), *found
    )


def passages(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (uint64) and positions of the passages that are compared."""
    found = [(np.zeros(0, np.uint64), np.zeros(0, np.int64))]
    for start in range(0, max(len(codes) - PASSAGE + 1, 0), 1 << 16):
        rolling = codes[start : start + (1 << 16) + PASSAGE - 1].astype(np.uint64)
        length, factor = 1, 0x9E3779B97F4A7C15
        while length < PASSAGE:  # combines adjacent hashes into one of twice the length
            rolling = rolling[:-length] * np.uint64(factor) + rolling[length:]
            length, factor = 2 * length, factor * factor % 2**64
        hashes = mix(rolling)
        kept = np.flatnonzero(hashes % np.uint64(KEEP) == 0)
        found.append((hashes[kept], start + kept))
    hashes, places = zip(*found, strict=True)
    return np.concatenate(hashes), np.concatenate(places)


def copies(text: Text, others: Text) -> np.ndarray:
    """Which documents (N,) of `text` are also in `others`, exactly or nearly; of the same text, in earlier ones."""
    found, known = (
        np.zeros(len(text.letters), bool),
        set() if text is others else set(others.letters),
    )
    for i, letters in enumerate(text.letters):
        found[i] = len(letters) >= SHORTEST and letters in known
        if text is others:
            known.add(letters)
    if not len(others.hashes):
        return found
    hashes, first = np.unique(others.hashes, return_index=True)
    at = np.minimum(np.searchsorted(hashes, text.hashes), len(hashes) - 1)
    home = others.owners[first[at]]  # the first document with that passage
    hit = (hashes[at] == text.hashes) & ((home < text.owners) | (text is not others))
    pairs, common = np.unique(
        text.owners[hit] * len(others.letters) + home[hit], return_counts=True
    )
    document, other = np.divmod(pairs, len(others.letters))
    longer = np.maximum(
        np.bincount(text.owners)[document], np.bincount(others.owners)[other]
    )  # in passages
    lengths = [
        np.array(list(map(len, each.letters)))[n] for each, n in ((text, document), (others, other))
    ]
    alike = np.minimum(*lengths) >= ALIKE * np.maximum(*lengths)
    found[document[alike & (common >= COPIED * longer) & (longer >= 4)]] = True
    return found


def mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def other_tokenizer(tokenizer, ids: np.ndarray) -> list[str]:
    """Warns if another tokenizer seems to have made the tokens."""
    if (
        same := same_again(tokenizer, ids)
    ) >= 0.97:  # 0.96 between encodings trained on parts of one text
        return []
    found = f"only {same:.0%} of the tokens are the same after decoding and encoding again"
    return [f"{found}: another tokenizer made these tokens; {OWN}"]


def same_again(tokenizer, ids: np.ndarray) -> float:
    """The share of tokens unchanged by decoding and encoding again; 1.0 for bytes and many unknown tokens."""
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
            f"the {split} split ({meta['splits'][split]['tokens']:,} tokens) is shorter than a block of {block_size}: "
            "a larger --val_fraction, more text, or a smaller --block_size"
        )
    if val["tokens"] > block_size and val["tokens"] < 64 * block_size:
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
    found, used = [], int((counts > 0).sum())
    if used < 0.1 * len(counts) and meta["splits"]["train"]["tokens"] > 10 * len(counts):
        found.append(
            f"only {used:,} of {len(counts):,} tokens of the vocabulary occur: a smaller vocabulary is faster"
        )
    unknown = unknown_id(tokenizer)
    if unknown is not None and counts[unknown] > 0.01 * counts.sum():
        found.append(
            f"{counts[unknown] / counts.sum():.0%} of the tokens are {tokenizer.decode([unknown])!r}: "
            "that text is lost; use --tokenizer bytes, or a tokenizer trained on such text"
        )
    return found


def binary_text(train: Text, val: Text) -> list[str]:
    """Warns if the files contain more than text."""
    binary = max(train.binary, val.binary)
    if binary <= 0.01:
        return []
    return [
        f"{binary:.0%} of the characters are control characters or were not UTF-8: are there binary files?"
    ]


def repetitions(train: Text, repeated: float, tokenizer, documents: int) -> list[str]:
    """Warns if training text is repeated; `repeated` is the share of its passages that occur again."""
    found, total = [], max(train.lengths.sum(), 1)
    if tokenizer.eot_id is None:
        if repeated > 0.15:
            found.append(
                f"{repeated:.0%} of the training text is repeated: try --dedup if documents are repeated"
            )
        return found
    if documents > 1 and (longest := train.lengths.max() / total) > 0.5:
        found.append(
            f"a single document is {longest:.0%} of the text: are end-of-text tokens missing between documents?"
        )
    equal, near = (
        train.lengths[each].sum() / total
        for each in (train.equal, copies(train, train) & ~train.equal)
    )
    if equal > 0.05:
        found.append(f"{equal:.0%} of the training text is repeated: try --dedup")
    if near > 0.05:
        found.append(
            f"{near:.0%} of the training text are near copies of other documents, which --dedup keeps"
        )
    if repeated > equal + near + 0.15:
        found.append(
            f"{repeated:.0%} of the training text is repeated in other documents, which --dedup keeps"
        )
    return found


def leaks(train: Text, val: Text, shared: np.ndarray, tokenizer) -> list[str]:
    """Warns if validation text is also in the training text; `shared` (P,) marks the passages of `val` that are."""
    found, stretches = [], val.places // STRETCH
    passages_in = np.bincount(stretches)
    leaked = mean((np.bincount(stretches, shared) >= COPIED * passages_in)[passages_in >= 4])
    if leaked > (0.005 if tokenizer.eot_id is None else 0.05):
        found.append(
            f"{leaked:.0%} of the validation text is in the training text: its loss will be too low"
        )
    both = int(copies(val, train).sum())
    if tokenizer.eot_id is not None and both and both >= 0.001 * len(val.letters):
        found.append(
            f"{both:,} of {len(val.letters):,} validation documents are also training documents, exactly or "
            "nearly: remove one of each pair"
        )
    return found
