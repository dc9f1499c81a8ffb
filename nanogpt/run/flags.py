"""The command line of a recipe: a flag for each setting."""

import argparse
import dataclasses
import inspect
import json
import os
import re
import sys
import textwrap
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from nanogpt.config import Actions, TrainConfig, ignored_by
from nanogpt.data.files import follow
from nanogpt.model import GPTConfig, declared
from nanogpt.run.parser import OneLineParser, read_value, split_flag
from nanogpt.run.parser import within as within  # for programs that take it from here

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


def settings_parser(model_config: GPTConfig, train: TrainConfig, description: str) -> OneLineParser:
    """The parser of a recipe: a flag for each field, those after KW_ONLY and the actions in groups of their own."""
    parser = OneLineParser(usage="%(prog)s [--SETTING VALUE …]", description=description)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="repeat a run: its config.json, before the flags given here",
    )
    groups = [
        parser.add_argument_group(title) for title in ("settings", "advanced settings", "actions")
    ]
    for config in (model_config, train, Actions()):
        help_of, kinds = field_help(type(config)), declared(type(config))
        for field in dataclasses.fields(config):
            (kind, limits), value = kinds[field.name], getattr(config, field.name)
            default = "" if value is None else f" (default: {value})"
            text = f"{help_of[field.name]}{default}".strip().replace("%", "%%")
            flag_alone = (
                {"nargs": "?", "const": "true"} if kind is bool or field.name == "compile" else {}
            )
            metavar = short(kind, limits)
            group = groups[2 if isinstance(config, Actions) else int(bool(field.kw_only))]
            group.add_argument(f"--{field.name}", metavar=metavar, help=text, **flag_alone)
    for old in (*RENAMED, *GONE, "find_batch_size"):
        flag_alone = (
            {"nargs": "?", "const": "true"} if old in ("exportable", "find_batch_size") else {}
        )
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
                values[name] = os.path.expanduser(
                    values[name]
                )  # the shell leaves --data=~/x as it is
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
        raise ValueError(
            f"{file} is not a run's configuration ({type(error).__name__}: {error})"
        ) from None
    settings = {RENAMED.get(name, name): value for name, value in settings.items()}
    return {name: value for name, value in settings.items() if name not in ignored_by("config")}


def short(kind: type, limits: tuple = ()) -> str:
    """A type as --help shows it: its choices, or its name."""
    if kind is str and limits:
        return "|".join(limits)
    return kind.__name__.upper() if isinstance(kind, type) else str(kind).split(" ")[0].upper()
