"""Divides a corpus into training and validation text, so that a document stays where it is when others are added.

A document is for validation as a whole if the hash of its text is below `val_fraction`. One that is long, or that
outweighs all other files, is cut once instead, and its end is for validation, as in nanoGPT. If that leaves one of the
splits without text, which takes few documents, one of the first FEW goes there, by its hash as well.
"""

from itertools import islice

from data_prep import documents
from data_prep.documents import Corpus, Piece

FEW = 10  # different documents, among which the one is chosen
MOST = 1000  # documents read to find so many


class Split:
    """Where each document of a corpus is divided; `chosen` is that of an earlier `Split` of the same corpus."""

    def __init__(self, corpus: Corpus, val_fraction: float, chosen: dict | None = None):
        self.corpus, self.val_fraction = corpus, val_fraction
        # whether there are several documents, and documents (by their digest) that go elsewhere than their hash says
        self.chosen = chosen or self.choose()

    def side(self, piece: Piece) -> str:
        """train, val, or cut."""
        if piece.length > documents.PIECE or self.corpus.outweighs(piece.file):
            return "cut"
        return "val" if piece.digest < self.val_fraction * 2**64 else "train"

    def choose(self) -> dict:
        found: dict[int, str] = {}
        count, sides = 0, set()
        for count, piece in enumerate(islice(self.corpus.documents(), MOST), 1):
            found[piece.digest] = self.side(piece)
            sides = {*found.values()}
            if len(found) == FEW or (count > 1 and sides not in ({"train"}, {"val"})):
                break
        several = {"several": count > 1}
        if len(found) == 1:
            return several | {str(min(found)): "cut"}
        if sides == {"train"}:
            return several | {str(min(found)): "val"}
        if sides == {"val"}:
            return several | {str(max(found)): "train"}
        return several

    def boundary(self, piece: Piece) -> int:
        """How many characters of a document, from its beginning, are for training."""
        side = self.chosen.get(str(piece.digest)) or self.side(piece)
        if side == "cut":  # of a short document both parts get two characters at least
            return max(min(max(int(piece.length * (1 - self.val_fraction)), 2), piece.length - 2), 0)
        return piece.length if side == "train" else 0
