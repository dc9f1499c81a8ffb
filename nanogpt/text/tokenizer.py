"""Text to token ids and back, saved as `tokenizer.json`, which `AutoTokenizer` reads too.

    >>> tokenizer = char_tokenizer(sorted(set("to be or not to be")))
    >>> tokenizer.decode(tokenizer.encode("not"))
    'not'

`Tokenizer` wraps a tokenizer of the library `tokenizers`. Any object works in its place if it has

    name, vocab_size       the largest id plus one; embeddings have at least as many rows
    eot_id                 the id of the end-of-text token after each document, or None
    encode(text)           ids (T,) int64; special tokens spelled out in the text are plain text
    encode_batch(texts)    ids of each text, any integer dtype; called from several threads at once
    decode(ids)            the text; incomplete UTF-8 becomes U+FFFD
    save(directory)        writes tokenizer.json, which `load_tokenizer(directory)` reads

data_prep/README.md has an example.
"""

import json
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from nanogpt.data.files import follow, local_copy, one_line_errors, read_json, write_atomic
from nanogpt.data.meta import TOKENIZER
from nanogpt.text import bpe, pickles

EOT = "<|endoftext|>"
START, END = "<|im_start|>", "<|im_end|>"  # of a message, see `nanogpt.text.chat`
# names of the end of text, in this order, unless a tokenizer_config.json gives one
EOT_NAMES = (EOT, "<|end_of_text|>", "</s>", "<eos>")
EVERY_CHARACTER = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")


class Tokenizer:
    """A tokenizer of the library `tokenizers`; characters and bytes are looked up in a table."""

    def __init__(
        self, backend: tokenizers.Tokenizer, name: str | None = None, eot: str | None = None
    ):
        """`eot` is the end-of-text token if it is not one of EOT_NAMES."""
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # as plain text
        self.backend = backend
        self.vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        if not self.vocabulary:
            raise ValueError("the tokenizer's vocabulary is empty")
        self.vocab_size = max(self.vocabulary.values()) + 1
        added = backend.get_added_tokens_decoder()
        self.special = {token.content: i for i, token in added.items() if token.special}
        found = (self.vocabulary[t] for t in (eot, *EOT_NAMES) if t in self.vocabulary)
        self.eot_id = next(found, None)
        # characters and bytes are looked up in a table if it gives the library's ids
        plain = {i: token for token, i in self.vocabulary.items() if token not in self.special}
        tokens = "".join(plain[i] for i in sorted(plain))
        one_each = len(tokens) == len(plain) == max(plain, default=0) + 1 and not backend.normalizer
        split = str(backend.pre_tokenizer)
        by_character = isinstance(backend.model, models.WordLevel) and split == str(EVERY_CHARACTER)
        by_byte = split == str(bpe.UNSPLIT) and tokens == "".join(bpe.byte_alphabet())
        self.characters = tokens if one_each and by_character else None  # in the order of their ids
        self._is_bytes = one_each and by_byte
        kind = "char" if self.characters else "bytes" if self._is_bytes else None
        if self.characters:
            self._table = np.full(sys.maxunicode + 1, -1)  # code point -> id
            self._table[[ord(c) for c in self.characters]] = np.arange(len(self.characters))
        published = bpe.TIKTOKEN_NAMES.get(len(self.vocabulary) - len(self.special))
        self.name = name or kind or published or type(backend.model).__name__.lower()

    def encode(self, text: str) -> np.ndarray:
        """Ids (T,) int64. Raises ValueError naming a character that the vocabulary lacks."""
        if self.characters:
            points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
            ids = self._table[points]
            if (ids < 0).any():
                unknown = int(ids.argmin())
                raise ValueError(
                    f"character {text[unknown]!r} (position {unknown}) is not among the "
                    f"{len(self.characters)} that the model knows: {self.characters[:200]!r}"
                )
            return ids
        utf8 = text.encode("utf-8", "replace")  # halves of surrogate pairs become question marks
        if self._is_bytes:
            return np.frombuffer(utf8, dtype=np.uint8).astype(np.int64)
        return self.encode_batch([utf8.decode()])[0].astype(np.int64)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of each text, as `encode`; any integer dtype. Does not hold the GIL."""
        if self.characters or self._is_bytes:
            return [self.encode(text) for text in texts]
        # plain exceptions, for instance without an unknown token
        with one_line_errors("the tokenizer cannot read this text", "choose another tokenizer"):
            encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; incomplete UTF-8 becomes U+FFFD, ids without a token are left out."""
        return self.backend.decode(list(map(int, ids)), skip_special_tokens=False)

    def to_dict(self) -> dict:
        """The contents of tokenizer.json."""
        return json.loads(self.backend.to_str())

    def save(self, directory: Path | str) -> None:
        """Writes tokenizer.json into `directory`."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        write_atomic(Path(directory, TOKENIZER), self.backend.to_str().encode())

    def with_special(self, tokens: list[str]) -> "Tokenizer":
        """A copy with those of these special tokens that it lacks, after all others."""
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.add_special_tokens([token for token in tokens if token not in self.special])
        eot = None if self.eot_id is None else self.backend.id_to_token(self.eot_id)
        return Tokenizer(backend, self.name, eot)


def char_tokenizer(characters: Iterable[str]) -> Tokenizer:
    """One token per character; ids count the given characters, without repeated ones."""
    vocab = {character: i for i, character in enumerate(dict.fromkeys(characters))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = EVERY_CHARACTER
    backend.decoder = decoders.Fuse()
    return Tokenizer(backend)


def byte_tokenizer() -> Tokenizer:
    """One token per UTF-8 byte (id = byte) and an end-of-text token (256).

    It encodes any language without training; in the file it is byte-pair encoding without merges.
    """
    vocab = {character: byte for byte, character in enumerate(bpe.byte_alphabet())}
    backend = bpe.byte_level(vocab, [])
    backend.add_special_tokens([EOT])
    return Tokenizer(backend)


class BPETokenizer(Tokenizer):
    """Builds a tokenizer from a tiktoken.Encoding, which encodes batches several times faster."""

    def __init__(self, encoding):
        super().__init__(bpe.from_tiktoken(encoding), encoding.name)
        self.encoding = encoding

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of each text, uint32."""
        return [self.encoding.encode_to_numpy(text, disallowed_special=()) for text in texts]

    @classmethod
    @lru_cache
    def get(cls, name: str) -> "BPETokenizer":
        """tiktoken's encoding `name`, downloaded on first use or read from $TIKTOKEN_CACHE_DIR.

        Raises ValueError if it cannot be downloaded.
        """
        import tiktoken

        advice = "set TIKTOKEN_CACHE_DIR to a copy"
        with one_line_errors(f"the tokenizer files of {name} could not be downloaded", advice):
            return cls(tiktoken.get_encoding(name))


