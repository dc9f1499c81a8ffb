"""Byte-level byte-pair encoding: tiktoken's encodings as parts of a tokenizer.json.

tokenizer.json spells tokens in GPT-2's alphabet, which has a printable character for each byte, and
stores the pairs that were merged. tiktoken stores only the results.
"""

from itertools import pairwise

# encodings by number of mergeable tokens: tokenizer.json does not store a name
TIKTOKEN_NAMES = {50256: "gpt2", 50280: "p50k_base", 100256: "cl100k_base", 199998: "o200k_base"}
# pre-tokenizers and the decoder as tokenizer.json has them
ISOLATED = {"behavior": "Isolated", "invert": False}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
BYTES = BYTE_LEVEL | {"use_regex": False}
GPT2_SPLIT = BYTE_LEVEL | {"use_regex": True}  # GPT-2's pattern is built in
DECODER = BYTE_LEVEL | {"add_prefix_space": True, "use_regex": True}
# GPT-2's pattern as tiktoken writes it
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def from_tiktoken(encoding) -> dict:
    """Model, pre-tokenizer and decoder of a tiktoken.Encoding, as in a tokenizer.json."""
    alphabet, ranks = byte_alphabet(), encoding._mergeable_ranks
    spelled = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    vocab = {spelled[token]: rank for token, rank in ranks.items()} | encoding._special_tokens
    pairs = [[spelled[a], spelled[b]] for a, b in merges(ranks)]
    model = {"type": "BPE", "vocab": vocab, "merges": pairs}
    pre_tokenizer = GPT2_SPLIT  # as published
    if encoding._pat_str != GPT2_PATTERN or len(ranks) not in TIKTOKEN_NAMES:
        # `tokenizers` takes a possessive {1,3}+ for a repetition
        pre_tokenizer = split_by(encoding._pat_str.replace("{1,3}+", "{1,3}"))
    return {"model": model, "pre_tokenizer": pre_tokenizer, "decoder": DECODER}


def split_by(pattern: str) -> dict:
    """A byte-level pre-tokenizer that splits by `pattern`."""
    split = {"type": "Split", "pattern": {"Regex": pattern}} | ISOLATED
    return {"type": "Sequence", "pretokenizers": [split, BYTES]}


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge that made each token, in order. tiktoken stores only the results."""
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


def split_pattern(parts: dict) -> str | None:
    """The split pattern of a byte-level tokenizer.json; None for others."""
    split = parts.get("pre_tokenizer") or {}
    if split == GPT2_SPLIT:
        return GPT2_PATTERN
    steps = split.get("pretokenizers") or [{}]
    return (steps[0].get("pattern") or {}).get("Regex") if steps[1:] == [BYTES] else None


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each of the 256 bytes, which spells byte-level tokens."""
    printable = [chr(b) for b in range(256) if b in range(33, 127) or (b > 160 and b != 173)]
    others = iter(range(256, 512))
    return [chr(b) if chr(b) in printable else chr(next(others)) for b in range(256)]
