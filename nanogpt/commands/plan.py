"""`nanogpt plan RECIPE [flags]`: what a run will take, before it is run."""

import argparse
import runpy
import sys
from argparse import ArgumentParser
from pathlib import Path


def add_arguments(command: ArgumentParser) -> None:
    command.add_argument("RECIPE", help="a recipe, such as recipes/shakespeare.py")
    command.add_argument("FLAGS", nargs=argparse.REMAINDER, help="its flags, such as --n_layer=8")


def run(args) -> None:
    """Runs the recipe with --dry_run, in this process."""
    if Path(args.RECIPE).suffix != ".py" or not Path(args.RECIPE).is_file():
        raise ValueError(f"{args.RECIPE} is not a Python file: name a recipe, such as recipes/shakespeare.py")
    sys.argv = [args.RECIPE, "--dry_run", *args.FLAGS]
    sys.path.insert(0, str(Path(args.RECIPE).resolve().parent))
    try:
        runpy.run_path(args.RECIPE, run_name="__main__")
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}") from None
