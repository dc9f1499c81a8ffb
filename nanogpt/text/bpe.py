"""Byte-level byte-pair encoding: tiktoken's encodings as tokenizers of the library `tokenizers`.

A tokenizer.json spells tokens in GPT-2's alphabet, which has a printable character for each byte,
and stores the pairs that were merged. tiktoken stores only the results.
"""

from itertools import pairwise

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

# encodings by number of mergeable tokens: tokenizer.json does not store a name
TIKTOKEN_NAMES = {50256: "gpt2", 50280: "p50k_base", 100256: "cl100k_base", 199998: "o200k_base"}
UNSPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2_SPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's pattern is built in
# the same as tiktoken writes it
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def from_tiktoken(encoding) -> Tokenizer:
    """The tokenizer of a tiktoken.Encoding."""
    alphabet, ranks = byte_alphabet(), encoding._mergeable_ranks
    spelled = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    vocab = {spelled[token]: rank for token, rank in ranks.items()} | encoding._special_tokens
    tokenizer = byte_level(vocab, [(spelled[a], spelled[b]) for a, b in merges(ranks)])
    if encoding._pat_str == GPT2_PATTERN:
        tokenizer.pre_tokenizer = GPT2_SPLIT  # as published
    else:  # `tokenizers` takes a possessive {1,3}+ for a repetition
        pattern = Regex(encoding._pat_str.replace("{1,3}+", "{1,3}"))
        split = pre_tokenizers.Split(pattern, "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, UNSPLIT])
    tokenizer.add_special_tokens(list(encoding._special_tokens))
    return tokenizer


def byte_level(vocab: dict[str, int], pairs: list[tuple[str, str]]) -> Tokenizer:
    """Byte-pair encoding of text that is not split."""
    tokenizer = Tokenizer(models.BPE(vocab, pairs))
    tokenizer.pre_tokenizer = UNSPLIT
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge that made each token, in order."""
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


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each of the 256 bytes, which spells byte-level tokens."""
    printable = [chr(b) for b in range(256) if b in range(33, 127) or (b > 160 and b != 173)]
    others = iter(range(256, 512))
    return [chr(b) if chr(b) in printable else chr(next(others)) for b in range(256)]
