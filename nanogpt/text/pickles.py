"""Reads nanoGPT's `meta.pkl` and `ckpt.pt` safely. No other module reads a pickle.

Unpickling can run arbitrary code. `meta.pkl` needs only dicts, strings and numbers, so any class or
function that it names is refused. `ckpt.pt` also needs tensors and is read by torch's restricted
unpickler (`weights_only=True`).
"""

import pickle
import re
import warnings
from pathlib import Path

import torch

from nanogpt.data.files import one_line_errors


class PlainUnpickler(pickle.Unpickler):
    """Allows dicts, lists, strings and numbers; refuses classes and functions."""

    def find_class(self, module: str, name: str):
        raise ValueError(f"it asks for {module}.{name}, but only plain values are allowed")


def read_characters(path: Path) -> str:
    """The characters of a character-level `meta.pkl`, by their ids. Raises ValueError."""
    needs = "it needs 'itos', a dict from ids to different characters"
    with one_line_errors(f"{path} cannot be read", needs):
        with open(path, "rb") as file:
            itos = PlainUnpickler(file).load()["itos"]
        characters = "".join(itos[i] for i in range(len(itos)))
        if not 0 < len(itos) == len(characters) == len(set(characters)):
            raise ValueError("its characters differ in length, or are repeated")
    return characters


def read_checkpoint(path: Path) -> dict:
    """The dict in a nanoGPT `ckpt.pt`, with its tensors on the CPU. Raises ValueError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        asked = re.search(r"GLOBAL \S+", str(error))  # for a class or a function
        why = asked[0] if asked else type(error).__name__
        raise ValueError(f"{path} cannot be read ({why}): it may hold only tensors") from None
    if type(checkpoint) is not dict or not {"model", "model_args", "iter_num"} <= checkpoint.keys():
        needs = "it needs model, model_args and iter_num"
        raise ValueError(f"{path} is not a nanoGPT checkpoint: {needs}")
    return checkpoint
