"""`nanogpt launch-check`: what the launcher resolves to, without training."""

from argparse import ArgumentParser

from nanogpt.commands.options import add_device
from nanogpt.config import within
from nanogpt.runtime.device import check


def add_arguments(command: ArgumentParser) -> None:
    add_device(command)
    command.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="of a run")
    command.add_argument(
        "--timeout", type=within(float, 1, 1e6), default=60, metavar="S", help="seconds to wait for other processes"
    )


def run(args) -> None:
    """To be started as a recipe is: `accelerate launch … -m nanogpt.commands launch-check`."""

    check(args.device, args.precision, args.timeout)
