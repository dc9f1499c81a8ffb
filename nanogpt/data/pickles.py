"""nanoGPT's `meta.pkl` and `ckpt.pt`, read with guards. No other file of the project reads a pickle.

A pickle is a program: reading one the ordinary way runs whatever its author put in. `meta.pkl` needs nothing but dicts,
strings and numbers, so here every name that a pickle asks for is refused. `ckpt.pt` needs tensors as well, and is read
by torch's own restricted unpickler (`weights_only=True`), which knows those that rebuild tensors and no others.
"""

import pickle
import re
import warnings
from pathlib import Path

import torch

from nanogpt.data.files import require_regular


class RefusedError(Exception):
    pass


class PlainUnpickler(pickle.Unpickler):
    """Admits what a pickle can hold without naming a class or a function: dicts, lists, strings, numbers."""

    def find_class(self, module: str, name: str):
        raise RefusedError(f"it asks for {module}.{name}, and nothing but plain values is admitted")


def read_characters(path: Path) -> str:
    """The characters of a character-level `meta.pkl`, in the order of their ids. Raises ValueError if it is no such."""
    require_regular(path)
    try:
        with open(path, "rb") as file:
            meta = PlainUnpickler(file).load()
    except OSError:
        raise
    except RefusedError as error:
        raise ValueError(f"{path} is refused: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(f"{path} is damaged, or no pickle ({first_line(error)})") from None
    itos = meta.get("itos") if isinstance(meta, dict) else None
    if not isinstance(itos, dict) or not itos or set(itos) != set(range(len(itos))):
        raise ValueError(
            f"{path} is not what nanoGPT writes: it needs 'itos', a dict from ids 0, 1, 2, … to characters"
        )
    characters = [itos[i] for i in range(len(itos))]
    if not all(isinstance(c, str) and len(c) == 1 for c in characters) or len(set(characters)) < len(characters):
        raise ValueError(f"{path} is not what nanoGPT writes: 'itos' must name every character once, and nothing else")
    return "".join(characters)


def read_checkpoint(path: Path) -> dict:
    """The dict in a nanoGPT `ckpt.pt`, with its tensors on the CPU. Raises ValueError if it asks for anything else."""
    require_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an old or strange pickle: it is read or refused all the same
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"it asks for {asked[1]}, and nothing but tensors and plain values is admitted"
            raise ValueError(f"{path} is refused: {reason}") from None
        raise ValueError(f"{path} is damaged, or nothing that torch saved ({type(error).__name__})") from None
    missing = [
        key for key in ("model", "model_args", "iter_num") if not (type(checkpoint) is dict and key in checkpoint)
    ]
    if missing:
        raise ValueError(f"{path} is not a nanoGPT checkpoint: {', '.join(missing)} missing from it")
    return checkpoint


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300].rstrip(" :")
