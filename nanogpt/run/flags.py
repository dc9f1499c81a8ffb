"""The command line of a recipe: a flag for each setting."""

import dataclasses
import inspect
import os
import re
import sys
from argparse import SUPPRESS, ArgumentParser
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

from nanogpt.config import TrainConfig, ignored_by
from nanogpt.data.files import follow, one_line_errors, read_json
from nanogpt.model import GPTConfig, check_fields, declared
from nanogpt.run.parser import OneLineParser, read_value


@dataclasses.dataclass
class Actions:
    """What else a recipe can do: flags that a recipe does not set and a run does not record."""

    dry_run: bool = False  # only show the run's parameters, memory and time
    seeds: Annotated[int, 1, 1000] = 1  # train with N seeds, into out_dir-seed…, and compare them
    json: bool = False  # print out_dir/result.json as the last line

    def __post_init__(self):
        check_fields(self)


def field_help(cls: type) -> dict[str, str]:
    """The comment behind each field of a dataclass: one source for readers and --help."""
    source = ""
    for base in reversed(cls.__mro__):
        with suppress(OSError, TypeError):  # without source: typed at a prompt, or built in
            source += inspect.getsource(base)
    comments = dict(re.findall(r"^ +(\w+):.*?  # (.*)$", source, re.MULTILINE))
    return {field.name: comments.get(field.name, "") for field in dataclasses.fields(cls)}


def settings_parser(model_config: GPTConfig, train: TrainConfig) -> OneLineParser:
    """A recipe's parser, with a flag for each field; its result has only those that are given."""
    usage = "%(prog)s [--SETTING VALUE …]"
    description = sys.modules["__main__"].__doc__  # the recipe's
    parser = OneLineParser(usage=usage, description=description, argument_default=SUPPRESS)
    text = "repeat a run: its config.json; other flags override its settings"
    parser.add_argument("--config", metavar="FILE", help=text)
    basic = parser.add_argument_group("settings")
    advanced = parser.add_argument_group("advanced settings")
    actions = parser.add_argument_group("actions")
    for config in (train, model_config, Actions()):
        texts, kinds = field_help(type(config)), declared(type(config))
        for field in dataclasses.fields(config):
            (kind, limits), value = kinds[field.name], getattr(config, field.name)
            default = "" if value is None else f" (default: {value})"
            options = {"type": partial(read_value, kind=kind), "metavar": short(kind, limits)}
            options["help"] = f"{texts[field.name]}{default}".strip().replace("%", "%%")
            if kind is bool or field.name == "compile":  # --compile is --compile=true
                options |= {"nargs": "?", "const": "true"}
            group = advanced if field.kw_only else basic
            group = actions if isinstance(config, Actions) else group
            group.add_argument(f"--{field.name}", **options)
    return parser


def parse(
    model_config: GPTConfig, train: TrainConfig, argv: list[str] | None = None
) -> tuple[GPTConfig, TrainConfig, Actions, dict]:
    """The configurations, overridden by --config and the command line; actions; flags by name."""
    if argv is None and sys.argv[0].endswith("kernel_launcher.py"):  # those of a notebook
        argv = []
    given = vars(settings_parser(model_config, train).parse_args(argv))
    for name in given.keys() & {"config", "out_dir", "data", "init_from", "resume"}:
        # no shell does for --data=~/x, nor for each directory of a mixture
        given[name] = ",".join(map(os.path.expanduser, given[name].split(",")))
    if "out_dir" in given:
        given["out_dir"] = str(Path(given["out_dir"]))  # without a / at its end
    values = recorded(given["config"]) | given if "config" in given else given
    changed = []
    for config in (model_config, train, Actions()):
        own = {name: values[name] for name in values.keys() & declared(type(config))}
        changed.append(dataclasses.replace(config, **own))
    return *changed, given


def asked_device() -> str:
    """The --device of the command line, for recipes that choose their settings by it."""
    parser = OneLineParser(add_help=False)
    parser.add_argument("--device", default="auto")
    return ArgumentParser.parse_known_args(parser)[0].device  # others are for later


def recorded(path: str) -> dict:
    """The settings in `path`, a config.json or an out directory with one, or a ValueError.

    Early runs have no train_temperature: theirs was 1.
    """
    file = follow(path)
    if file.is_dir():
        file = file / "config.json"
    found = read_json(file)
    with one_line_errors(f"{file} is not a run's configuration", "name a run, or its config.json"):
        settings = {"train_temperature": 1.0, **found["model"], **found["train"]}
    return {name: value for name, value in settings.items() if name not in ignored_by("config")}


def short(kind: type, limits: tuple = ()) -> str:
    """A type as --help shows it: its choices, or its name."""
    if kind is str and limits:
        return "|".join(limits)
    return kind.__name__.upper() if isinstance(kind, type) else str(kind).split(" ")[0].upper()
