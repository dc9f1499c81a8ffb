"""`nanogpt page RUN --to DIR`: a static page that runs the model in the browser."""

from argparse import ArgumentParser

from nanogpt.cli.options import add_export_options, add_run, export_options, show, utf8
from nanogpt.extras.page import to_page
from nanogpt.run.errors import waiting


def add_arguments(command: ArgumentParser) -> None:
    add_run(command)
    command.add_argument("--to", "--out", required=True, metavar="DIR", help="the directory, which must not exist yet")
    command.add_argument("--prompt", type=utf8, metavar="TEXT", help="what stands on the page at first")
    add_export_options(command)


def run(args) -> None:
    with waiting(f"writing a page of {args.RUN}", show):
        to_page.write(args.RUN, args.to, prompt=args.prompt, say=show, **export_options(args))
