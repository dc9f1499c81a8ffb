"""The `nanogpt` command: train models, work with them.

    nanogpt train recipes/shakespeare.py --max_iters=200
    nanogpt sample out/shakespeare --prompt "ROMEO:"
    nanogpt eval out/shakespeare
    nanogpt compare out/a out/b
    nanogpt export out/shakespeare --to exports/shakespeare
    accelerate launch --config_file accelerate_configs/ddp.yaml -m nanogpt launch-check

RUN is an out directory (its best checkpoint, else its last), one checkpoint in it, or a transformers model: a directory
or a name on the Hub, such as gpt2. `--help` after a command shows its options.
"""

import argparse
import sys
from importlib import import_module

from nanogpt import __version__
from nanogpt.run.errors import fail, user_errors
from nanogpt.run.flags import OneLineParser

GROUPS = {  # of commands; each: (module, what it does)
    "train": {
        "train": ("cli.train", "train a recipe, in one process or several"),
        "plan": ("cli.plan", "parameters, memory, tokens and time of a run"),
        "check-data": ("cli.check_data", "what a data directory holds, and what will go wrong with it"),
        "show-batch": ("cli.show_batch", "the text that a step trains on"),
        "import-nanogpt": ("cli.import_nanogpt", "continue from a nanoGPT checkpoint"),
    },
    "use a model": {
        "sample": ("cli.sample", "continue a prompt, streaming to the terminal"),
        "chat": ("cli.chat", "talk to a model that was trained on conversations"),
        "playground": (
            "extras.playground",
            "a local page to write with one or two models; shows each token's loss",
        ),
        "export": ("cli.export", "write the model for transformers, ONNX Runtime, or llama.cpp and Ollama, verified"),
        "page": ("cli.page", "write a static page that runs the model in the browser"),
        "push": ("cli.push", "export to a repository on the Hub, or push a page; other files there stay"),
    },
    "measure and compare": {
        "eval": ("cli.evaluate", "loss, perplexity and bits per byte over a whole split"),
        "compare": ("cli.compare", "settings that differ, losses by equal steps, tokens, time"),
        "plot": ("cli.plot", "draw the losses of runs into a picture"),
        "dashboard": ("cli.dashboard", "a local page that shows runs, live as well"),
    },
    "the machine": {
        "bench": ("extras.bench", "throughput beside this machine's limits, measured in one run"),
        "launch-check": ("cli.launch_check", "what the launcher resolves to, without training"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def main(argv: list[str] | None = None) -> None:
    """Runs one command; a user's mistake is one line and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    args = make_parser(only=argv[:1]).parse_args(argv)
    if args.command is None:
        make_parser().print_help()
        sys.exit(2)
    with user_errors():
        args.run(args)


class Completion(argparse.Action):
    """Prints the script of a shell that completes commands, flags and file names, and exits."""

    def __call__(self, parser, namespace, shell, option_string=None):
        try:
            import shtab
        except ImportError:
            fail("--completion needs a package that is not installed: pip install shtab")
        whole = make_parser()
        commands = next(action for action in whole._actions if action.dest == "command")
        commands.help = "a command"  # what has no help is not completed
        for action in (action for command in commands.choices.values() for action in command._actions):
            if action.nargs != 0 and not action.choices:
                action.complete = shtab.FILE
        print(shtab.complete(whole, shell))
        parser.exit()


def make_parser(only: list[str] | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; `only` those named import their modules, which keeps a start short."""
    listed = [
        "\n".join([f"{title}:", *(f"  {name:<15} {help}" for name, (_, help) in group.items())])
        for title, group in GROUPS.items()
    ]
    parser = OneLineParser(prog="nanogpt", usage="nanogpt COMMAND …", description=__doc__, epilog="\n\n".join(listed))
    parser.add_argument("--version", action="version", version=f"nanogpt {__version__}")
    help = "print a script with which the shell completes commands and flags"
    parser.add_argument("--completion", action=Completion, choices=("bash", "zsh", "tcsh"), help=help)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", prog="nanogpt", help=argparse.SUPPRESS)
    for name, (module, help) in COMMANDS.items():
        command = commands.add_parser(name, help=help, description=help)
        if only is None or name in only:
            implementation = import_module(f"nanogpt.{module}")
            implementation.add_arguments(command)
            command.set_defaults(run=implementation.run)
    return parser
