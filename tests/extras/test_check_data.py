"""`nanogpt check-data`: what it counts is so, and it warns of what will go wrong and of nothing else."""

import ast
import json
import random
import re

import numpy as np
import pytest
from conversations import talk, write

from data_prep.chat import prepare
from nanogpt.extras.check_data import examine
from nanogpt.text.tokenizer import byte_tokenizer, char_tokenizer


def report(directory, **options) -> tuple[str, list[str]]:
    said = []
    found = examine(directory, **({"block_size": 16, "parameters": 1000} | options), say=said.append)
    return "\n".join(said), found


def write_data(directory, tokenizer, train: np.ndarray, val: np.ndarray):
    """A data directory of these tokens."""
    directory.mkdir()
    splits = {}
    for split, ids in (("train", train), ("val", val)):
        ids.astype("<u2").tofile(directory / f"{split}.bin")
        splits[split] = {"tokens": len(ids), "bytes": len(ids), "largest": int(ids.max())}
    meta = {"vocab_size": tokenizer.vocab_size, "dtype": "uint16", "splits": splits}
    (directory / "meta.json").write_text(json.dumps(meta))
    tokenizer.save(directory)
    return directory


def write_texts(directory, tokenizer, train: list[str], val: list[str]):
    """A data directory of documents, divided as given."""
    end = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
    splits = [np.concatenate([[*tokenizer.encode(t + "\n"), *end] for t in texts]) for texts in (train, val)]
    return write_data(directory, tokenizer, *splits)


def test_counts_frequencies_and_windows_are_shown(data, text):
    shown, _ = report(data)
    train = json.loads((data / "meta.json").read_text())["splits"]["train"]
    assert f"train: {train['tokens']:,} tokens, {train['bytes']:,} bytes, 1 documents" in shown
    part = text[: train["tokens"]]
    assert f"{len(set(part))} of {len(set(text))} tokens occur" in shown
    assert f"' ' {part.count(' ') / len(part):.1%}, " in shown
    windows = [line.strip() for line in shown.splitlines() if line.startswith("  '")]
    assert len(windows) == 3 and all(ast.literal_eval(window) in text for window in windows)


def strange(n: np.ndarray):
    """With some characters that no text has."""
    n[np.random.default_rng(1).random(len(n)) < 0.05] = 0
    return n[:250_000], n[250_000:]


NOISE = {  # what the splits are made of: a word of the only warning
    "good": (lambda n: (n[:250_000], n[250_000:]), ""),
    "val of few blocks": (lambda n: (n[:1000], n[1000:1500]), "fewer than 64 blocks"),
    "few tokens": (lambda n: (n[:999], n[1000:9000]), "999 training tokens are fewer than"),
    "binary": (strange, "control characters"),
}


@pytest.mark.parametrize("what", NOISE)
def test_what_will_go_wrong_is_warned_of(tmp_path, what):
    noise = np.random.default_rng(0).integers(32, 127, size=300_000)
    noise[::1000] = 256  # ends of text
    change, message = NOISE[what]
    _, warnings = report(write_data(tmp_path / "d", byte_tokenizer(), *change(noise)))
    assert any(re.search(message, warning) for warning in warnings) if message else not warnings, warnings


def made_up(count: int, seed: int = 0) -> list[str]:
    """Documents of a hundred made-up words each, none like another."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [" ".join("".join(rng.choices(letters, k=6)) for _ in range(100)).capitalize() for _ in range(count)]


TRAIN, VAL = made_up(300, 1), made_up(100, 2)
IN_BOTH = "1 of 10[01] validation documents .* are also in the training text"
DOCUMENTS = {  # training documents, validation documents: the only warning
    "clean": (TRAIN, VAL, ""),
    "one in both, in capitals over many lines": ([*TRAIN, VAL[50].upper().replace(" ", "\n  ")], VAL, IN_BOTH),
    "a very short one in both": ([*TRAIN, "Yes."], [*VAL, "yes"], ""),
    "copies": ([*TRAIN, *TRAIN[100:200]], VAL, r"2\d% of the training text is repeated: leave copies out"),
}


@pytest.mark.parametrize("what", DOCUMENTS)
def test_copies_are_found_in_disguise_and_nothing_else_is(tmp_path, what):
    train, val, message = DOCUMENTS[what]
    _, warnings = report(write_texts(tmp_path / "d", byte_tokenizer(), train, val))
    assert len(warnings) == bool(message) and all(re.match(message, warning) for warning in warnings), warnings


@pytest.mark.parametrize("special", [[], ["<|endoftext|>"]])  # a single text has no such token in either case
def test_a_leak_is_found_without_an_end_of_text_token(tmp_path, special):
    tokenizer = char_tokenizer(sorted(set("".join([*TRAIN, *VAL]) + "\n"))).with_special(special)
    texts = [*TRAIN[:150], VAL[50], *TRAIN[150:]], VAL
    splits = [tokenizer.encode("".join(t + "\n" for t in each)) for each in texts]
    (warning,) = report(write_data(tmp_path / "leak", tokenizer, *splits))[1]
    assert re.match(IN_BOTH, warning)


def test_the_end_of_text_tokens_that_fill_up_blocks_are_no_documents(tmp_path):
    texts = [f"{i} {'is this a question?' * 3}" for i in range(60)]
    path = write(tmp_path / "a.jsonl", [talk(text, f"no, it is {i}") for i, text in enumerate(texts)])
    prepare([path], tmp_path / "d", block_size=256, val_fraction=0.5, say=lambda text: None)
    meta = json.loads((tmp_path / "d" / "meta.json").read_text())
    ids = {split: np.fromfile(tmp_path / "d" / f"{split}.bin", "<u2") for split in ("train", "val")}
    leaking = np.concatenate([ids["train"][:-1], ids["val"][:256], ids["train"][-1:]])  # a whole block
    leaking.tofile(tmp_path / "d" / "train.bin")
    meta["splits"]["train"] |= {"tokens": len(leaking)}
    (tmp_path / "d" / "meta.json").write_text(json.dumps(meta))
    (leak,) = (warning for warning in report(tmp_path / "d", block_size=1, parameters=1)[1] if "also in" in warning)
    assert f" of {meta['splits']['val']['documents']} validation documents" in leak
