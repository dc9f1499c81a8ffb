"""`nanogpt check-data DIR`: what a data directory holds, and what will go wrong with it."""

from argparse import ArgumentParser

from nanogpt.cli.options import add_json, show, show_json
from nanogpt.data.meta import read_meta
from nanogpt.extras.check_data import examine
from nanogpt.run.flags import within


def add_arguments(command: ArgumentParser) -> None:
    command.add_argument("DIR", help="a data directory")
    command.add_argument(
        "--block_size", type=within(int, 1, 2**24), default=256, metavar="N", help="context of the model to be trained"
    )
    size = "of the model to be trained; the default is that of recipes/shakespeare.py"
    command.add_argument("--parameters", type=within(int, 1, 10**13), default=763_264, metavar="N", help=size)
    command.add_argument("--sha256", action="store_true", help="compare the files with what was written")
    add_json(command)


def run(args) -> None:
    say = (lambda text: None) if args.json else show
    warnings = examine(args.DIR, args.block_size, args.parameters, args.sha256, say=say)
    if args.json:
        show_json({"data": args.DIR, "warnings": warnings, **read_meta(args.DIR)})
