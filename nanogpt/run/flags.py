"""The command line of a recipe: a flag for each setting, and parsers whose errors are one line."""

import argparse
import dataclasses
import difflib
import inspect
import json
import os
import re
import sys
import textwrap
import types
import typing
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from nanogpt.config import Actions, TrainConfig, ignored_by
from nanogpt.data.files import follow
from nanogpt.model import GPTConfig, declared
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
    "--wandb_project": "the environment variable WANDB_PROJECT",
    "--wandb_run_name": "the environment variable WANDB_NAME",
}
RENAMED = {"max_minutes": "time_limit", "exportable": "require_exportable"}
GONE = {  # flags that do nothing any more, and why
    "max_failed_saves": "three failed saves in a row end a run",
    "max_bad_steps": "five steps in a row without a finite gradient end a run",
}


@lru_cache
def field_help(cls: type) -> dict[str, str]:
    """The comment behind each field of a dataclass, by field name: one source for readers and for --help."""
    found = dict.fromkeys((field.name for field in dataclasses.fields(cls)), "")
    for base in reversed(cls.__mro__):
        with suppress(OSError, TypeError):  # without source: typed at a prompt, or built in
            source = textwrap.dedent(inspect.getsource(base))
            found |= re.findall(r"^    (\w+): .*?  # (.*)$", source, flags=re.MULTILINE)
    return {field.name: found[field.name] for field in dataclasses.fields(cls)}


def read_value(text: str, kind: type) -> object:
    """`text` from the command line as a value of a field's type. Raises ValueError if it is none."""
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
    """Shows the default of an option, where it has one and its help does not say it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        said = action.default in (None, False, argparse.SUPPRESS) or "default" in action.help
        return action.help if said or not action.option_strings else f"{action.help} (default: %(default)s)"


class OneLineParser(argparse.ArgumentParser):
    """An argparse whose errors are one line, and which suggests the flag that was probably meant.

    In the names of flags, _ and - are the same.
    """

    def __init__(self, **options):
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False} | options)

    def parse_known_args(self, args=None, namespace=None):
        args, rest = list(sys.argv[1:] if args is None else args), []
        if "--" in args:
            args, rest = args[: args.index("--")], args[args.index("--") :]
        args = [re.sub(r"(?<=\w)-", "_", name) + equals + value for name, equals, value in map(split_flag, args)]
        namespace, unknown = super().parse_known_args(args + rest, namespace)
        if unknown:  # reported here, so that a sub-command suggests its own flags
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str) -> typing.NoReturn:
        """Exits with code 2 and one line."""
        if unknown := re.match(r"unrecognized arguments: (--?[\w-]+)", message):
            message = f"unknown flag {unknown[1]}: {nearest(unknown[1], self._option_string_actions)}"
        elif unknown := re.match(r"argument COMMAND: invalid choice: '(.*)' \(choose", message, re.DOTALL):
            commands = next(action.choices for action in self._actions if action.dest == "command")
            message = f"unknown command {unknown[1]}: {nearest(unknown[1], commands)}"
        fail(re.sub(r"^argument (--\w+): (?=.*: (expected|must))", r"\1=", message, flags=re.DOTALL))


def split_flag(word: str) -> tuple[str, str, str]:
    """A flag's name, = and value; of any other word an empty name."""
    return word.partition("=") if word.startswith("--") else ("", "", word)


def nearest(word: str, known) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    ours = NANOGPT.get(word, "")
    if ours.partition("=")[0] in known or (ours.startswith("the") and "--report_to" in known):
        near = [ours]
    return f"did you mean {near[0]}? --help lists them all" if near else "--help lists them all"


def settings_parser(model_config: GPTConfig, train: TrainConfig, description: str) -> OneLineParser:
    """The parser of a recipe: a flag for each field, those after KW_ONLY and the actions in groups of their own."""
    parser = OneLineParser(usage="%(prog)s [--SETTING VALUE …]", description=description)
    parser.add_argument("--config", metavar="FILE", help="repeat a run: its config.json, before the flags given here")
    groups = [parser.add_argument_group(title) for title in ("settings", "advanced settings", "actions")]
    for config in (model_config, train, Actions()):
        help_of, kinds = field_help(type(config)), declared(type(config))
        for field in dataclasses.fields(config):
            (kind, limits), value = kinds[field.name], getattr(config, field.name)
            default = "" if value is None else f" (default: {value})"
            text = f"{help_of[field.name]}{default}".strip().replace("%", "%%")
            flag_alone = {"nargs": "?", "const": "true"} if kind is bool or field.name == "compile" else {}
            metavar = short(kind, limits)
            group = groups[2 if isinstance(config, Actions) else int(bool(field.kw_only))]
            group.add_argument(f"--{field.name}", metavar=metavar, help=text, **flag_alone)
    for old in (*RENAMED, *GONE, "find_batch_size"):
        flag_alone = {"nargs": "?", "const": "true"} if old in ("exportable", "find_batch_size") else {}
        parser.add_argument(f"--{old}", help=argparse.SUPPRESS, **flag_alone)
    return parser


def parse(
    model_config: GPTConfig, train: TrainConfig, argv: list[str], description: str
) -> tuple[GPTConfig, TrainConfig, Actions]:
    """The recipe's two configurations, overridden by --config and the command line, and the actions asked for."""
    parser = settings_parser(model_config, train, description)
    given = {name: text for name, text in vars(parser.parse_args(argv)).items() if text is not None}
    for old in given.keys() & {*GONE, *RENAMED}:
        why = GONE[old] if old in GONE else f"it is called --{RENAMED[old]} now"
        print(f"note: --{old}: {why}", file=sys.stderr)
        given.setdefault(RENAMED.get(old, old), given[old])
    if "find_batch_size" in given:
        parser.error(
            "--find_batch_size is gone: --dry_run shows the memory of a step, and a run halves a --batch_size "
            "that does not fit"
        )
    repeated, changed = recorded(given["config"]) if "config" in given else {}, []
    for config in (model_config, train, Actions()):
        kinds = declared(type(config))
        values = {name: repeated[name] for name in repeated.keys() & kinds.keys()}
        for name in given.keys() & kinds.keys():
            try:
                values[name] = read_value(given[name], kinds[name][0])
            except ValueError as error:
                parser.error(f"--{name}={given[name]:.80}: {error}")
            if name in ("out_dir", "data", "init_from", "resume"):
                values[name] = os.path.expanduser(values[name])  # the shell leaves --data=~/x as it is
            if name == "out_dir":
                values[name] = str(Path(values[name]))  # without a / at its end
        changed.append(dataclasses.replace(config, **values))
    return tuple(changed)


def named(argv: list[str]) -> set[str]:
    """The names of the settings that a command line has flags for."""
    return {split_flag(word)[0].lstrip("-").replace("-", "_") for word in argv}


def recorded(path: str) -> dict:
    """The settings in a run's config.json, or in that of an out directory. Raises ValueError where there are none."""
    file = follow(path)
    if file.is_dir():
        file = file / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        settings = {**found["model"], **found["train"]}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{file} is not a run's configuration ({type(error).__name__}: {error})") from None
    settings = {RENAMED.get(name, name): value for name, value in settings.items()}
    return {name: value for name, value in settings.items() if name not in ignored_by("config")}


def short(kind: type, limits: tuple = ()) -> str:
    """A type as --help shows it: its choices, or its name."""
    if kind is str and limits:
        return "|".join(limits)
    return kind.__name__.upper() if isinstance(kind, type) else str(kind).split(" ")[0].upper()
