"""Reading and writing `tokenizer.json`, the Hugging Face format of a tokenizer.

Byte-level tokenizers spell their tokens in GPT-2's alphabet, which has a printable character for each byte.
"""

import hashlib
import json
from itertools import pairwise
from pathlib import Path

from nanogpt.data.files import is_count, read_json, write_atomic

FILE = "tokenizer.json"
# Splitting at every character is what marks a WordLevel tokenizer as character level.
EVERY_CHARACTER = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
BYTE_LEVEL_DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
# GPT-2's split pattern as tiktoken writes it (possessive, so faster). tokenizer.json has it built in, and some readers
# support only the built-in form.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
GPT2_SPLIT = BYTE_LEVEL | {"use_regex": True}


def write(directory: Path | str, model: dict, pre_tokenizer: dict, decoder: dict, special: dict[str, int]) -> None:
    """Writes a tokenizer.json with these parts."""
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(content, i) for content, i in special.items()],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
    with write_atomic(Path(directory, FILE)) as file:
        file.write(json.dumps(tokenizer, ensure_ascii=False).encode())


def added_token(content: str, i: int) -> dict:
    """The entry of a special token."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": i, "content": content} | flags


def read(directory: Path | str) -> dict:
    """The tokenizer.json of a directory. Raises ValueError if it is missing or damaged."""
    path = Path(directory, FILE)
    if not path.exists():
        raise ValueError(f"{path} is missing: text cannot be tokenized without it")
    try:
        tokenizer = read_json(path)
        vocab = vocabulary(tokenizer)
        if not tokenizer["model"]["vocab"]:
            raise ValueError("its vocabulary is empty")
        # each token takes several bytes of the file, so larger ids are wrong: no array is allocated for them
        wrong = next((item for item in vocab.items() if not is_count(item[1]) or item[1] >= path.stat().st_size), None)
        if wrong:
            raise ValueError(f"it gives {wrong[0][:40]!r} the id {str(wrong[1])[:40]}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): restore it") from None
    return tokenizer


def sha256(directory: Path | str) -> str:
    """Checksum of the tokenizer.json of a directory, which meta.json records beside tokens that it made."""
    return hashlib.sha256(Path(directory, FILE).read_bytes()).hexdigest()


def vocabulary(tokenizer: dict) -> dict[str, int]:
    """Token to id of a tokenizer.json, special tokens included."""
    vocab = tokenizer["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: pairs of token and score
        vocab = {token: i for i, (token, _) in enumerate(vocab)}
    return vocab | special_tokens(tokenizer)


def special_tokens(tokenizer: dict) -> dict[str, int]:
    return {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each of the 256 bytes, with which the Hugging Face format spells tokens."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)]


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge that made each token, in order: tiktoken stores only the results, the Hugging Face format the pairs."""
    pairs = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([b]) for b in token]
        while len(parts) > 2:  # merge the pair of lowest rank, among those older than this token
            candidates = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
            at = candidates.index(min(candidates))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            pairs.append((parts[0], parts[1]))
    return pairs


def byte_level_split(pattern: str) -> dict:
    """A byte-level pre-tokenizer that splits by `pattern`."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]}


def byte_level_pattern(tokenizer: dict) -> str | None:
    """The split pattern of a byte-level pre-tokenizer, in either form; None for any other pre-tokenizer."""
    found = tokenizer.get("pre_tokenizer") or {}
    if found == GPT2_SPLIT:
        return GPT2_PATTERN
    steps = found.get("pretokenizers", [])
    if len(steps) != 2 or steps[1] != BYTE_LEVEL or steps[0]["type"] != "Split" or steps[0]["behavior"] != "Isolated":
        return None
    return steps[0]["pattern"].get("Regex")
