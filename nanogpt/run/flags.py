"""The command line of a recipe: a flag for each setting."""

import dataclasses
import inspect
import os
import re
from argparse import ArgumentParser, ArgumentTypeError
from contextlib import suppress
from pathlib import Path

from nanogpt.config import Actions, TrainConfig, ignored_by
from nanogpt.data.files import follow, read_json
from nanogpt.model import GPTConfig, declared
from nanogpt.run.errors import refuse_windows
from nanogpt.run.parser import OneLineParser, read_value, with_underscores
from nanogpt.run.parser import within as within  # for programs that take it from here


def field_help(cls: type) -> dict[str, str]:
    """The comment behind each field of a dataclass: one source for readers and --help."""
    source = ""
    for base in reversed(cls.__mro__):
        with suppress(OSError, TypeError):  # without source: typed at a prompt, or built in
            source += inspect.getsource(base)
    comments = dict(re.findall(r"^ +(\w+):.*?  # (.*)$", source, re.MULTILINE))
    return {field.name: comments.get(field.name, "") for field in dataclasses.fields(cls)}


def settings_parser(model_config: GPTConfig, train: TrainConfig, description: str) -> OneLineParser:
    """A recipe's parser: a flag for each field; advanced ones (KW_ONLY) and actions in groups."""
    refuse_windows()
    parser = OneLineParser(usage="%(prog)s [--SETTING VALUE …]", description=description)
    text = "repeat a run: its config.json, before the flags given here"
    parser.add_argument("--config", metavar="FILE", help=text)
    basic = parser.add_argument_group("settings")
    advanced = parser.add_argument_group("advanced settings")
    actions = parser.add_argument_group("actions")
    for config in (train, model_config, Actions()):
        texts, kinds = field_help(type(config)), declared(type(config))
        for field in dataclasses.fields(config):
            (kind, limits), value = kinds[field.name], getattr(config, field.name)
            default = "" if value is None else f" (default: {value})"
            options = {"metavar": short(kind, limits)}
            options["help"] = f"{texts[field.name]}{default}".strip().replace("%", "%%")
            if kind is bool or field.name == "compile":  # --compile is --compile=true
                options |= {"nargs": "?", "const": "true"}
            group = advanced if field.kw_only else basic
            group = actions if isinstance(config, Actions) else group
            group.add_argument(f"--{field.name}", **options)
    return parser


def parse(
    model_config: GPTConfig, train: TrainConfig, argv: list[str], description: str
) -> tuple[GPTConfig, TrainConfig, Actions]:
    """The recipe's configurations, overridden by --config and the command line, and the actions."""
    parser = settings_parser(model_config, train, description)
    given = {name: text for name, text in vars(parser.parse_args(argv)).items() if text is not None}
    values = recorded(given["config"]) if "config" in given else {}
    changed = []
    for config in (model_config, train, Actions()):
        kinds = declared(type(config))
        for name in given.keys() & kinds.keys():
            try:
                values[name] = read_value(given[name], kinds[name][0])
            except ArgumentTypeError as error:
                parser.error(f"--{name}={error}")
            if name in ("out_dir", "data", "init_from", "resume"):
                values[name] = os.path.expanduser(values[name])  # no shell does for --data=~/x
            if name == "out_dir":
                values[name] = str(Path(values[name]))  # without a / at its end
        own = {name: value for name, value in values.items() if name in kinds}
        changed.append(dataclasses.replace(config, **own))
    return tuple(changed)


def asked_device(argv: list[str]) -> str:
    """The --device of a command line, for recipes that choose their settings by it."""
    parser = OneLineParser(add_help=False)
    parser.add_argument("--device", default="auto")
    return ArgumentParser.parse_known_args(parser, argv)[0].device  # others are for later


def named(argv: list[str]) -> set[str]:
    """The names of the settings that a command line has flags for."""
    return {with_underscores(word.partition("=")[0]).removeprefix("--") for word in argv}


def recorded(path: str) -> dict:
    """The settings in a run's config.json, or in that of an out directory.

    Raises ValueError if there are none.
    """
    file = follow(path)
    if file.is_dir():
        file = file / "config.json"
    found = read_json(file)
    try:
        settings = {**found["model"], **found["train"]}
    except (TypeError, KeyError) as error:
        raise ValueError(f"{file} is not a run's configuration ({error!r})") from None
    return {name: value for name, value in settings.items() if name not in ignored_by("config")}


def short(kind: type, limits: tuple = ()) -> str:
    """A type as --help shows it: its choices, or its name."""
    if kind is str and limits:
        return "|".join(limits)
    return kind.__name__.upper() if isinstance(kind, type) else str(kind).split(" ")[0].upper()
