"""Commands as the documentation writes them, checked by the very parsers that will read them.

The parser of a script is caught as the script is about to use it, so no list of flags is kept here.
"""

import argparse
import contextlib
import io
import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from unittest.mock import patch

from accelerate.commands.launch import launch_command_parser
from pages import ROOT

from nanogpt import GPTConfig, TrainConfig
from nanogpt.cli import make_parser
from nanogpt.run.flags import parse

START = re.compile(r"(?:next:)?\s*(?:[\w \"$(=-]*\b(?:do|exec) |.*\$\()?((?:accelerate launch|nanogpt|python) .*)")
ANY_RECIPE = ("recipes/x.py", "x.py", "RECIPE", "mine.py")


@cache
def parser_of(program: str) -> argparse.ArgumentParser:
    """The parser of `accelerate launch`, `nanogpt`, a module such as `data_prep.text`, or a script."""
    if program == "accelerate launch":
        return launch_command_parser()
    if program == "nanogpt":
        return make_parser()

    caught = []

    def stop(parser, *_):
        caught.append(parser)
        raise SystemExit

    path = program if program.endswith(".py") else program.replace(".", "/") + ".py"
    with patch.object(argparse.ArgumentParser, "parse_args", stop), contextlib.suppress(SystemExit):
        runpy.run_path(str(ROOT / path), run_name="__main__")
    return caught[0]


@cache
def every_flag() -> set[str]:
    """Those of recipes, of the launcher, and whatever else our programs name in a string."""
    programs = ("recipes/pretrain.py", "recipes/distill.py", "accelerate launch")
    flags = {flag for name in programs for flag in parser_of(name)._option_string_actions}
    for path in [*ROOT.glob("*/*.py"), *ROOT.glob("nanogpt/*/*.py")]:
        flags |= set(re.findall(r"[\"'](--[a-z][\w-]*)[\"'=]", path.read_text(encoding="utf-8")))
    return {flag.replace("-", "_") for flag in flags}


def commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the line, words) of each command in a block or docstring."""
    joined = re.sub(r"(?:[^\n]*\\\n)+[^\n]*", lambda m: m[0].replace("\\\n", " ") + "\n" * m[0].count("\n"), text)
    for number, line in enumerate(joined.splitlines()):
        for part in re.split(r" \| |; |&& ", re.sub(r"\s# .*", "", line)):
            if start := START.fullmatch(re.sub(r"^\s*(?:[A-Z_]+=\S+ )+", "", part)):
                with contextlib.suppress(ValueError):  # a part of a script in quotes
                    yield number, shlex.split(start[1], comments=True)


def problem(words: list[str]) -> str | None:
    """What is wrong with a command that stands on a page, or None."""
    words = words[: words.index(">")] if ">" in words else words
    words = ["1" if "$" in word else word for word in words if word not in ("…", "$flags") and "=$" not in word]
    match words:
        case ["accelerate", "launch", *rest]:
            args, error = attempt(lambda: parser_of("accelerate launch").parse_args(rest))
            if error:
                return f"accelerate launch: {error}"
            module = ["-m"] if args.module else []
            return problem(["python", *module, args.training_script, *args.training_script_args])
        case ["nanogpt", "plan" | "train", recipe, *rest]:
            return problem(["python", recipe, *(word for word in rest if not word.startswith("--processes="))])
        case ["nanogpt", *rest] | ["python", "-m", "nanogpt", *rest]:
            return attempt(lambda: parser_of("nanogpt").parse_args(rest))[1]
        case ["python", "-m", module, *rest] if module.startswith("data_prep."):
            return attempt(lambda: parser_of(module).parse_args(rest))[1]
        case ["python", script, *rest] if script in ANY_RECIPE:
            return attempt(lambda: parse(GPTConfig(), TrainConfig(), rest))[1]
        case ["python", script, *rest] if script.startswith("recipes/"):
            names = attempt(lambda: runpy.run_path(str(ROOT / script)))[0] or {}
            if "MODEL" in names and "TRAIN" in names:
                return attempt(lambda: parse(names["MODEL"], names["TRAIN"], rest))[1]
            return attempt(lambda: parser_of(script).parse_args(rest))[1]


def attempt(run: Callable) -> tuple[object, str | None]:
    """What `run` returns, and the last line that it complains with."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            return run(), None
        except SystemExit as exit:
            return None, said.getvalue().strip().splitlines()[-1] if exit.code else None
        except (ValueError, OSError, ImportError) as error:
            return None, str(error)
