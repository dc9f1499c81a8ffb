import json
import random
import re

import conversations
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from data_prep import documents, python_stdlib, writer
from data_prep.chat import prepare as prepare_chat
from data_prep.merge import merge
from data_prep.text import prepare
from data_prep.train_tokenizer import train
from nanogpt.cli import main
from nanogpt.data.tokenizer import ByteTokenizer, CharTokenizer, HFTokenizer
from nanogpt.extras.check_data import examine


def report(directory, **options) -> tuple[str, list[str]]:
    said = []
    found = examine(directory, **({"block_size": 16, "parameters": 1000} | options), say=said.append)
    return "\n".join(said), found


def random_data(directory, train: np.ndarray, val: np.ndarray, documents: int = 100):
    """Byte tokens of made-up data."""
    directory.mkdir()
    counts = {}
    for split, ids in (("train", train), ("val", val)):
        ids.astype("<u2").tofile(directory / f"{split}.bin")
        counts[split] = {"tokens": len(ids), "bytes": len(ids), "documents": documents}
    meta = {"vocab_size": 257, "dtype": "uint16", "splits": counts}
    (directory / "meta.json").write_text(json.dumps(meta))
    ByteTokenizer().save(directory)
    return directory


@pytest.fixture
def noise():
    ids = np.random.default_rng(0).integers(32, 127, size=300_000)
    ids[::1000] = 256  # ends of text
    return ids


def test_counts_frequencies_and_windows_are_shown(data, text):
    shown, _ = report(data)
    meta = json.loads((data / "meta.json").read_text())
    train = meta["splits"]["train"]
    assert f"train: {train['tokens']:,} tokens, {train['bytes']:,} bytes, 1.00 bytes per token, 1 documents" in shown
    part = text[: train["tokens"]]
    assert f"most frequent: ' ' {part.count(' ') / len(part):.1%}, " in shown
    occurring = [part.count(c) for c in set(text)]
    rare = sum(100 <= n < 1000 for n in occurring)
    assert f"{'100 to 999':>17}  {rare:>7,} #" in shown
    windows = [line.split(maxsplit=1)[1] for line in shown.split("windows:\n")[1].splitlines()[:3]]
    assert all(eval(window) in text for window in windows)


def test_good_data_has_no_warnings(tmp_path, noise):
    shown, warnings = report(random_data(tmp_path / "d", noise[:250_000], noise[250_000:]))
    assert warnings == []
    assert shown.endswith("no warnings")
    assert "repetition: 0.0% of the training text occurs twice, 0.0% of the validation text is in it" in shown


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda n: (n[:1000], n[1000:1010]), {}, r"the val split .10 tokens. is shorter than a block of 16"),
        (lambda n: (n[:1000], n[1000:1500]), {}, "fewer than 64 blocks of 16: its loss will be noisy"),
        (lambda n: (n[:1000], n[1000:9000]), {"parameters": 1001}, r"fewer training tokens .1,000. than parameters"),
        (lambda n: (np.tile(n[:50_000], 2), n[100_000:]), {}, "50% of the training text is repeated: try --dedup"),
        (
            lambda n: (n[:200_000], n[150_000:]),
            {},
            "documents are also training documents, 3[345]% of the validation text",
        ),
        (lambda n: (n[:100_000] % 5, n[100_000:] % 5), {}, "only 5 of 257 tokens of the vocabulary occur"),
        (lambda n: (np.minimum(n[:100_000], 126), n[100_000:]), {}, "a single document is 100% of the text"),
    ],
)
def test_what_will_go_wrong_is_warned_of(tmp_path, noise, change, options, message):
    _, warnings = report(random_data(tmp_path / "d", *change(noise)), **options)
    assert any(re.search(message, warning) for warning in warnings), warnings


def test_a_single_document_is_warned_of(tmp_path, noise):
    directory = random_data(tmp_path / "d", noise[:250_000], noise[250_000:], documents=0)
    assert any("all text is one document" in warning for warning in report(directory)[1])


def test_files_that_were_changed_are_found_by_their_sha256(tmp_path, text, capsys):
    writer.write(tmp_path / "data", text, "char", 0.1, "made up")
    main(["check-data", str(tmp_path / "data"), "--sha256"])
    assert capsys.readouterr().out.count(", as written") == 2
    with open(tmp_path / "data" / "val.bin", "r+b") as file:
        file.write(b"\2\0\1\0")
    with pytest.raises(SystemExit) as stopped:
        main(["check-data", str(tmp_path / "data"), "--sha256"])
    assert stopped.value.code == 2
    assert "the val split was changed: its SHA-256 is" in capsys.readouterr().err


