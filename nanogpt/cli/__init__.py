"""The `nanogpt` command: trains models and works with them.

    nanogpt train recipes/shakespeare.py --max_iters=200
    nanogpt sample out/shakespeare --prompt "ROMEO:"
    nanogpt eval out/shakespeare
    nanogpt compare out/a out/b
    nanogpt export out/shakespeare --to exports/shakespeare
    nanogpt dashboard

RUN is an out directory (its best checkpoint, else its last), one checkpoint in it, or a
transformers model: a directory or a name on the Hub, such as gpt2. `--help` after a command shows
its options.
"""

import argparse
import sys

from nanogpt import __version__
from nanogpt.cli import measure, train, use
from nanogpt.run.errors import refuse_windows, user_errors
from nanogpt.run.parser import OneLineParser

# A command NAME is add_NAME and run_NAME of its module. The modules import torch and the rest of
# the package only inside run_NAME: --help must not wait for them.
GROUPS = {
    "train": {
        "train": (train, "train a recipe, in one process or several"),
        "plan": (train, "show the parameters, memory, tokens and time of a run"),
        "check-data": (measure, "show what a data directory holds and warn of problems"),
        "import-nanogpt": (train, "import a nanoGPT checkpoint to continue from it"),
    },
    "use a model": {
        "sample": (use, "continue a prompt, streaming to the terminal"),
        "chat": (use, "talk to a model that was trained on conversations"),
        "playground": (use, "write with models on a local page, with each token's loss"),
        "export": (use, "write a verified export for transformers, ONNX Runtime or llama.cpp"),
        "page": (use, "write a static page that runs the model in the browser"),
        "push": (use, "export to a repository on the Hub; deletes no files there"),
    },
    "measure and compare": {
        "eval": (measure, "loss, perplexity and bits per byte over a whole split"),
        "compare": (measure, "compare settings, and losses at equal steps, tokens and time"),
        "plot": (measure, "draw the loss curves of runs"),
        "dashboard": (measure, "show runs on a local page, also while they train"),
    },
    "the machine": {
        "bench": (measure, "measure throughput, and this machine's limits in the same run"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def main(argv: list[str] | None = None) -> None:
    """Runs one command. A user's mistake prints one line and exits with code 2."""
    refuse_windows()
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        sys.exit(2)
    with user_errors():
        args.run(args)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    lines = []
    for title, group in GROUPS.items():
        lines += [f"{title}:", *(f"  {name:<15} {what}" for name, (_, what) in group.items()), ""]
    parser = OneLineParser(
        prog="nanogpt", usage="nanogpt COMMAND …", description=__doc__, epilog="\n".join(lines)
    )
    parser.add_argument("--version", action="version", version=f"nanogpt {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", prog="nanogpt", help=argparse.SUPPRESS
    )
    for name, (module, what) in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what)
        function = name.replace("-", "_")
        getattr(module, f"add_{function}")(command)
        command.set_defaults(run=getattr(module, f"run_{function}"))
    return parser
