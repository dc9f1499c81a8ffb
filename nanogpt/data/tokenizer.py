"""Text to token ids and back, saved as `tokenizer.json` in the Hugging Face format, which `AutoTokenizer` reads too.

    >>> tokenizer = CharTokenizer.train("to be or not to be")
    >>> tokenizer.decode(tokenizer.encode("not"))
    'not'

A tokenizer is any object with

    name, vocab_size       the largest id plus one; embeddings have at least as many rows
    eot_id                 the id of the end-of-text token after each document, or None
    special                the ids of special tokens by their names; only here, not needed in a class of your own
    encode(text)           ids, one-dimensional int64; special tokens spelled out in the text are plain text
    encode_batch(texts)    ids of each text, any integer dtype; called from several threads at once
    decode(ids)            the text; incomplete UTF-8 sequences and ids without a token become U+FFFD
    save(directory)        writes tokenizer.json, from which `load_tokenizer(directory)` makes the same tokenizer

Characters, bytes and tiktoken's encodings have their own, faster classes; `HFTokenizer` reads every other
tokenizer.json. A tokenizer of your own that saves this format needs no class for loading: data_prep/README.md has one.
"""

import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np

from nanogpt.data import pickles, tokenizer_json
from nanogpt.data.files import read_json, write_atomic
from nanogpt.data.remote import local
from nanogpt.data.special import without_special
from nanogpt.data.tokenizer_json import (
    BYTE_LEVEL,
    BYTE_LEVEL_DECODER,
    EVERY_CHARACTER,
    FILE,
    GPT2_PATTERN,
    GPT2_SPLIT,
    byte_alphabet,
    merges,
)
from nanogpt.run.errors import waiting

EOT = "<|endoftext|>"
START, END = "<|im_start|>", "<|im_end|>"  # of a message, see `nanogpt.chat`
# other tokenizers' names for end of text, used where no tokenizer_config.json gives one, in this order
EOT_NAMES = (EOT, "<|end_of_text|>", "</s>", "<eos>")
EOT_LETTERS = ("eos", "eot", "eod", "endoftext", "endofsentence", "endofdocument", "sep")  # of special tokens: [EOS]
OLDER_FILES = ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")  # of models without a tokenizer.json
# tiktoken's encodings by number of mergeable tokens, because the Hugging Face format does not store a name
TIKTOKEN_NAMES = {50256: "gpt2", 50280: "p50k_base", 100256: "cl100k_base", 199998: "o200k_base"}


def find_eot(special: dict[str, int], vocab: dict[str, int], given: str | None = None) -> int | None:
    """The id of the end-of-text token: the one that is `given`, or the first with one of the usual names, or None."""
    for token in (given, *EOT_NAMES):
        if token in vocab:
            return vocab[token]
    letters = {re.sub(r"[^a-z]", "", token.lower()): i for token, i in special.items()}
    return next((letters[name] for name in EOT_LETTERS if name in letters), None)


class CharTokenizer:
    """One token per character; ids in the order of code points, as in nanoGPT's shakespeare_char.

    With `chat`, the special tokens of conversations follow.
    """

    name = "char"
    eot_id = None

    def __init__(self, characters: str, chat: bool = False):
        self.characters = characters
        self.tokens = [*characters, *((START, END) if chat else ())]
        self.vocab_size = len(self.tokens)
        self.special = {token: self.tokens.index(token) for token in self.tokens[len(characters) :]}
        self._ids = np.full(max(map(ord, characters)) + 1, -1, dtype=np.int64)  # code point -> id
        self._ids[[ord(c) for c in characters]] = np.arange(len(characters))

    @classmethod
    def train(cls, text: str) -> "CharTokenizer":
        if not text:
            raise ValueError("the text is empty: a character tokenizer needs at least one character")
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int64. Raises ValueError naming a character that is not in the vocabulary."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        ids = np.where(points < len(self._ids), self._ids[np.minimum(points, len(self._ids) - 1)], -1)
        if (ids < 0).any():
            at = int(np.argmax(ids < 0))
            raise ValueError(
                f"character {text[at]!r} (position {at}) is not among the {len(self.characters)} that the model knows: "
                f"{self.characters[:200]!r}"
            )
        return ids

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.tokens[i] if i < self.vocab_size else "\ufffd" for i in ids)

    def token_bytes(self) -> list[bytes]:
        """The bytes of each token."""
        return [token.encode("utf-8", "surrogatepass") for token in self.tokens]

    def save(self, directory: Path | str) -> None:
        """Writes tokenizer.json into `directory`."""
        vocab = {character: i for i, character in enumerate(self.characters)}
        model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
        tokenizer_json.write(directory, model, EVERY_CHARACTER, {"type": "Fuse"}, self.special)

    @classmethod
    def from_json(cls, tokenizer: dict) -> "CharTokenizer":
        vocab = tokenizer["model"]["vocab"]
        return cls("".join(sorted(vocab, key=vocab.get)), chat=bool(tokenizer.get("added_tokens")))

    @staticmethod
    def reads(tokenizer: dict) -> bool:
        """Whether a tokenizer.json has the form that `save` writes: single characters with ids from 0 on."""
        if tokenizer["model"]["type"] != "WordLevel" or tokenizer.get("pre_tokenizer") != EVERY_CHARACTER:
            return False
        vocab, special = tokenizer["model"]["vocab"], tokenizer_json.special_tokens(tokenizer)
        n = len(vocab)
        plain = not tokenizer.get("normalizer") and special in ({}, {START: n, END: n + 1})
        return plain and sorted(vocab.values()) == list(range(n)) and all(len(token) == 1 for token in vocab)