def test_shards_are_examined_as_one(tmp_path, monkeypatch, text):
    monkeypatch.setattr(documents, "PIECE", 1 << 10)
    (tmp_path / "in.txt").write_text(text)
    for i in (1, 2):
        prepare([str(tmp_path / "in.txt")], tmp_path / "data", "bytes", 0.2, shard=(i, 2), say=lambda text: None)
    meta = merge(tmp_path / "data", say=lambda text: None)
    shown, _ = report(tmp_path / "data", sha256=True)
    assert f"train: {meta['splits']['train']['tokens']:,} tokens in 2 files" in shown


def made_up(count: int, seed: int = 0) -> list[str]:
    """Documents of some hundred made-up words each, none like another."""
    chance = random.Random(seed)
    word = lambda: "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9)))  # noqa: E731
    return [
        ". ".join(" ".join(word() for _ in range(9)).capitalize() for _ in range(chance.randint(8, 20)))
        for _ in range(count)
    ]


def write_splits(directory, tokenizer, train: list[str], val: list[str]):
    """A data directory of documents by a tokenizer, divided as given."""
    directory.mkdir()
    splits = {}
    for split, texts in (("train", train), ("val", val)):
        end = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
        ids = np.concatenate([[*tokenizer.encode(text + "\n"), *end] for text in texts]).astype("<u2")
        ids.tofile(directory / f"{split}.bin")
        size = sum(len(text) + 1 for text in texts)
        splits[split] = {"tokens": len(ids), "bytes": size, "documents": len(texts), "largest": int(ids.max())}
    meta = {"vocab_size": tokenizer.vocab_size, "dtype": "uint16", "splits": splits}
    (directory / "meta.json").write_text(json.dumps(meta))
    tokenizer.save(directory)
    return directory


def tokenizer_for(name: str, texts: list[str]):
    return (
        ByteTokenizer() if name == "bytes" else CharTokenizer.train("".join(texts).swapcase() + "".join(texts) + "\n")
    )


def disguised(text: str) -> str:
    """The same words in capitals, over many lines."""
    return text.upper().replace(" ", "\n  ")


@pytest.mark.parametrize("name, change", [("bytes", str), ("bytes", disguised), ("char", str)])
def test_a_single_validation_document_that_is_training_text_too_is_found_though_disguised(tmp_path, name, change):
    documents = made_up(400)
    tokenizer, train, val = tokenizer_for(name, documents), documents[:300], documents[300:]
    assert report(write_splits(tmp_path / "clean", tokenizer, train, val))[1] == []
    leak = [*train[:150], change(val[50]), *train[150:]]
    _, warnings = report(write_splits(tmp_path / "leak", tokenizer, leak, val))
    assert len(warnings) == 1 and "1 of 100 validation documents are also training documents" in warnings[0]


def test_short_documents_on_both_sides_are_found_and_very_short_ones_are_no_copies(tmp_path):
    train, val = made_up(300, 1), made_up(100, 2)
    short = "A remark of three lines is repeated word for word on both sides."
    yes = write_splits(tmp_path / "yes", ByteTokenizer(), [*train, "Yes."], [*val, "yes"])
    assert report(yes)[1] == []
    _, warnings = report(write_splits(tmp_path / "both", ByteTokenizer(), [*train, short], [*val, short.upper()]))
    assert [warning[:45] for warning in warnings] == ["1 of 101 validation documents are also traini"]


def test_copies_of_training_documents_are_repeated_text(tmp_path):
    train = made_up(300, 1)
    _, warnings = report(write_splits(tmp_path / "d", ByteTokenizer(), [*train, *train[100:200]], made_up(100, 2)))
    assert len(warnings) == 1 and re.fullmatch(r"2\d% of the training text is repeated: try --dedup", warnings[0])


