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

import sys

from nanogpt import __version__
from nanogpt.cli.arguments import ARGUMENTS
from nanogpt.run.errors import refuse_windows, user_errors
from nanogpt.run.parser import OneLineParser

# a command NAME is run_NAME of nanogpt.cli.commands
COMMANDS = {
    "train": "train a recipe, in one process or several",
    "plan": "measure the memory and time of a run",
    "check-data": "show what a data directory holds and warn of problems",
    "import-nanogpt": "import a nanoGPT checkpoint to continue from it",
    "sample": "continue a prompt, streaming to the terminal",
    "chat": "talk to a model that was trained on conversations",
    "playground": "write with models on a local page, and look inside them",
    "export": "write a verified export for transformers, ONNX Runtime or llama.cpp",
    "page": "write a static page that runs the model in the browser",
    "push": "export to a repository on the Hub; deletes only earlier weights there",
    "eval": "measure loss, perplexity and bits per byte over a whole split",
    "compare": "compare settings, and losses at equal steps, tokens and time",
    "plot": "draw the loss curves of runs",
    "dashboard": "show runs on a local page, even while they train",
    "bench": "measure training throughput, and compare it with a large matmul",
}


def main(argv: list[str] | None = None) -> None:
    """Runs one command. A user's mistake prints one line and exits with code 2."""
    refuse_windows()
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        sys.exit(2)
    with user_errors():
        from nanogpt.cli import commands  # only now: it imports torch, and --help must not wait

        getattr(commands, f"run_{args.command.replace('-', '_')}")(args)


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog="nanogpt", usage="nanogpt COMMAND …", description=__doc__)
    parser.add_argument("--version", action="version", version=f"nanogpt {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", prog="nanogpt"
    )
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what)
        for flag, options in ARGUMENTS[name]:
            command.add_argument(flag, **options)
    return parser
