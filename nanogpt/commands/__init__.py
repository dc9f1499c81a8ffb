"""The `nanogpt` command: what there is to do with a trained run.

    nanogpt sample out/shakespeare --prompt "ROMEO:"
    nanogpt eval out/shakespeare
    nanogpt compare out/a out/b
    nanogpt dashboard out
    nanogpt playground out/shakespeare
    nanogpt plot out/shakespeare out/wide --out curves.png
    nanogpt export out/shakespeare --to exports/shakespeare
    nanogpt push out/shakespeare USER/NAME
    nanogpt show-batch out/shakespeare --step 100
    nanogpt plan recipes/shakespeare.py --n_layer=8
    nanogpt check-data data/shakespeare_char
    nanogpt bench --against transformers
    accelerate launch --config_file accelerate_configs/ddp.yaml -m nanogpt.commands launch-check
    nanogpt import-nanogpt out/ckpt.pt --data data/shakespeare_char

RUN is an out directory (its best checkpoint, else its last), one checkpoint in it, or a transformers model: a directory
or a name on the Hub, such as gpt2.
"""

import argparse
import sys
from importlib import import_module

from nanogpt.config import OneLineParser, user_errors

COMMANDS = {  # name: (module, what it does)
    "sample": ("sample", "continue a prompt, streaming to the terminal"),
    "eval": ("evaluate", "loss, perplexity and bits per byte over a whole split"),
    "compare": ("compare", "settings that differ, losses by equal steps, tokens, time"),
    "dashboard": ("dashboard", "a page on this machine that shows runs, live as well"),
    "playground": (
        "playground",
        "a page on this machine to write with one or two models, and to see what each token of a text costs",
    ),
    "plot": ("plot", "draw the losses of runs into a picture"),
    "export": ("export", "write a directory that transformers loads, verified"),
    "push": ("push", "export to a repository on the Hub; what it holds besides stays"),
    "show-batch": ("show_batch", "the text that a step trains on"),
    "plan": ("plan", "what a run will take: parameters, memory, tokens, time"),
    "check-data": ("check_data", "what a data directory holds, and what will go wrong with it"),
    "bench": ("bench", "throughput beside this machine's limits, measured in one run"),
    "launch-check": ("launch_check", "what the launcher resolves to, without training"),
    "import-nanogpt": ("import_nanogpt", "go on here with a checkpoint of nanoGPT's"),
}


def main(argv: list[str] | None = None) -> None:
    """Runs one command; a user's mistake is one line and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    args = make_parser(only=argv[:1]).parse_args(argv)
    if args.command is None:
        make_parser().print_help()
        sys.exit(2)
    with user_errors():
        args.run(args)


def make_parser(only: list[str] | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; `only` those named import their modules, which keeps a start short."""
    parser = OneLineParser(prog="nanogpt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=OneLineParser)
    options = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter, "allow_abbrev": False}
    for name, (module, help) in COMMANDS.items():
        command = commands.add_parser(name, help=help, description=help, **options)
        if only is None or name in only:
            implementation = import_module(f"nanogpt.commands.{module}")
            implementation.add_arguments(command)
            command.set_defaults(run=implementation.run)
    return parser
