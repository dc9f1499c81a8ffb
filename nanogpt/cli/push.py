"""`nanogpt push RUN USER/NAME`: an export on the Hub, or with --space a page that runs the model."""

from argparse import ArgumentParser

from nanogpt.cli.options import add_export_options, add_run, export_options, show
from nanogpt.extras.page import to_page
from nanogpt.hub import export
from nanogpt.run.errors import waiting


def add_arguments(command: ArgumentParser) -> None:
    add_run(command)
    command.add_argument("REPO", metavar="USER/NAME", help="the repository, which is made if there is none")
    command.add_argument("--private", action="store_true", help="make it private, if it is made")
    command.add_argument("--space", action="store_true", help="a static Space: the page that `nanogpt page` writes")
    command.add_argument("--revision", metavar="BRANCH", help="a branch to push to; default: main")
    add_export_options(command)


def run(args) -> None:
    with waiting(f"exporting {args.RUN}", show):
        push = to_page.push if args.space else export.push
        push(args.RUN, args.REPO, private=args.private, revision=args.revision, say=show, **export_options(args))
