"""A command line parser whose errors are one line. Imports no torch: --help does not wait."""

import difflib
import re
import sys
import types
import typing
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter

from nanogpt.run.errors import fail

# nanoGPT's flags that have another name here
NANOGPT = {
    "--dataset": "--data=data/NAME",
    "--dtype": "--precision",
    "--lr": "--learning_rate",
    "--start": "--prompt",
    "--eval_only": "--max_iters=0",
    "--decay_lr": "--lr_schedule=constant --warmup_iters=0",
    "--wandb_log": "--report_to=wandb",
}


def read_value(text: str, kind: type) -> object:
    """`text` from the command line as a value of a field's type, or an ArgumentTypeError."""
    if isinstance(kind, types.UnionType):  # X | None
        if text.lower() == "none":
            return None
        kind = typing.get_args(kind)[0]
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ArgumentTypeError(f"{text:.80}: expected true or false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        expected = "an integer" if kind is int else "a number"
        raise ArgumentTypeError(f"{text:.80}: expected {expected}") from None


def within(kind: type, low: float, high: float):
    """For argparse's `type=`: numbers of that kind from `low` to `high`."""

    def read(text: str):
        value = read_value(text, kind)
        if not low <= value <= high:  # which catches NaN as well
            raise ArgumentTypeError(f"{text:.80}: must be from {low} to {high}")
        return value

    return read


class OneLineParser(ArgumentParser):
    """Suggests the flag that was probably meant. In the names of flags, _ and - are the same."""

    def __init__(self, **options):
        super().__init__(formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def parse_known_args(self, args=None, namespace=None):
        words = []
        for word in sys.argv[1:] if args is None else args:
            name, equals, value = word.partition("=")
            if re.fullmatch(r"--[\w-]+", name):  # not a value, such as --prompt "--- a title"
                name = "--" + name[2:].replace("-", "_")
            words.append(name + equals + value)
        namespace, unknown = super().parse_known_args(words, namespace)
        if unknown:  # reported here, so that a sub-command suggests its own flags
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str) -> typing.NoReturn:
        """Exits with code 2 and one line."""
        if unknown := re.match(r"unrecognized arguments: (--?[\w-]+)", message):
            flag, known = unknown[1], self._option_string_actions
            near = difflib.get_close_matches(flag, known, n=1)
            if NANOGPT.get(flag, "").partition("=")[0] in known:
                near = [NANOGPT[flag]]
            hint = f"did you mean {near[0]}? " if near else ""
            fail(f"unknown flag {flag}: {hint}--help lists them all")
        fail(re.sub(r"(?s)^argument (--\w+): (?=.*: (expected|must))", r"\1=", message))