class ByteTokenizer:
    """One token per UTF-8 byte (id = byte) and an end-of-text token: any language, no training."""

    name = "bytes"
    vocab_size = 257
    eot_id = 256
    special: ClassVar = {EOT: eot_id}

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int64; lone surrogates, which UTF-8 cannot encode, become question marks."""
        return np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8).astype(np.int64)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; incomplete UTF-8 sequences become U+FFFD."""
        spelled = (EOT.encode() if i == self.eot_id else bytes([i if i < 256 else 255]) for i in ids)
        return b"".join(spelled).decode("utf-8", "replace")

    def save(self, directory: Path | str) -> None:
        """Writes tokenizer.json into `directory`, as byte-pair encoding without merges."""
        model = {"type": "BPE", "vocab": {c: byte for byte, c in enumerate(byte_alphabet())}, "merges": []}
        tokenizer_json.write(directory, model, BYTE_LEVEL, BYTE_LEVEL_DECODER, self.special)

    @staticmethod
    def reads(tokenizer: dict) -> bool:
        """Whether a tokenizer.json has the form that `save` writes: no merges, each byte's id is the byte."""
        model, special = tokenizer["model"], tokenizer_json.special_tokens(tokenizer)
        plain = model["type"] == "BPE" and not model["merges"] and not tokenizer.get("normalizer")
        if not plain or tokenizer.get("pre_tokenizer") != BYTE_LEVEL or special != ByteTokenizer.special:
            return False
        bytes_alone = {token: i for token, i in model["vocab"].items() if token != EOT}
        return bytes_alone == {c: byte for byte, c in enumerate(byte_alphabet())}


