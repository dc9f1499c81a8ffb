"""`nanogpt plot RUN…`: draws loss curves into a picture."""

from argparse import ArgumentParser
from pathlib import Path

from nanogpt.cli.options import show
from nanogpt.run import metrics, plot

PICTURES = (".png", ".svg", ".pdf")


def add_arguments(command: ArgumentParser) -> None:
    command.add_argument("RUN", nargs="+", help="out directories")
    command.add_argument("--out", "--to", default="curves.png", metavar="FILE", help="the picture: .png, .svg or .pdf")


def run(args) -> None:
    """Draws the picture. Raises ValueError naming a directory without metrics."""
    if Path(args.out).suffix not in PICTURES:
        raise ValueError(f"out={args.out!r} must end in {', '.join(PICTURES)}")
    for run in args.RUN:
        if not (Path(run) / metrics.METRICS).is_file():
            raise ValueError(f"{run} is not an out directory: it has no {metrics.METRICS}")
    if not plot.curves([Path(run) for run in args.RUN], Path(args.out)):
        raise ValueError(f"{', '.join(args.RUN)}: there are no measurements yet")
    show(args.out)
