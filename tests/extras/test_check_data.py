"""`nanogpt check-data`: what it counts is so, and it warns of what will go wrong and of nothing else."""

import ast
import json
import random
import re

import conversations
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from data_prep import writer
from data_prep.chat import prepare as prepare_chat
from data_prep.train_tokenizer import train
from nanogpt.cli import main
from nanogpt.data.tokenizer import ByteTokenizer, CharTokenizer
from nanogpt.data.tokenizer import Tokenizer as HFTokenizer
from nanogpt.extras.check_data import examine


def report(directory, **options) -> tuple[str, list[str]]:
    said = []
    found = examine(directory, **({"block_size": 16, "parameters": 1000} | options), say=said.append)
    return "\n".join(said), found


def write_data(directory, tokenizer, train: np.ndarray, val: np.ndarray, documents: int = 100):
    """A data directory of these tokens."""
    directory.mkdir()
    splits = {}
    for split, ids in (("train", train), ("val", val)):
        ids.astype("<u2").tofile(directory / f"{split}.bin")
        splits[split] = {"tokens": len(ids), "bytes": len(ids), "documents": documents, "largest": int(ids.max())}
    meta = {"vocab_size": tokenizer.vocab_size, "dtype": "uint16", "splits": splits}
    (directory / "meta.json").write_text(json.dumps(meta))
    tokenizer.save(directory)
    return directory


def write_texts(directory, tokenizer, train: list[str], val: list[str]):
    """A data directory of documents, divided as given."""
    end = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
    splits = [np.concatenate([[*tokenizer.encode(t + "\n"), *end] for t in texts]) for texts in (train, val)]
    return write_data(directory, tokenizer, *splits)


@pytest.fixture
def noise():
    ids = np.random.default_rng(0).integers(32, 127, size=300_000)
    ids[::1000] = 256  # ends of text
    return ids


def test_counts_frequencies_and_windows_are_shown(data, text):
    shown, _ = report(data)
    train = json.loads((data / "meta.json").read_text())["splits"]["train"]
    assert f"train: {train['tokens']:,} tokens, {train['bytes']:,} bytes, 1.00 bytes per token, 1 documents" in shown
    part = text[: train["tokens"]]
    assert f"{len(set(part))} of {len(set(text))} tokens occur" in shown
    assert f"' ' {part.count(' ') / len(part):.1%}, " in shown
    windows = shown.split("windows:\n")[1].splitlines()[:3]
    assert all(ast.literal_eval(window.strip()) in text for window in windows)


def strange(n: np.ndarray, share: float):
    """With some characters that no text has."""
    n[np.random.default_rng(1).random(len(n)) < share] = 0
    return n[:250_000], n[250_000:]


NOISE = {  # what the splits are made of: a word of the only warning
    "good": (lambda n: (n[:250_000], n[250_000:]), ""),
    "val shorter than a block": (lambda n: (n[:1000], n[1000:1010]), r"val split .10 tokens. is shorter"),
    "val of few blocks": (lambda n: (n[:1000], n[1000:1500]), "fewer than 64 blocks"),
    "few tokens": (lambda n: (n[:999], n[1000:9000]), r"fewer training tokens .999. than parameters"),
    "repeated": (lambda n: (np.tile(n[:50_000], 2), n[100_000:]), "50% of the training text is repeated"),
    "leaked": (lambda n: (n[:200_000], n[150_000:]), "documents, 3[345]% of the validation text"),
    "few of the tokens": (lambda n: (n[:100_000] % 5, n[100_000:] % 5), "only 5 of 257 tokens"),
    "a few strange characters": (lambda n: strange(n, 0.005), ""),
    "binary": (lambda n: strange(n, 0.05), "control characters"),
}


@pytest.mark.parametrize("what", NOISE)
def test_what_will_go_wrong_is_warned_of(tmp_path, noise, what):
    change, message = NOISE[what]
    _, warnings = report(write_data(tmp_path / "d", ByteTokenizer(), *change(noise)))
    assert any(re.search(message, warning) for warning in warnings) if message else not warnings, warnings


def test_text_that_is_not_divided_into_documents_is_warned_of(tmp_path, noise):
    directory = write_data(tmp_path / "d", ByteTokenizer(), noise[:250_000], noise[250_000:], documents=0)
    assert any("all text is one document" in warning for warning in report(directory)[1])


def test_files_that_were_changed_are_found_by_their_sha256(data, command, refused):
    assert command("check-data", data, "--sha256").count(", as written") == 2
    with open(data / "val.bin", "r+b") as file:
        file.write(b"\2\0\1\0")
    said = refused(main, ["check-data", str(data), "--sha256"])
    assert "val" in said and "SHA-256" in said