class BPETokenizer:
    """Byte-pair encoding by tiktoken; `BPETokenizer.gpt2()` is GPT-2's, with 50257 tokens."""

    def __init__(self, encoding, eot: str | None = None):
        self.encoding = encoding
        self.name = encoding.name
        self.vocab_size = encoding.n_vocab
        self.special = encoding._special_tokens
        self.eot_id = find_eot(self.special, self.special, eot)

    @classmethod
    def gpt2(cls) -> "BPETokenizer":
        return cls.get("gpt2")

    @classmethod
    def get(cls, name: str) -> "BPETokenizer":
        """The tiktoken encoding `name`. Its files are downloaded on first use, or read from $TIKTOKEN_CACHE_DIR."""
        import tiktoken

        try:
            with waiting(f"reading the encoding {name}, which is downloaded once"):
                return cls(tiktoken.get_encoding(name))
        except OSError as error:  # requests' errors are OSErrors
            raise ConnectionError(
                f"the tokenizer files of {name} could not be downloaded ({type(error).__name__}): download them once "
                "where there is a network, then set TIKTOKEN_CACHE_DIR to that cache"
            ) from error

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int64. Special tokens spelled out in the text, such as <|endoftext|>, are plain text."""
        return np.array(self.encoding.encode_ordinary(text), dtype=np.int64)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """As `encode`, but uint32, and without holding the GIL."""
        return [self.encoding.encode_to_numpy(text, disallowed_special=()) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; incomplete UTF-8 sequences become U+FFFD."""
        ids = [int(i) for i in ids]
        try:
            return self.encoding.decode(ids)
        except KeyError:  # an id without a token, from a padding row of the model
            return b"".join(map(self.one_token, ids)).decode("utf-8", "replace")

    def one_token(self, i: int) -> bytes:
        """The bytes of one id; an invalid byte for an id without a token."""
        try:
            return self.encoding.decode_single_token_bytes(i)
        except KeyError:
            return b"\xff"

    def token_bytes(self) -> list[bytes]:
        """The bytes of each token; none for special tokens."""
        tokens = [b""] * self.vocab_size
        for token, i in self.encoding._mergeable_ranks.items():
            tokens[i] = token
        return tokens

    def save(self, directory: Path | str) -> None:
        """Writes tokenizer.json into `directory` (half a second and 1.8 MB for GPT-2)."""
        to_unicode = byte_alphabet()
        ranks = self.encoding._mergeable_ranks
        spell = {token: "".join(to_unicode[b] for b in token) for token in ranks}
        vocab = {spell[token]: rank for token, rank in ranks.items()}
        pairs = [[spell[a], spell[b]] for a, b in merges(ranks)]
        pre_tokenizer = tokenizer_json.byte_level_split(self.encoding._pat_str)
        if self.encoding._pat_str == GPT2_PATTERN and len(vocab) in TIKTOKEN_NAMES:
            pre_tokenizer = GPT2_SPLIT  # as published
        model = {"type": "BPE", "vocab": vocab, "merges": pairs}
        tokenizer_json.write(directory, model, pre_tokenizer, BYTE_LEVEL_DECODER, self.special)

    @classmethod
    def from_json(cls, tokenizer: dict, eot: str | None = None) -> "BPETokenizer":
        import tiktoken

        from_unicode = {character: byte for byte, character in enumerate(byte_alphabet())}
        vocab = tokenizer["model"]["vocab"]
        ranks = {bytes(from_unicode[c] for c in token): rank for token, rank in vocab.items()}
        name, special = TIKTOKEN_NAMES.get(len(vocab), "bpe"), tokenizer_json.special_tokens(tokenizer)
        pattern = tokenizer_json.byte_level_pattern(tokenizer)
        return cls(tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special), eot)

    @staticmethod
    def reads(tokenizer: dict) -> bool:
        """Whether tiktoken can stand in for a tokenizer.json: only a pattern, bytes, and merges in id order."""
        model, vocab = tokenizer["model"], tokenizer["model"]["vocab"]
        if model["type"] != "BPE" or (tokenizer.get("decoder") or {}).get("type") != "ByteLevel":
            return False
        if tokenizer.get("normalizer") or any(
            model.get(option) for option in ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
        ):
            return False
        if not tokenizer_json.byte_level_pattern(tokenizer):
            return False
        # others with GPT-2's pattern were trained by `tokenizers`, whose Unicode tables may differ from tiktoken's
        if tokenizer["pre_tokenizer"] == GPT2_SPLIT and len(vocab) not in TIKTOKEN_NAMES:
            return False
        joined = [m.replace(" ", "") if isinstance(m, str) else "".join(m) for m in model["merges"]]
        ids, alphabet = [vocab[token] for token in joined], set(byte_alphabet())
        complete = alphabet <= vocab.keys() and alphabet.isdisjoint(joined) and len(set(vocab.values())) == len(vocab)
        return complete and len(ids) == len(vocab) - 256 and all(a < b for a, b in pairwise(ids))


class HFTokenizer:
    """Any tokenizer of the library `tokenizers`."""

    def __init__(self, tokenizer, name: str = "hf", eot: str | None = None):
        """`tokenizer` is a tokenizers.Tokenizer; `eot` its end-of-text token, if `find_eot` cannot know it."""
        if getattr(tokenizer.model, "dropout", None):  # of BPE: the same text would get random tokens
            tokenizer.model.dropout = None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # as plain text
        self.tokenizer, self.published, self.name = without_special(tokenizer), tokenizer, name
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        if not vocab:
            raise ValueError("the tokenizer's vocabulary is empty")
        self.vocab_size = max(vocab.values()) + 1
        self.special = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self.eot_id = find_eot(self.special, vocab, eot)

    @classmethod
    def get(cls, name: str) -> "HFTokenizer":
        """The tokenizer of a model on the Hub or in a directory, loaded by AutoTokenizer. Raises ValueError."""
        from transformers import AutoTokenizer

        try:
            auto = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            return cls(auto.backend_tokenizer, name, auto.eos_token)
        except Exception as error:  # damaged files can raise nearly anything
            raise ValueError(f"{name!r} has no tokenizer that could be loaded: {pickles.first_line(error)}") from None

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int64, without added special tokens. Raises ValueError."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        try:
            encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # the library raises plain Exception, for instance without an unknown token
            raise ValueError(f"the tokenizer cannot read this text ({pickles.first_line(error)})") from None
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        return self.published.decode([int(i) for i in ids], skip_special_tokens=False)

    def save(self, directory: Path | str) -> None:
        """Writes tokenizer.json into `directory`."""
        with write_atomic(Path(directory, FILE)) as file:
            file.write(self.published.to_str(pretty=True).encode())


