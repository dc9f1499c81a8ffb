"""Divides a corpus into training and validation text; documents stay when others are added.

A document is for validation if the hash of its text is below `val_fraction`. A long document, or
one that outweighs all other files, is cut once instead, and its end is for validation, as in
nanoGPT. So is a single document. If the hashes put the first two documents into the same split, one
of them moves to the other: no split is ever empty, and nothing has to move when a third document is
added.
"""

from itertools import islice

from data_prep import documents
from data_prep.documents import Corpus, Document

MOST = 1000  # documents read to find two that differ


class Split:
    """Says where each document of a corpus is divided."""

    def __init__(self, corpus: Corpus, val_fraction: float):
        """Reads documents until two differ; moves or cuts one if a split would be empty."""
        self.corpus, self.val_fraction = corpus, val_fraction
        self.moved: dict[int, str] = {}  # the side of those (by digest) that are moved
        found: dict[int, Document] = {}
        self.several = False  # whether there are several documents
        for document in islice(corpus.documents(), MOST):
            self.several = bool(found)
            found[document.digest] = document
            if len(found) == 2:
                break
        sides = {self.side(document) for document in found.values()}
        by_length = sorted(found, key=lambda digest: (len(found[digest].text), digest))
        if len(found) == 1:
            self.moved[by_length[0]] = "cut"
        elif sides == {"train"}:
            self.moved[by_length[0]] = "val"
        elif sides == {"val"}:
            self.moved[by_length[1]] = "train"

    def side(self, document: Document) -> str:
        """train, val, or cut."""
        if document.digest in self.moved:
            return self.moved[document.digest]
        if len(document.text) > documents.PIECE or self.corpus.outweighs(document.file):
            return "cut"
        return "val" if document.digest < self.val_fraction * 2**64 else "train"

    def boundary(self, document: Document) -> int:
        """How many characters of a document, from its beginning, are for training."""
        side, length = self.side(document), len(document.text)
        if side == "cut":  # both parts of a short document get at least two characters
            cut = max(int(length * (1 - self.val_fraction)), 2)
            return max(min(cut, length - 2), 0)
        return length if side == "train" else 0
