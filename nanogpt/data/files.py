"""Reads small files of unknown origin: regular files only, and JSON objects of limited size."""

import json
import math
from pathlib import Path

MOST_JSON = 256 << 20  # bytes; the largest tokenizers have some 30 MB


def require_regular(path: Path) -> None:
    """Raises ValueError for a FIFO, a device or a directory, which may block for ever; OSError if there is no file."""
    if path.stat() and not path.is_file():
        raise ValueError(f"{path} is not a regular file")


def read_json(path: Path) -> dict:
    """Reads a JSON object. Raises ValueError if the file is something else, too large, or cannot be read."""
    try:
        require_regular(path)
        if path.stat().st_size > MOST_JSON:
            raise ValueError(f"it has more than {MOST_JSON >> 20} MiB")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error})") from None


def plain(value: object) -> object:
    """`value` for JSON, which has no infinities and no NaN: they become null."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_count(value: object, least: int = 0) -> bool:
    """Whether a value from a JSON file is an integer of at least `least` that fits into int64."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 63
