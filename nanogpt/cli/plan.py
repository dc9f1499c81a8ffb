"""`nanogpt plan RECIPE [flags]`: what a run will take, before it is run."""

from argparse import ArgumentParser

from nanogpt.cli.options import add_json, add_recipe, require_recipe, run_recipe


def add_arguments(command: ArgumentParser) -> None:
    add_json(command)
    add_recipe(command)


def run(args) -> None:
    """Runs the recipe with --dry_run, in this process."""
    require_recipe(args.RECIPE)
    run_recipe(args.RECIPE, ["--dry_run", *(["--json"] if args.json else []), *args.FLAGS])
