"""`nanogpt show-batch RUN --step N`: the text that a step trains on."""

from argparse import ArgumentParser
from pathlib import Path

import numpy as np

from nanogpt import checkpoint
from nanogpt.cli.options import add_checkpoint, show
from nanogpt.data.mixture import open_data, read_shares
from nanogpt.data.tokenizer import load_tokenizer
from nanogpt.hub.load import choose
from nanogpt.run.flags import within


def add_arguments(command: ArgumentParser) -> None:
    command.add_argument("RUN", help="an out directory, or one checkpoint in it")
    add_checkpoint(command)
    command.add_argument(
        "--step", type=within(int, 1, 10**9), required=True, metavar="N", help="number of the step; the first is 1"
    )
    command.add_argument("--data", metavar="DIR", help="the data directory; default: the run's")


def run(args) -> None:
    """Prints the micro-batches of a step, sequence by sequence; they do not depend on the number of processes."""
    config, trained = checkpoint.load_configs(choose(Path(args.RUN), args.checkpoint))
    directory = args.data or trained.data
    data = open_data(directory, "train", config.block_size, config.vocab_size)
    first_directory, *others = read_shares(directory)
    tokenizer = load_tokenizer(first_directory)
    for index in range(trained.gradient_accumulation_steps):
        number = (args.step - 1) * trained.gradient_accumulation_steps + index
        samples = number * trained.batch_size + np.arange(trained.batch_size)
        starts = data.starts(trained.seed, samples)
        inputs, targets = data.batch(trained.seed, samples[0], trained.batch_size)
        for row, (x, y) in enumerate(zip(inputs.tolist(), targets.tolist(), strict=True)):
            first = starts[row]
            # the directories of a mixture have epochs of their own
            epoch = "" if others else f", epoch {samples[row] // data.windows_per_epoch + 1}"
            show(
                f"step {args.step}, micro-batch {index}, sequence {row}: tokens {first:,} to {first + len(x):,} "
                f"of {directory}{epoch}"
            )
            show(tokenizer.decode([*x, y[-1]]))
