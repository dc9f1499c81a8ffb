"""`nanogpt compare RUN RUN`: settings that differ, losses by equal steps, tokens and time."""

from argparse import ArgumentParser
from pathlib import Path

from nanogpt.cli.options import add_json, show, show_json
from nanogpt.run.compare import compare, verdict


def add_arguments(command: ArgumentParser) -> None:
    command.add_argument("RUN", nargs="+", help="out directories; those that differ in their seed are one column")
    add_json(command)


def run(args) -> None:
    runs = [Path(run) for run in args.RUN]
    if args.json:
        show_json(verdict(runs))
    else:
        show(compare(runs))
