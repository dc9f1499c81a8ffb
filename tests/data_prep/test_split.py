"""Which text is for validation: whole documents, no split empty, and nothing moves as data grow."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import put, silent, texts_of, write_jsonl

from data_prep import documents as reading
from data_prep import text
from data_prep.documents import Corpus
from data_prep.split import Split


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


@pytest.mark.parametrize("kind, counts", [("notes", (1, 2, 3, 10)), ("records", (2, 20))])
def test_both_splits_have_text_and_none_has_a_line_of_the_other(tmp_path, kind, counts):
    for count in counts:
        for draw in range(5):
            chance = random.Random(1000 * count + draw)
            texts = [lines(chance, chance.randint(300, 3000)) for _ in range(count)]
            folder = tmp_path / f"{count}-{draw}"
            text.prepare(save(kind, folder, texts), folder / "data", "bytes", 0.1, say=silent)
            found = texts_of(folder / "data")
            both = found["train"] + found["val"]
            assert min(sum(map(len, found[s])) for s in found) >= 30
            assert sorted("".join(both)) == sorted("".join(texts))
            train, val = ({line for t in ts for line in t.splitlines()} for ts in found.values())
            assert not {line for line in train & val if " 0." in line}
            assert len([t for t in both if t not in texts]) == (2 if count == 1 else 0)  # cut ones


class Records(Corpus):
    """A corpus of records that are in memory."""

    def __init__(self, texts: list[str]):
        self.found = texts

    def documents(self):
        return iter(self.found)

    def sides(self, fraction: float) -> list[bool]:
        divided = Split(self, fraction)
        return [divided.boundary(text) == 0 for text in self.found]


WORDS = st.lists(st.text("abcdef", min_size=1, max_size=8), unique=True, min_size=2, max_size=40)
OTHERS = st.lists(st.text("ghijkl", min_size=1, max_size=8), unique=True)
FRACTIONS = st.sampled_from([0.001, 0.1, 0.5, 0.9])


@settings(deadline=None)
@given(WORDS, OTHERS, FRACTIONS)
def test_from_two_documents_on_none_moves_when_others_follow(texts, more, fraction):
    assert Records(texts + more).sides(fraction)[: len(texts)] == Records(texts).sides(fraction)


def test_a_long_document_is_cut_once_whatever_its_hash(monkeypatch):
    monkeypatch.setattr(reading, "PIECE", 20)
    texts = [letter * 40 for letter in "abcdef"]
    divided = Split(Records(texts), 0.25)
    assert [divided.boundary(text) for text in texts] == [30] * 6