def is_nanogpts(directory: Path | str) -> bool:
    """Whether nanoGPT wrote a data directory: train.bin without tokenizer.json or meta.json."""
    has = {path.name for path in Path(directory).glob("*")}
    return "train.bin" in has and not has & {FILE, "meta.json"}


def load_tokenizer(directory: Path | str) -> CharTokenizer | ByteTokenizer | BPETokenizer | HFTokenizer:
    """The tokenizer that `directory/tokenizer.json` describes. Raises ValueError if there is none, or it is damaged.

    In a data directory that nanoGPT wrote: the characters of meta.pkl if there is one, else GPT-2's BPE.
    """
    directory = local(directory)
    if is_nanogpts(directory):
        pickled = Path(directory, "meta.pkl")
        return CharTokenizer(pickles.read_characters(pickled)) if pickled.exists() else BPETokenizer.gpt2()
    if not Path(directory, FILE).exists() and any(Path(directory, name).is_file() for name in OLDER_FILES):
        return HFTokenizer.get(str(directory))
    path, tokenizer = Path(directory, FILE), tokenizer_json.read(directory)
    try:
        # the faster classes do not look for other added tokens in a text
        fast = all(token.get("special") for token in tokenizer.get("added_tokens") or [])
        if fast and CharTokenizer.reads(tokenizer):
            return CharTokenizer.from_json(tokenizer)
        if fast and ByteTokenizer.reads(tokenizer):
            return ByteTokenizer()
        if fast and BPETokenizer.reads(tokenizer):
            return BPETokenizer.from_json(tokenizer, configured_eot(path))
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(f"{path} is damaged ({pickles.first_line(error)}): restore it") from None
    return load_file(path)


def load_file(path: Path) -> HFTokenizer:
    """Loads a tokenizer.json with `tokenizers`; tokenizer_config.json next to it may name the end of text."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{path} is damaged ({pickles.first_line(error)}): restore it") from None
    return HFTokenizer(tokenizer, type(tokenizer.model).__name__.lower(), configured_eot(path))


def configured_eot(path: Path) -> str | None:
    """The end-of-text token that tokenizer_config.json next to a tokenizer.json names, if any."""
    config = path.with_name("tokenizer_config.json")
    eot = read_json(config).get("eos_token") if config.exists() else None
    eot = eot.get("content") if isinstance(eot, dict) else eot
    return eot if isinstance(eot, str) else None


def get_tokenizer(name: str) -> CharTokenizer | ByteTokenizer | BPETokenizer | HFTokenizer:
    """The tokenizer `name`: bytes, a tiktoken encoding, a tokenizer.json, a directory, or a model on the Hub.

    Raises ValueError if there is none, OSError if its files are unavailable. `char` has to be trained on a text.
    """
    import tiktoken

    if name == "bytes":
        return ByteTokenizer()
    if name in (encodings := tiktoken.list_encoding_names()):
        return BPETokenizer.get(name)
    path = Path(name)
    if path.is_file():
        return load_tokenizer(path.parent) if path.name == FILE else load_file(path)
    if (path / FILE).is_file():
        return load_tokenizer(path)
    if path.is_dir() or name.count("/") == 1:
        return HFTokenizer.get(name)
    raise ValueError(
        f"tokenizer {name!r} is not one of char, gpt2, bytes, {', '.join(e for e in encodings if e != 'gpt2')}, "
        "nor a tokenizer.json, a directory with one, or OWNER/NAME of a model on the Hub"
    )


def check_same(directory: Path | str, other: Path | str) -> None:
    """Raises ValueError unless the tokenizers of two directories have the same tokens with the same ids."""
    a, b = (tokenizer_json.vocabulary(describe(d)) for d in (directory, other))
    if a != b:
        differing = sorted(a.items() ^ b.items(), key=lambda item: (item[1], item[0]))
        raise ValueError(
            f"{directory} and {other} have different tokenizers (for instance, {differing[0][0]!r} is token "
            f"{a.get(differing[0][0], 'no token')} in one, {b.get(differing[0][0], 'no token')} in the other): "
            "prepare both with the same tokenizer"
        )


def describe(directory: Path | str) -> dict:
    """The tokenizer.json of a directory, or its equivalent if it has other files, of nanoGPT or of a model."""
    directory = local(directory)
    if Path(directory, FILE).exists():
        return tokenizer_json.read(directory)
    with TemporaryDirectory() as elsewhere:
        load_tokenizer(directory).save(elsewhere)
        return tokenizer_json.read(elsewhere)
