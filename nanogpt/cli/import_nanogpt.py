"""`nanogpt import-nanogpt CKPT --data DIR`: continues training from a nanoGPT checkpoint."""

from argparse import ArgumentParser
from pathlib import Path

from nanogpt.cli.options import show
from nanogpt.hub.from_nanogpt import import_checkpoint, resume_command


def add_arguments(command: ArgumentParser) -> None:
    command.add_argument("CKPT", help="nanoGPT's ckpt.pt")
    command.add_argument("--data", required=True, metavar="DIR", help="the data directory it was trained on")
    command.add_argument("--out_dir", default="out/from_nanogpt", metavar="DIR", help="the run to write")
    command.add_argument("--weights_only", action="store_true", help="do not import the optimizer state")


def run(args) -> None:
    """Writes the checkpoint and prints how to continue with it."""
    saved = import_checkpoint(Path(args.CKPT), Path(args.data), Path(args.out_dir), args.weights_only)
    show(f"{args.CKPT} is now {saved}\n")
    show(f"next:  nanogpt sample {args.out_dir}\n       nanogpt eval {args.out_dir}\n       {resume_command(saved)}")
