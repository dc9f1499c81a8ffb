"""`nanogpt compare RUN RUN`: settings that differ, losses by equal steps, tokens and time."""

from argparse import ArgumentParser
from pathlib import Path

from nanogpt.commands.options import show
from nanogpt.view.compare import compare


def add_arguments(command: ArgumentParser) -> None:
    command.add_argument("RUN", nargs="+", help="out directories; those that differ in their seed are one column")


def run(args) -> None:

    show(compare([Path(run) for run in args.RUN]))
