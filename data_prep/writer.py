"""Writes a data directory: train.bin, val.bin, tokenizer.json and, last, meta.json (see `nanogpt.data`)."""

import hashlib
import json
from pathlib import Path

import numpy as np

from nanogpt import tokenizer as tokenizers


def make_tokenizer(name: str, text: str):
    """The tokenizer called `name`, trained on `text` if it is one that is trained."""
    if name == "char":
        return tokenizers.CharTokenizer.train(text)
    if name == "gpt2":
        return tokenizers.BPETokenizer.gpt2()
    raise ValueError(f"tokenizer {name!r} is not one of char, gpt2")


def write(out: Path | str, text: str, tokenizer_name: str, val_fraction: float, source: str) -> dict:
    """Tokenizes `text`, the last `val_fraction` of its characters as validation split; returns the meta data.

    Files get their names when all of them are whole, so an interrupted run leaves no half-made directory behind.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction={val_fraction} must lie between 0 and 1")
    if not text.strip():
        raise ValueError(f"the text is empty ({source}): there is nothing to train on")
    out = Path(out)
    tokenizer = make_tokenizer(tokenizer_name, text)
    cut = int(len(text) * (1 - val_fraction))
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 65536 else "<u4")
    meta = {"vocab_size": tokenizer.vocab_size, "dtype": dtype.name, "tokenizer": tokenizer.name}
    meta |= {"source": source, "splits": {}}
    out.mkdir(parents=True, exist_ok=True)
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        tokens = tokenizer.encode(part).astype(dtype)
        if len(tokens) < 2:
            raise ValueError(f"the {split} split has {len(tokens)} tokens: the text ({source}) is too short")
        tokens.tofile(out / f".{split}.bin.tmp")
        digest = hashlib.sha256(tokens.tobytes()).hexdigest()
        meta["splits"][split] = {"tokens": len(tokens), "bytes": len(part.encode("utf-8")), "sha256": digest}
    (out / "meta.json").unlink(missing_ok=True)  # from here on until the new one stands, the directory is incomplete
    for split in meta["splits"]:
        (out / f".{split}.bin.tmp").replace(out / f"{split}.bin")
    tokenizer.save(out)
    (out / ".meta.json.tmp").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    (out / ".meta.json.tmp").replace(out / "meta.json")
    return meta
