"""Commands as the documentation writes them, checked by the very parsers that will read them.

The parser of a script is caught as the script is about to use it, so no list of flags is kept here.
"""

import argparse
import contextlib
import io
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from functools import cache
from unittest.mock import patch

from accelerate.commands.launch import launch_command_parser
from pages import FILES, ROOT, SAVED

from nanogpt import GPTConfig, TrainConfig
from nanogpt.cli import make_parser
from nanogpt.run.flags import parse

START = re.compile(r"(?:next:)?\s*(?:[\w \"$(=-]*\b(?:do|exec) |.*\$\()?((?:accelerate launch|nanogpt|python) .*)")
ANY_RECIPE = ("recipes/x.py", "x.py", "RECIPE", "mine.py")


class Caught(Exception):
    """Carries a parser out of the program that made it."""


@cache
def parser_of(program: str) -> argparse.ArgumentParser:
    """The parser of `accelerate launch`, `nanogpt`, a module such as `data_prep.text`, or a script."""
    if program == "accelerate launch":
        return launch_command_parser()
    if program == "nanogpt":
        return make_parser()

    def stop(parser, *_):
        raise Caught(parser)

    imported = sys.modules.pop(program, None)  # runpy warns about a module that is there already
    with patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            if program.endswith(".py"):
                runpy.run_path(str(ROOT / program), run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__")
        except Caught as caught:
            return caught.args[0]
        finally:
            if imported is not None:
                sys.modules[program] = imported
    raise AssertionError(f"{program} reads no command line")


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next((a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)), {})


@cache
def every_flag() -> set[str]:
    """Those of a recipe, of the launcher, and whatever else our programs name in a string."""
    parsers = [parser_of("recipes/pretrain.py"), parser_of("accelerate launch")]
    flags = {flag for parser in parsers for action in parser._actions for flag in action.option_strings}
    for file in FILES:
        if file.endswith(".py") and not file.startswith("tests/docs/"):
            flags |= set(re.findall(r"[\"'](--[a-z][\w-]*)[\"'=]", (ROOT / file).read_text(encoding="utf-8")))
    return {flag.replace("-", "_") for flag in flags}


def commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the line, words) of each command in a block or docstring; no words if a shell cannot read it."""
    joined = re.sub(r"(?:[^\n]*\\\n)+[^\n]*", lambda m: m[0].replace("\\\n", " ") + "\n" * m[0].count("\n"), text)
    for number, line in enumerate(joined.splitlines()):
        for part in re.split(r" \| |; |&& ", re.sub(r"\s# .*", "", line)):
            if start := START.fullmatch(re.sub(r"^\s*(?:[A-Z_]+=\S+ )+", "", part)):
                yield number, split(start[1])


def split(command: str) -> list[str]:
    """Its words; none if a shell cannot read it. It may be the first or last of a script in quotes (bash -c '…')."""
    for text in (command, command.rstrip("'"), command + "'"):
        with contextlib.suppress(ValueError):
            return shlex.split(text, comments=True)
    return []


def problem(words: list[str], page: str = "") -> str | None:
    """What is wrong with a command that stands on a page, or None."""
    words = words[: words.index(">")] if ">" in words else words
    words = ["1" if "$" in word else word for word in words if word not in ("…", "$flags") and "=$" not in word]
    match words:
        case []:
            return "no shell can read this command"
        case ["accelerate", "launch", *rest]:
            args, error = attempt(lambda: parser_of("accelerate launch").parse_args(rest))
            if error:
                return f"accelerate launch: {error}"
            if args.config_file and args.config_file not in FILES:
                return f"{args.config_file} does not exist"
            module = ["-m"] if args.module else []
            return problem(["python", *module, args.training_script, *args.training_script_args], page)
        case ["nanogpt", "plan" | "train", recipe, *rest]:
            return problem(["python", recipe, *(word for word in rest if not word.startswith("--processes="))], page)
        case ["nanogpt", *rest] | ["python", "-m", "nanogpt", *rest]:
            return attempt(lambda: parser_of("nanogpt").parse_args(rest))[1]
        case ["python", "-m", module, *rest] if module.startswith("data_prep."):
            if f"{module.replace('.', '/')}.py" not in FILES:
                return f"no module {module}"
            return attempt(lambda: parser_of(module).parse_args(rest))[1]
        case ["python", script, *rest] if script.endswith(".py") and script not in SAVED.findall(page):
            return script_problem(script, rest)


def script_problem(script: str, words: list[str]) -> str | None:
    """A recipe reads its flags by `parse`, or by a parser of its own."""
    if script in ANY_RECIPE:
        return attempt(lambda: parse(GPTConfig(), TrainConfig(), words, ""))[1]
    if script not in FILES:
        return f"{script} does not exist"
    if not script.startswith("recipes/"):
        return None
    names = runpy.run_path(str(ROOT / script))
    if "MODEL" in names and "TRAIN" in names:
        return attempt(lambda: parse(names["MODEL"], names["TRAIN"], words, ""))[1]
    return attempt(lambda: parser_of(script).parse_args(words))[1]


def attempt(run: Callable) -> tuple[object, str | None]:
    """What `run` returns, and the last line that it complains with."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            return run(), None
        except SystemExit as exit:
            return None, said.getvalue().strip().splitlines()[-1] if exit.code else None
        except ValueError as error:
            return None, str(error)
