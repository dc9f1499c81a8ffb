"""Which text is for validation: whole documents, no split empty, and nothing moves as data grow."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import documents, put, silent, tokens, write_jsonl

from data_prep import documents as reading
from data_prep import text
from data_prep.documents import Corpus, Document
from data_prep.split import Split
from nanogpt.data.tokenizer import EOT, ByteTokenizer


def lines(chance: random.Random, size: int) -> str:
    """A text of `size` characters in lines that no other text has."""
    found = ""
    while len(found) < size:
        words = chance.choices(["king", "queen", "hearts", "speak", "anger"], k=5)
        found += " ".join(words) + f" {chance.random()}\n"
    return found[: size - 1] + "\n"


def save(kind: str, folder, texts: list[str]) -> list[str]:
    """The texts as notes in a folder or as records, and the inputs that mean them."""
    if kind == "records":
        folder.mkdir()
        return [write_jsonl(folder / "in.jsonl", texts)]
    for i, t in enumerate(texts):
        put(folder / f"{i:03}.txt", t)
    return [str(folder)]


def splits_of(inputs: list[str], out) -> dict[str, list[str]]:
    """The texts of each split, between the end-of-text tokens."""
    text.prepare(inputs, out, "bytes", 0.1, say=silent)
    found = {s: ByteTokenizer().decode(tokens(out, s)).split(EOT) for s in ("train", "val")}
    return {s: [t for t in texts if t] for s, texts in found.items()}


COUNTS = {"notes": (1, 2, 3, 10), "records": (2, 20)}


@pytest.mark.parametrize("kind", COUNTS)
def test_both_splits_have_text_and_none_has_a_line_of_the_other(tmp_path, kind):
    for count in COUNTS[kind]:
        for draw in range(5):
            chance = random.Random(1000 * count + draw)
            texts = [lines(chance, chance.randint(300, 3000)) for _ in range(count)]
            folder = tmp_path / f"{count}-{draw}"
            found = splits_of(save(kind, folder, texts), tmp_path / f"{count}-{draw}.data")
            both = found["train"] + found["val"]
            assert min(sum(map(len, found[s])) for s in found) >= 30
            assert sorted("".join(both)) == sorted("".join(texts))
            train, val = ({line for t in ts for line in t.splitlines()} for ts in found.values())
            assert not {line for line in train & val if " 0." in line}
            assert len([t for t in both if t not in texts]) == (2 if count == 1 else 0)  # cut ones


class Records(Corpus):
    """A corpus of records that are in memory."""

    def __init__(self, texts: list[str]):
        self.found = [Document("", t) for t in texts]

    def documents(self):
        return iter(self.found)

    def sides(self, fraction: float) -> list[bool]:
        divided = Split(self, fraction)
        return [divided.boundary(document.text) == 0 for document in self.found]


WORDS = st.lists(st.text("abcdef", min_size=1, max_size=8), unique=True, min_size=2, max_size=40)
OTHERS = st.lists(st.text("ghijkl", min_size=1, max_size=8), unique=True)
FRACTIONS = st.sampled_from([0.001, 0.1, 0.5, 0.9])


@settings(deadline=None)
@given(WORDS, OTHERS, FRACTIONS)
def test_from_two_documents_on_none_moves_when_others_follow(texts, more, fraction):
    assert Records(texts + more).sides(fraction)[: len(texts)] == Records(texts).sides(fraction)


def many(chance: random.Random, count: int, least: int, most: int) -> list[str]:
    return [lines(chance, chance.randint(least, most)) for _ in range(count)]


GROWING = {
    "a book and notes": (lambda c: [lines(c, 70_000), *many(c, 20, 1000, 1000)], (1, 2, 3, 6, 21)),
    "notes": (lambda c: many(c, 40, 300, 3000), (2, 3, 5, 10, 40)),
    "records": (lambda c: [f"{i} {t}" for i, t in enumerate(documents(300))], (2, 3, 10, 50, 300)),
}


@pytest.mark.parametrize("what", GROWING)
def test_text_stays_in_its_split_when_documents_are_added(tmp_path, monkeypatch, what):
    monkeypatch.setattr(reading, "PIECE", 1 << 14)  # so that a book is long
    make, counts = GROWING[what]
    texts, old = make(random.Random(0)), {"train": set(), "val": set()}
    for count in counts:
        inputs = save(what, tmp_path / str(count), texts[:count])
        found = splits_of(inputs, tmp_path / f"{count}.data")
        parts = (lambda t: [t]) if what == "records" else str.splitlines
        new = {s: {part for t in found[s] for part in parts(t)} for s in found}
        assert old["val"] <= new["val"] and old["train"] <= new["train"]
        old = new
