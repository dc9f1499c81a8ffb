"""Arguments and output that several commands share. Imports torch only when a command runs."""

import argparse
import json
import runpy
import sys
from importlib import import_module
from pathlib import Path

from nanogpt.data.files import plain
from nanogpt.run.errors import visible
from nanogpt.run.parser import within

TO_UTF8 = "convert it, for instance with iconv -f WINDOWS-1252 -t UTF-8"


def extra(name: str):
    """The module nanogpt.extras.NAME, imported by name: without it only its command fails."""
    return import_module(f"nanogpt.extras.{name}")


def add_number(command, flag: str, kind: type, low: float, high: float, default, help: str) -> None:
    """Adds a flag for a number from `low` to `high`."""
    command.add_argument(
        flag, type=within(kind, low, high), default=default, metavar="N", help=help
    )


def add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "RUN",
        help="an out directory (best, else last), a checkpoint in one, or a transformers model",
    )
    add_checkpoint(command)


def add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--checkpoint", metavar="WHICH", help="best, last or step-N; default: best, else last"
    )


def add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print the result as one line of JSON")


def add_port(command: argparse.ArgumentParser) -> None:
    add_number(command, "--port", int, 0, 65_535, None, "local port; default: a usual one")


def add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("RECIPE", help="a recipe, such as recipes/shakespeare.py")
    command.add_argument("FLAGS", nargs=argparse.REMAINDER, help="its flags, such as --n_layer=8")


def require_recipe(recipe: str) -> None:
    if Path(recipe).suffix != ".py" or not Path(recipe).is_file():
        raise ValueError(
            f"{recipe} is not a Python file: name a recipe, such as recipes/shakespeare.py"
        )


def run_recipe(recipe: str, flags: list[str]) -> None:
    """Runs a recipe in this process, as `python RECIPE flags` would."""
    sys.argv = [recipe, *flags]
    sys.path.insert(0, str(Path(recipe).resolve().parent))
    try:
        runpy.run_path(recipe, run_name="__main__")
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}") from None


def utf8(text: str) -> str:
    """For argparse's `type=`: strips a byte order mark; text that is not UTF-8 is an error."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text:.40}: must be UTF-8 text: {TO_UTF8}") from None
    return text.removeprefix("\ufeff")


def pick_device(name: str) -> str:
    """Resolves `auto`. Raises ValueError for a device that this machine does not have."""
    import torch

    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    if torch.cuda.is_available():
        present.insert(0, "cuda")
    if name == "auto":
        return present[0]
    if name not in present:
        raise ValueError(
            f"device={name!r} is not one of {', '.join(present)}, which this machine has"
        )
    return name


def show(text: str) -> None:
    """Prints text of unknown origin, with control characters made visible."""
    print(visible(text), flush=True)


def show_json(value: object) -> None:
    """Prints a result for programs: one line of JSON in ASCII."""
    print(json.dumps(plain(value)), flush=True)


def note(text: str) -> None:
    print(f"note: {visible(text)}", file=sys.stderr)
