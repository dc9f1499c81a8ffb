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

WHAT = "an out directory (best, else last), a checkpoint in one, or a transformers model"
SHARED = {
    "RUN": {"help": WHAT},
    "RUNS": {"help": f"one or several; each is {WHAT}", "nargs": "+", "metavar": "RUN"},
    "RECIPE": {"help": "a recipe, such as recipes/shakespeare.py"},
    "FLAGS": {"help": "its flags, such as --n_layer=8", "nargs": argparse.REMAINDER},
    "--checkpoint": {"help": "best, last or step-N; default: best, else last", "metavar": "WHICH"},
    "--device": {"help": "auto, cpu, cuda or mps", "default": "auto"},
    "--trust_recipe": {
        "help": "a Python file to run, with the class that a RUN was trained as (make_model)",
        "metavar": "FILE",
    },
    "--json": {"help": "print the result as one line of JSON", "action": "store_true"},
    "--precision": {
        "help": "auto: the GPU's fastest on CUDA, else fp32",
        "default": "auto",
        "choices": ("auto", "fp32", "bf16", "fp16"),
    },
    "--to": {"help": "where to write; must not exist", "metavar": "PATH", "required": True},
    "--port": {"help": "local port; default: a usual one", "type": within(int, 0, 65_535)},
}


def add_shared(command: argparse.ArgumentParser, *names: str) -> None:
    """Adds arguments of SHARED."""
    for name in names:
        command.add_argument(name, **SHARED[name])


def add_number(command, flag: str, kind: type, low: float, high: float, default, help: str) -> None:
    """Adds a flag for a number from `low` to `high`."""
    limits = within(kind, low, high)
    command.add_argument(flag, type=limits, default=default, metavar="N", help=help)


def extra(name: str):
    """The module nanogpt.extras.NAME, imported by name: without it only its command fails."""
    return import_module(f"nanogpt.extras.{name}")


def load_run(args, run: str, **options) -> tuple:
    """`nanogpt.hub.load.load`, with the command's --device, --checkpoint and --trust_recipe."""
    from nanogpt.hub.load import load

    return load(
        run,
        pick_device(args.device),
        which=args.checkpoint,
        say=note,
        trust_recipe=args.trust_recipe,
        **options,
    )


def run_recipe(recipe: str, flags: list[str]) -> None:
    """Runs a recipe in this process, as `python RECIPE flags` would."""
    sys.argv = [recipe, *flags]
    sys.path.insert(0, str(Path(recipe).resolve().parent))
    runpy.run_path(recipe, run_name="__main__")


def require_recipe(recipe: str) -> None:
    """Raises ValueError unless it is a Python file."""
    if Path(recipe).suffix != ".py" or not Path(recipe).is_file():
        raise ValueError(
            f"{recipe} is not a Python file: name a recipe, such as recipes/shakespeare.py"
        )


def pick_device(name: str) -> str:
    """Resolves `auto`. Raises ValueError for a device that this machine does not have."""
    import torch

    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [device for device, available in has.items() if available]
    if name not in ("auto", *present):
        raise ValueError(
            f"device={name!r} is not one of {', '.join(present)}, which this machine has"
        )
    return present[0] if name == "auto" else name


def show(text: str) -> None:
    """Prints text of unknown origin, with control characters made visible."""
    print(visible(text), flush=True)


def show_json(value: object) -> None:
    """Prints a result for programs: one line of JSON in ASCII."""
    print(json.dumps(plain(value)), flush=True)


def note(text: str) -> None:
    """Prints a remark on stderr."""
    print(f"note: {visible(text)}", file=sys.stderr)
