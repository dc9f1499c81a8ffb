"""Divides a corpus into training and validation text; adding documents moves hardly any others.

A document goes to validation if the hash of its text is below `val_fraction`. A long one, or a
single one, is cut once instead, and its end goes to validation, as in nanoGPT. If the hashes put
the first two documents into the same split, one of them moves to the other, so no split is ever
empty, and nothing has to move when a third document is added.
"""

import hashlib

from data_prep import documents
from data_prep.documents import Corpus


class Split:
    """Says where each document of a corpus is divided."""

    def __init__(self, corpus: Corpus, val_fraction: float | None = None):
        """Reads documents until two differ; moves or cuts one if a split would be empty.

        By default `val_fraction` is smaller for a large corpus. A smaller one takes a subset of the
        same documents, so none moves to validation as the data grows. Raises ValueError.
        """
        if val_fraction is None:
            val_fraction = 0.1 if corpus.size < 100e6 else 0.01 if corpus.size < 10e9 else 0.001
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction={val_fraction} must lie between 0 and 1")
        self.val_fraction = val_fraction
        self.moved: dict[str, str] = {}  # the side of texts that are moved
        self.several = False  # whether there are several documents
        first: list[str] = []  # two texts that differ
        for text in corpus.documents():
            self.several = bool(first)
            if text not in first:
                first.append(text)
            if len(first) == 2:
                break
        sides = {self.side(text) for text in first}
        first.sort(key=lambda text: (len(text), digest(text)))
        if len(first) == 1:
            self.moved[first[0]] = "cut"
        elif sides == {"train"}:
            self.moved[first[0]] = "val"
        elif sides == {"val"}:
            self.moved[first[1]] = "train"

    def side(self, text: str) -> str:
        """train, val, or cut."""
        if text in self.moved:
            return self.moved[text]
        if len(text) > documents.PIECE:
            return "cut"
        return "val" if digest(text) < self.val_fraction * 2**64 else "train"

    def boundary(self, text: str) -> int:
        """How many characters of a document, from its beginning, are for training."""
        side, length = self.side(text), len(text)
        if side == "cut":  # both parts of a short document get at least two characters
            cut = max(int(length * (1 - self.val_fraction)), 2)
            return max(min(cut, length - 2), 0)
        return length if side == "train" else 0


def digest(text: str) -> int:
    """A hash of 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