def test_dedup_does_what_the_advice_says(tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    for i, note in enumerate(made_up(120) * 2):
        (notes / f"{i:03}.txt").write_text(note)
    kinds = {}
    for dedup in (False, True):
        prepare([str(notes)], tmp_path / str(dedup), "bytes", 0.2, dedup=dedup, say=lambda text: None)
        kinds[dedup] = any("try --dedup" in warning for warning in report(tmp_path / str(dedup))[1])
    assert kinds == {False: True, True: False}


def two_bpes(tmp_path, text):
    """Two byte-pair encodings of as many tokens, trained on different halves of a text, and data of the first."""
    halves = text[: len(text) // 2], text[len(text) // 2 :].replace("king", "queen").replace("anger", "love")
    for name, half in zip("ab", halves, strict=True):
        (tmp_path / f"{name}.txt").write_text(half)
    a, b = (train([str(tmp_path / f"{name}.txt")], 330) for name in "ab")
    assert a.vocab_size == b.vocab_size == 330
    return write_splits(tmp_path / "d", a, text.split("\n\n")[:400], text.split("\n\n")[400:]), b


def test_tokens_of_another_tokenizer_are_found_and_nothing_else_is_said_of_them(tmp_path, text):
    directory, other = two_bpes(tmp_path, text)
    assert not any("another tokenizer" in warning for warning in report(directory)[1])
    other.save(directory)
    (warning,) = report(directory)[1]
    assert re.fullmatch(
        r"only \d+% of the tokens are the same after decoding .* another tokenizer made these tokens; .*", warning
    )


def test_a_tokenizer_of_more_tokens_than_the_datas_is_another_one(tmp_path):
    directory = write_splits(
        tmp_path / "d", CharTokenizer.train("".join(made_up(400)) + "\n"), made_up(300), made_up(9)
    )
    ByteTokenizer().save(directory)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not the tokenizer of the tokens"):
        report(directory)


def test_tokens_that_the_tokenizer_does_not_have_are_one_line(tmp_path, text, capsys):
    directory, _ = two_bpes(tmp_path, text)
    ByteTokenizer().save(directory)
    with pytest.raises(SystemExit) as stopped:
        main(["check-data", str(directory)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert "tokenizer.json is not the tokenizer of the tokens" in error


@pytest.mark.parametrize("share", [0.0, 0.57])
def test_unknown_tokens_are_counted(tmp_path, share):
    chance, known = random.Random(0), [f"w{i}" for i in range(50)]
    word = lambda: "strange" if chance.random() < share else chance.choice(known)  # noqa: E731
    texts = [" ".join(word() for _ in range(100)) for _ in range(400)]
    vocab = {token: i for i, token in enumerate([*known, "[UNK]", "</s>"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    _, warnings = report(write_splits(tmp_path / "d", HFTokenizer(tokenizer), texts[:300], texts[300:]))
    assert any(re.match(r"5[678]% of the tokens are '\[UNK\]'", warning) for warning in warnings) == bool(share)
    assert not any("another tokenizer" in warning for warning in warnings)


@pytest.mark.parametrize("strange, found", [(0.0, False), (0.005, False), (0.05, True)])
def test_binary_text_is_told_by_its_control_characters(tmp_path, noise, strange, found):
    noise[np.random.default_rng(1).random(len(noise)) < strange] = 0
    _, warnings = report(random_data(tmp_path / "d", noise[:250_000], noise[250_000:]))
    assert [warning.split("%")[1][:33] for warning in warnings] == [" of the characters are control ch"] * found


@pytest.mark.parametrize("tokenizer", ["char", "gpt2"])
def test_tiny_shakespeare_has_no_copies_and_no_leaks(tmp_path, shakespeare, gpt2_files, tokenizer):
    writer.write(tmp_path / "data", shakespeare.read_text(), tokenizer, 0.1, "made up")
    assert report(tmp_path / "data")[1] == []


def test_pythons_standard_library_has_nothing_to_warn_of(tmp_path):
    python_stdlib.prepare(tmp_path / "data", 1024, say=lambda text: None)
    assert report(tmp_path / "data")[1] == []


@pytest.mark.parametrize("tokenizer", ["bytes", "char"])
def test_conversations_are_not_taken_for_another_tokenizers(tmp_path, tokenizer):
    inputs = conversations.write(tmp_path / "in.jsonl", conversations.talks())
    prepare_chat([inputs], tmp_path / "data", tokenizer, 128, say=lambda text: None)
    shown, warnings = report(tmp_path / "data", block_size=128)
    assert "<|im_" in shown and not any("another tokenizer" in warning for warning in warnings)