def written_by_nanogpt(directory: Path | str) -> bool:
    """Whether nanoGPT wrote a data directory: train.bin without tokenizer.json or meta.json."""
    has = {path.name for path in Path(directory).glob("*")}
    return "train.bin" in has and not has & {TOKENIZER, "meta.json"}


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """The tokenizer of a data directory, a checkpoint or a model directory.

    In a data directory that nanoGPT wrote, the characters of meta.pkl, or else GPT-2's. Raises
    ValueError if there is none, or it is damaged.
    """
    directory = local_copy(directory)
    path, pickled = directory / TOKENIZER, directory / "meta.pkl"
    if written_by_nanogpt(directory):
        if pickled.exists():
            return char_tokenizer(pickles.read_characters(pickled))
        return BPETokenizer.get("gpt2")
    if path.exists():
        return load_file(path)
    if (directory / "vocab.json").exists():  # of older models
        return from_pretrained(str(directory))
    raise ValueError(f"{path} is missing: copy the one that made the tokens there")


def load_file(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json; tokenizer_config.json beside it may name the end of text.

    Raises ValueError.
    """
    config = path.with_name("tokenizer_config.json")
    with one_line_errors(f"{path} is damaged", "restore it"):
        eot = read_json(config).get("eos_token") if config.exists() else None
        eot = eot.get("content") if isinstance(eot, dict) else eot
        return Tokenizer(tokenizers.Tokenizer.from_file(str(path)), eot=eot)


def from_pretrained(name: str) -> Tokenizer:
    """The tokenizer of a model on the Hub or in a directory, by AutoTokenizer; or ValueError."""
    from transformers import AutoTokenizer

    with one_line_errors(f"{name!r} has no usable tokenizer", "name another"):
        auto = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        return Tokenizer(auto.backend_tokenizer, name, auto.eos_token)


def get_tokenizer(name: str) -> Tokenizer:
    """The tokenizer `name`: bytes, a tiktoken encoding, a tokenizer.json, a directory, OWNER/NAME.

    Raises ValueError if there is none, or its files are unavailable. `char` has no tokenizer before
    it is trained on a text.
    """
    import tiktoken

    if name == "bytes":
        return byte_tokenizer()
    if name in (encodings := tiktoken.list_encoding_names()):
        return BPETokenizer.get(name)
    path = follow(name)
    if path.is_file():
        return load_file(path)
    if path.is_dir():
        places = (follow(path / "best"), follow(path / "last"), path)  # first as a run
        return load_tokenizer(next(place for place in places if place.is_dir()))
    if name.count("/") == 1:
        return from_pretrained(name)
    raise ValueError(
        f"tokenizer {name!r} is not one of bytes, {', '.join(encodings)}, nor a tokenizer.json, a "
        "directory with one, or OWNER/NAME of a model on the Hub; char is for plain text"
    )
