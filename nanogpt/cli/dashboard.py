"""`nanogpt dashboard [OUT…]`: the page that shows runs."""

from argparse import ArgumentParser

from nanogpt.cli.options import add_port
from nanogpt.extras.dashboard.server import serve


def add_arguments(command: ArgumentParser) -> None:
    command.add_argument("OUT", nargs="*", default=["out"], help="out directories, or directories that hold some")
    add_port(command)


def run(args) -> None:

    serve(args.OUT, args.port)
