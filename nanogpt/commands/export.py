"""`nanogpt export RUN --to DIR`: a directory that transformers loads."""

from argparse import ArgumentParser

from nanogpt.commands.options import add_export_options, add_run, export_options, show
from nanogpt.hub.export import export


def add_arguments(command: ArgumentParser) -> None:
    add_run(command)
    command.add_argument("--to", required=True, metavar="DIR", help="the directory, which must not exist yet")
    add_export_options(command)


def run(args) -> None:

    export(args.RUN, args.to, say=show, **export_options(args))
