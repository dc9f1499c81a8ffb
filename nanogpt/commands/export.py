"""`nanogpt export RUN --to DIR`: a directory that transformers loads, or a checkpoint of nanoGPT's."""

from argparse import ArgumentParser

from nanogpt.commands.options import add_export_options, add_run, export_options, show
from nanogpt.config import waiting
from nanogpt.hub.export import export


def add_arguments(command: ArgumentParser) -> None:
    add_run(command)
    command.add_argument(
        "--to", "--out", required=True, metavar="PATH", help="the directory or file, which must not exist yet"
    )
    what = "transformers: a directory; nanogpt: a ckpt.pt without optimizer state"
    command.add_argument("--format", default="transformers", choices=("transformers", "nanogpt"), help=what)
    add_export_options(command)


def run(args) -> None:
    with waiting(f"exporting {args.RUN}", show):
        export(args.RUN, args.to, format=args.format, say=show, **export_options(args))
