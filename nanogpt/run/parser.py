"""A command line parser whose errors are one line.

It imports no torch, so `nanogpt --help` starts at once.
"""

import argparse
import difflib
import re
import sys
import types
import typing

from nanogpt.run.errors import fail

# nanoGPT's flags that have another name here
NANOGPT = {
    "--dataset": "--data",
    "--dtype": "--precision",
    "--lr": "--learning_rate",
    "--start": "--prompt",
    "--eval_only": "--max_iters=0",
    "--decay_lr": "--lr_schedule=constant",
    "--wandb_log": "--report_to=wandb",
}


def read_value(text: str, kind: type) -> object:
    """`text` from the command line as a value of a field's type, or a ValueError."""
    if isinstance(kind, types.UnionType):  # X | None
        if text.lower() == "none":
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("expected true or false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"expected {'an integer' if kind is int else 'a number'}") from None


def within(kind: type, low: float, high: float):
    """For argparse's `type=`: numbers of that kind from `low` to `high`."""

    def read(text: str):
        try:
            value = read_value(text, kind)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text:.40}: {error}") from None
        if not low <= value <= high:  # which catches NaN as well
            raise argparse.ArgumentTypeError(f"{text:.40}: must be from {low} to {high}")
        return value

    return read


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows the default of an option that has one, unless its help says it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        no_default = action.default in (None, False, argparse.SUPPRESS)
        if no_default or "default" in action.help or not action.option_strings:
            return action.help
        return f"{action.help} (default: %(default)s)"


class OneLineParser(argparse.ArgumentParser):
    """An argparse whose errors are one line, and which suggests the flag that was probably meant.

    In the names of flags, _ and - are the same.
    """

    def __init__(self, **options):
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False} | options)

    def parse_known_args(self, args=None, namespace=None):
        words = []
        for word in sys.argv[1:] if args is None else args:
            name, equals, value = word.partition("=")
            words.append(with_underscores(name) + equals + value)
        namespace, unknown = super().parse_known_args(words, namespace)
        if unknown:  # reported here, so that a sub-command suggests its own flags
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str) -> typing.NoReturn:
        """Exits with code 2 and one line."""
        if unknown := re.match(r"unrecognized arguments: (--?[\w-]+)", message):
            near = nearest(unknown[1], self._option_string_actions)
            fail(f"unknown flag {unknown[1]}: {near}")
        if unknown := re.match(r"(?s)argument COMMAND: invalid choice: '(.*)' \(choose", message):
            commands = next(action.choices for action in self._actions if action.dest == "command")
            fail(f"unknown command {unknown[1]}: {nearest(unknown[1], commands)}")
        fail(re.sub(r"(?s)^argument (--\w+): (?=.*: (expected|must))", r"\1=", message))


def with_underscores(name: str) -> str:
    """A flag's name as it is defined; any other word as it is."""
    return re.sub(r"(?<=\w)-", "_", name) if name.startswith("--") else name


def nearest(word: str, known) -> str:
    """The hint for a word that is not one of the `known` ones."""
    near = difflib.get_close_matches(word, known, n=1)
    if NANOGPT.get(word, "").partition("=")[0] in known:
        near = [NANOGPT[word]]
    return f"did you mean {near[0]}? --help lists them all" if near else "--help lists them all"
