"""What several commands share: how they load a RUN and print."""

import json
import sys
from importlib import import_module

import torch

from nanogpt.hub.load import load
from nanogpt.run.errors import plain, visible


def extra(name: str):
    """The module nanogpt.extras.NAME, imported by name: without it only its command fails."""
    return import_module(f"nanogpt.extras.{name}")


def load_run(args, run: str, **options) -> tuple:
    """`nanogpt.hub.load.load`, with the command's --device and --trust_recipe."""
    device = pick_device(args.device)
    return load(run, device, say=note, trust_recipe=args.trust_recipe, **options)


def pick_device(name: str) -> str:
    """Resolves `auto`. Raises ValueError for a device that this machine does not have."""
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [device for device, available in has.items() if available]
    if name not in ("auto", *present):
        raise ValueError(f"device={name!r} is not one of this machine's: {', '.join(present)}")
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
