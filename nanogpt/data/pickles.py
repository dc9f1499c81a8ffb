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

from nanogpt.data.files import first_line, require_regular


class RefusedError(Exception):
    """A pickle that asks for a class or a function."""


class PlainUnpickler(pickle.Unpickler):
    """Allows dicts, lists, strings and numbers; refuses classes and functions."""

    def find_class(self, module: str, name: str):
        raise RefusedError(f"it asks for {module}.{name}, but only plain values are allowed")


def read_characters(path: Path) -> str:
    """The characters of a character-level `meta.pkl`, by their ids. Raises ValueError."""
    require_regular(path)
    try:
        with open(path, "rb") as file:
            meta = PlainUnpickler(file).load()
    except OSError:
        raise
    except RefusedError as error:
        raise ValueError(f"{path} is refused: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(f"{path} is damaged, or not a pickle ({first_line(error)})") from None
    itos = meta.get("itos") if isinstance(meta, dict) else None
    if isinstance(itos, dict) and itos and set(itos) == set(range(len(itos))):
        characters = [itos[i] for i in range(len(itos))]
        single = all(isinstance(c, str) and len(c) == 1 for c in characters)
        if single and len(set(characters)) == len(characters):
            return "".join(characters)
    needs = "it needs 'itos', a dict from ids 0, 1, … to different characters"
    raise ValueError(f"{path} is not what nanoGPT writes: {needs}")


def read_checkpoint(path: Path) -> dict:
    """The dict in a nanoGPT `ckpt.pt`, with its tensors on the CPU. Raises ValueError."""
    require_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"it asks for {asked[1]}, but only tensors and plain values are allowed"
            raise ValueError(f"{path} is refused: {reason}") from None
        name = type(error).__name__
        raise ValueError(f"{path} is damaged, or was not saved by torch ({name})") from None
    found = checkpoint if type(checkpoint) is dict else {}
    missing = [key for key in ("model", "model_args", "iter_num") if key not in found]
    if missing:
        names = ", ".join(missing)
        raise ValueError(f"{path} is not a nanoGPT checkpoint: {names} missing from it")
    return checkpoint
