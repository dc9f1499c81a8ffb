"""Options that several commands share."""

import sys
from argparse import ArgumentParser

from nanogpt.config import visible, within

SEEDS = within(int, 0, 2**63 - 1)  # numbers that torch and numpy take as a seed


def add_run(command: ArgumentParser) -> None:
    command.add_argument("RUN", help="an out directory (best, else last), a checkpoint in one, or a transformers model")


def add_device(command: ArgumentParser) -> None:
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")


def add_port(command: ArgumentParser) -> None:
    command.add_argument("--port", type=within(int, 0, 65_535), metavar="N", help="local port; default: a free one")


def pick_device(name: str) -> str:
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [device for device, there in available.items() if there]
    if name == "auto":
        return present[0]
    if name not in present:
        raise ValueError(f"device={name!r} is not one of {', '.join(present)}, which this machine has")
    return name


def show(text: str) -> None:
    """Prints what may hold text of others, with its control characters made visible."""
    print(visible(text), flush=True)


def note(text: str) -> None:
    print(f"note: {visible(text)}", file=sys.stderr)


def add_export_options(command: ArgumentParser) -> None:
    command.add_argument("--checkpoint", metavar="WHICH", help="best, last or step-N; default: best, else last")
    command.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of weights")
    command.add_argument("--license", default="unknown", help="for the model card, such as mit or apache-2.0")


def export_options(args) -> dict:
    import torch

    return {"which": args.checkpoint, "dtype": getattr(torch, args.dtype), "license": args.license}
