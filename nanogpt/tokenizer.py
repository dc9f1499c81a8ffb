"""Text to token ids and back, saved as `tokenizer.json` in the Hugging Face format, which `AutoTokenizer` reads too.

    >>> tokenizer = CharTokenizer.train("to be or not to be")
    >>> tokenizer.decode(tokenizer.encode("not"))
    'not'

A tokenizer is any object with `name`, `vocab_size`, `eot_id` (None if there is no end-of-text token), `encode(text)`,
`decode(ids)` and `save(directory)`; `load(directory)` below picks the class that wrote a `tokenizer.json`.
"""

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np

from nanogpt import untrusted

FILE = "tokenizer.json"
# Splitting at every character is what marks a WordLevel tokenizer as character level.
EVERY_CHARACTER = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}


class CharTokenizer:
    """One token a character; ids follow the order of the code points, as in nanoGPT's shakespeare_char."""

    name = "char"
    eot_id = None

    def __init__(self, characters: str):
        self.characters = characters
        self.vocab_size = len(characters)
        self._ids = np.full(max(map(ord, characters)) + 1, -1, dtype=np.int64)  # code point -> id
        self._ids[[ord(c) for c in characters]] = np.arange(self.vocab_size)

    @classmethod
    def train(cls, text: str) -> "CharTokenizer":
        if not text:
            raise ValueError("the text is empty: a character tokenizer needs at least one character")
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, one a character, int64. Raises ValueError naming a character that is not in the vocabulary."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        ids = np.where(points < len(self._ids), self._ids[np.minimum(points, len(self._ids) - 1)], -1)
        if (ids < 0).any():
            at = int(np.argmax(ids < 0))
            raise ValueError(
                f"character {text[at]!r} (position {at}) is not among the {self.vocab_size} that the model knows: "
                f"{show_characters(self.characters)}"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.characters[i] for i in ids)

    def token_bytes(self) -> list[bytes]:
        """The bytes of text that each id stands for."""
        return [c.encode("utf-8", "surrogatepass") for c in self.characters]

    def save(self, directory: Path | str) -> None:
        """Writes tokenizer.json into `directory`."""
        vocab = {character: i for i, character in enumerate(self.characters)}
        tokenizer = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": EVERY_CHARACTER,
            "post_processor": None,
            "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
        }
        Path(directory, FILE).write_text(json.dumps(tokenizer, ensure_ascii=False, indent=1), encoding="utf-8")

    @classmethod
    def from_json(cls, tokenizer: dict) -> "CharTokenizer":
        vocab = tokenizer["model"]["vocab"]
        return cls("".join(sorted(vocab, key=vocab.get)))


class BPETokenizer:
    """Byte-pair encoding by tiktoken; `BPETokenizer.gpt2()` is GPT-2's, with 50257 tokens."""

    def __init__(self, encoding):
        self.encoding = encoding
        self.name = encoding.name
        self.vocab_size = encoding.n_vocab
        self.eot_id = encoding.eot_token

    @classmethod
    def gpt2(cls) -> "BPETokenizer":
        """GPT-2's encoding. tiktoken downloads two files on first use, or reads them from $TIKTOKEN_CACHE_DIR."""
        import tiktoken

        try:
            return cls(tiktoken.get_encoding("gpt2"))
        except OSError as error:  # requests' errors are OSErrors
            raise ConnectionError(
                "GPT-2's tokenizer files could not be downloaded; fetch them once where there is a network, "
                f"then point TIKTOKEN_CACHE_DIR at that cache ({type(error).__name__})"
            ) from error

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int64. Special tokens written out in the text, such as <|endoftext|>, are plain text here."""
        return np.array(self.encoding.encode_ordinary(text), dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no whole UTF-8 character become U+FFFD."""
        return self.encoding.decode([int(i) for i in ids])

    def token_bytes(self) -> list[bytes]:
        """The bytes of text that each id stands for; a special token stands for none."""
        tokens = [b""] * self.vocab_size
        for token, i in self.encoding._mergeable_ranks.items():
            tokens[i] = token
        return tokens

    def save(self, directory: Path | str) -> None:
        """Writes tokenizer.json into `directory`; for GPT-2 that takes half a second and 1.8 MB."""
        to_unicode = byte_alphabet()
        ranks = self.encoding._mergeable_ranks
        spell = {token: "".join(to_unicode[b] for b in token) for token in ranks}
        special = [
            {"id": i, "content": s, "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False, "special": True}
            for s, i in self.encoding._special_tokens.items()
        ]
        tokenizer = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special,
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": self.encoding._pat_str}}
                    | {"behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                ],
            },
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "vocab": {spell[token]: rank for token, rank in ranks.items()},
                "merges": [[spell[a], spell[b]] for a, b in merges(ranks)],
            },
        }
        Path(directory, FILE).write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def from_json(cls, tokenizer: dict) -> "BPETokenizer":
        import tiktoken

        from_unicode = {character: byte for byte, character in enumerate(byte_alphabet())}
        vocab = tokenizer["model"]["vocab"]
        ranks = {bytes(from_unicode[c] for c in token): rank for token, rank in vocab.items()}
        special = {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
        pattern = tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        name = "gpt2" if len(vocab) == 50256 else "bpe"
        return cls(tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special))


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 bytes; the Hugging Face format spells tokens with them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)]


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge that made each token, in order: tiktoken keeps the results alone, the Hugging Face format the pairs."""
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


def show_characters(characters: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in characters[:200])


def is_nanogpts(directory: Path | str) -> bool:
    """Whether a data directory is as nanoGPT writes it: train.bin without tokenizer.json or meta.json."""
    has = {path.name for path in Path(directory).glob("*")}
    return "train.bin" in has and not has & {FILE, "meta.json"}


def load(directory: Path | str) -> CharTokenizer | BPETokenizer:
    """The tokenizer that `directory/tokenizer.json` describes. Raises ValueError if there is none, or it is another.

    In a data directory of nanoGPT's it is what nanoGPT takes it to be: meta.pkl's characters, or else GPT-2's BPE.
    """
    path = Path(directory, FILE)
    if is_nanogpts(directory):
        pickled = Path(directory, "meta.pkl")
        return CharTokenizer(untrusted.read_characters(pickled)) if pickled.exists() else BPETokenizer.gpt2()
    try:
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        if tokenizer["model"]["type"] == "WordLevel" and tokenizer["pre_tokenizer"] == EVERY_CHARACTER:
            return CharTokenizer.from_json(tokenizer)
        if tokenizer["model"]["type"] == "BPE" and tokenizer["decoder"]["type"] == "ByteLevel":
            return BPETokenizer.from_json(tokenizer)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: without it text cannot be turned into tokens") from None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): prepare the data again") from error
    raise ValueError(f"{path} holds a {tokenizer['model']['type']} tokenizer; known are character level and byte BPE")
