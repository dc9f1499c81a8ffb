"""Which text is for validation: whole documents, both splits never empty, and nothing moves when data grows."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts import documents, is_val, silent, tokens, write_jsonl

from data_prep import documents as reading
from data_prep import text
from data_prep.documents import Corpus, Piece, measure
from data_prep.split import Split
from nanogpt.data.tokenizer import EOT, ByteTokenizer


def lines(chance: random.Random, size: int) -> str:
    """A text of `size` characters in lines that no other text has."""
    found = ""
    while len(found) < size:
        found += " ".join(chance.choices(["king", "queen", "hearts", "speak", "anger"], k=5)) + f" {chance.random()}\n"
    return found[: size - 1] + "\n"


def notes(folder, texts: list[str]) -> list[str]:
    folder.mkdir()
    for i, t in enumerate(texts):
        (folder / f"{i:03}.txt").write_text(t)
    return [str(folder)]


def splits_of(inputs, out) -> dict[str, list[str]]:
    """The texts of each split, between the end-of-text tokens."""
    text.prepare(inputs, out, "bytes", 0.1, say=silent)
    found = {s: ByteTokenizer().decode(tokens(out, s)).split(EOT) for s in ("train", "val")}
    return {s: [t for t in texts if t] for s, texts in found.items()}


@pytest.mark.parametrize("kind, counts", [("notes", (1, 2, 3, 5, 10, 30)), ("jsonl", (2, 5, 20, 50))])
def test_both_splits_have_text_and_none_has_a_line_of_the_other(tmp_path, kind, counts):
    for count in counts:
        for draw in range(5):
            chance = random.Random(1000 * count + draw)
            texts = [lines(chance, chance.randint(300, 3000)) for _ in range(count)]
            name = f"{count}-{draw}"
            inputs = (
                notes(tmp_path / name, texts) if kind == "notes" else [write_jsonl(tmp_path / f"{name}.jsonl", texts)]
            )
            found = splits_of(inputs, tmp_path / f"{name}.data")
            assert min(sum(map(len, found[s])) for s in found) >= 30
            assert sorted("".join(found["train"] + found["val"])) == sorted("".join(texts))
            train, val = ({line for t in found[s] for line in t.splitlines(keepends=True)} for s in ("train", "val"))
            assert not {line for line in train & val if " 0." in line}
            cut = [t for t in found["train"] + found["val"] if t not in texts]
            assert len(cut) == (2 if count == 1 else 0)


def pieces(texts: list[str]) -> list[Piece]:
    return [Piece(0, i, 0, 0, t, 0, *measure([t])) for i, t in enumerate(texts)]


class Records(Corpus):
    """A corpus of records that are in memory."""

    def __init__(self, texts: list[str]):
        self.found = pieces(texts)

    def documents(self):
        return iter(self.found)

    def outweighs(self, file: int) -> bool:
        return False

    def sides(self, fraction: float) -> list[bool]:
        divided = Split(self, fraction)
        return [divided.boundary(piece) == 0 for piece in self.found]


WORDS = st.lists(st.text("abcdef", min_size=1, max_size=8), unique=True, min_size=2, max_size=40)


@given(WORDS, st.sampled_from([0.001, 0.1, 0.5, 0.9]))
def test_no_draw_of_documents_leaves_a_split_empty(texts, fraction):
    assert {*Records(texts).sides(fraction)} == {True, False}


@given(WORDS, st.lists(st.text("ghijkl", min_size=1, max_size=8), unique=True), st.sampled_from([0.01, 0.1, 0.9]))
def test_from_two_documents_on_none_moves_when_others_follow(texts, more, fraction):
    assert Records(texts + more).sides(fraction)[: len(texts)] == Records(texts).sides(fraction)


@given(WORDS, st.sampled_from([0.01, 0.1, 0.9]))
def test_at_most_one_document_goes_elsewhere_than_its_hash_says(texts, fraction):
    sides = Records(texts).sides(fraction)
    assert sum(side != is_val(t, fraction) for side, t in zip(sides, texts, strict=True)) <= 1


GROWING = {
    "a book and notes": lambda chance: [lines(chance, 70_000), *(lines(chance, 1000) for _ in range(20))],
    "books": lambda chance: [lines(chance, chance.randint(30_000, 90_000)) for _ in range(6)],
    "notes": lambda chance: [lines(chance, chance.randint(300, 3000)) for _ in range(40)],
}


@pytest.mark.parametrize("what", GROWING)
def test_text_for_validation_stays_so_when_files_are_added(tmp_path, monkeypatch, what):
    monkeypatch.setattr(reading, "PIECE", 1 << 14)  # so that a book is long
    texts, old = GROWING[what](random.Random(0)), {"train": set(), "val": set()}
    for count in (1, 2, 3, 6, 21) if what != "notes" else (2, 3, 5, 10, 40):
        found = splits_of(notes(tmp_path / str(count), texts[:count]), tmp_path / f"{count}.data")
        new = {s: {line for t in found[s] for line in t.splitlines()} for s in found}
        assert old["val"] <= new["val"]
        assert old["train"] <= new["train"]
        old = new


def test_records_stay_where_they_are_when_records_are_added(tmp_path):
    texts, old = [f"{i} {t}" for i, t in enumerate(documents(300))], {"train": set(), "val": set()}
    for count in (2, 3, 5, 10, 50, 300):
        path = write_jsonl(tmp_path / f"{count}.jsonl", texts[:count])
        new = {s: {*t} for s, t in splits_of([path], tmp_path / f"{count}.data").items()}
        assert old["val"] <= new["val"]
        assert old["train"] <= new["train"]
        old = new


def test_a_cut_document_ends_before_the_next_one(tmp_path):
    chance = random.Random(3)
    texts = [lines(chance, 20_000), lines(chance, 500), lines(chance, 500)]
    found = splits_of(notes(tmp_path / "in", texts), tmp_path / "data")
    assert found["train"][0] == texts[0][:18_000]
    assert found["val"][0] == texts[0][18_000:]
    assert sorted(found["train"][1:] + found["val"][1:]) == sorted(texts[1:])
    said = []
    text.prepare([str(tmp_path / "in")], tmp_path / "char", "char", 0.1, say=said.append)
    assert said[1].startswith("documents: ")
    assert said[1].endswith(", 1 cut once, the end for validation")


def test_copies_of_one_document_are_all_cut_in_the_same_place(tmp_path):
    note = lines(random.Random(4), 1000)
    found = splits_of([write_jsonl(tmp_path / "in.jsonl", [note] * 5)], tmp_path / "data")
    assert found == {"train": [note[:900]] * 5, "val": [note[900:]] * 5}


@pytest.mark.parametrize("fraction, side", [(0.0001, "val"), (0.9999, "train")])
def test_of_the_first_two_documents_the_longer_one_is_for_training(fraction, side):
    chosen = {"val": "b", "train": "aa"}[side]
    texts = ["aa", "aa", "b", *(str(i) for i in range(20))]
    assert Split(Records(texts), fraction).chosen == {"several": True, str(measure([chosen])[1]): side}