def made_up(count: int, seed: int = 0) -> list[str]:
    """Documents of a hundred made-up words each, none like another."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [" ".join("".join(rng.choices(letters, k=6)) for _ in range(100)).capitalize() for _ in range(count)]


def disguised(text: str) -> str:
    """The same words in capitals, over many lines."""
    return text.upper().replace(" ", "\n  ")


TRAIN, VAL = made_up(300, 1), made_up(100, 2)
SHORT = "A remark of three lines is repeated word for word on both sides."
IN_BOTH = "1 of 10[01] validation documents are also training"
DOCUMENTS = {  # training documents, validation documents: the only warning
    "clean": (TRAIN, VAL, ""),
    "one in both": ([*TRAIN, VAL[50]], VAL, IN_BOTH),
    "one in both, disguised": ([*TRAIN, disguised(VAL[50])], VAL, IN_BOTH),
    "a short one in both": ([*TRAIN, SHORT], [*VAL, SHORT.upper()], IN_BOTH),
    "a very short one in both": ([*TRAIN, "Yes."], [*VAL, "yes"], ""),
    "an excerpt": (TRAIN, [*VAL, TRAIN[7][:600]], ""),
    "copies": ([*TRAIN, *TRAIN[100:200]], VAL, r"2\d% of the training text is repeated: leave copies out"),
}


@pytest.mark.parametrize("what", DOCUMENTS)
def test_copies_are_found_in_disguise_and_nothing_else_is(tmp_path, what):
    train, val, message = DOCUMENTS[what]
    _, warnings = report(write_texts(tmp_path / "d", ByteTokenizer(), train, val))
    assert len(warnings) == bool(message) and all(re.match(message, warning) for warning in warnings), warnings


def test_a_leak_is_found_without_an_end_of_text_token(tmp_path):
    tokenizer = CharTokenizer.train("".join(TRAIN).swapcase() + "".join([*TRAIN, *VAL]) + "\n")
    assert report(write_texts(tmp_path / "clean", tokenizer, TRAIN, VAL))[1] == []
    leak = [*TRAIN[:150], VAL[50], *TRAIN[150:]]
    (warning,) = report(write_texts(tmp_path / "leak", tokenizer, leak, VAL))[1]
    assert re.match(IN_BOTH, warning)


def two_bpes(tmp_path, text):
    """Two byte-pair encodings of as many tokens, trained on different halves of a text, and data of the first."""
    halves = text[: len(text) // 2], text[len(text) // 2 :].replace("king", "queen").replace("anger", "love")
    for name, half in zip("ab", halves, strict=True):
        (tmp_path / f"{name}.txt").write_text(half)
    a, b = (train([str(tmp_path / f"{name}.txt")], 330) for name in "ab")
    assert a.vocab_size == b.vocab_size == 330
    return write_texts(tmp_path / "d", a, text.split("\n\n")[:400], text.split("\n\n")[400:]), b


def test_tokens_of_another_tokenizer_are_the_only_warning(tmp_path, text):
    directory, other = two_bpes(tmp_path, text)
    assert not any("different tokenizer" in warning for warning in report(directory)[1])
    other.save(directory)
    (warning,) = report(directory)[1]
    assert "different tokenizer" in warning


def test_tokens_that_the_tokenizer_does_not_have_are_an_error(tmp_path, text, refused):
    directory, _ = two_bpes(tmp_path, text)
    ByteTokenizer().save(directory)
    assert "but the vocabulary has 257 tokens" in refused(main, ["check-data", str(directory)])


@pytest.mark.parametrize("share", [0.0, 0.57])
def test_unknown_tokens_are_counted(tmp_path, share):
    chance, known = random.Random(0), [f"w{i}" for i in range(50)]
    word = lambda: "strange" if chance.random() < share else chance.choice(known)  # noqa: E731
    texts = [" ".join(word() for _ in range(100)) for _ in range(400)]
    vocab = {token: i for i, token in enumerate([*known, "[UNK]", "</s>"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    _, warnings = report(write_texts(tmp_path / "d", HFTokenizer(tokenizer), texts[:300], texts[300:]))
    assert any(re.match(r"5[678]% of the tokens are '\[UNK\]'", warning) for warning in warnings) == bool(share)
    assert not any("different tokenizer" in warning for warning in warnings)


@pytest.mark.parametrize("tokenizer", ["char", pytest.param("gpt2", marks=pytest.mark.nightly)])
def test_tiny_shakespeare_has_no_copies_and_no_leaks(tmp_path, shakespeare, gpt2_files, tokenizer):
    writer.write(tmp_path / "data", shakespeare.read_text(), tokenizer, 0.1, "made up")
    assert report(tmp_path / "data")[1] == []


@pytest.mark.parametrize("tokenizer", ["bytes", "char"])
def test_conversations_are_not_taken_for_another_tokenizers(tmp_path, tokenizer):
    inputs = conversations.write(tmp_path / "in.jsonl", conversations.talks())
    prepare_chat([inputs], tmp_path / "data", tokenizer, 128, say=lambda text: None)
    shown, warnings = report(tmp_path / "data", block_size=128)
    assert "<|im_" in shown and not any("different tokenizer" in warning for warning in warnings)
