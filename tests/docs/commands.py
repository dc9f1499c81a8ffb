"""Commands as the documentation writes them, checked by the very parsers that will read them.

`accelerate launch`, recipes, `nanogpt`, `hf` and the modules of data_prep: the parsers are caught as each program is
about to use them, so no list of flags is kept here.
"""

import argparse
import contextlib
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from functools import lru_cache
from unittest.mock import patch

import click
from accelerate.commands.launch import launch_command_parser
from pages import ROOT, Docs, Text

from nanogpt import GPTConfig, TrainConfig
from nanogpt.cli import make_parser
from nanogpt.run.flags import parse, settings_parser

PROGRAMS = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:accelerate launch|nanogpt|python(?: -m)?|hf) ")
STANDS_FOR_ANY = ("recipes/x.py", "x.py", "RECIPE")  # a name in the place of a recipe's


class Caught(Exception):
    """Carries a parser out of the program that made it."""


def catch(run) -> argparse.ArgumentParser:
    """The parser that `run()` hands its command line to."""

    def stop(parser, *_):
        raise Caught(parser)

    with patch.object(argparse.ArgumentParser, "parse_args", stop), contextlib.suppress(SystemExit):
        try:
            run()
        except Caught as caught:
            return caught.args[0]
    raise AssertionError("this program reads no command line")


@lru_cache
def parser_of(program: str) -> argparse.ArgumentParser:
    """The parser of `accelerate launch`, `nanogpt`, a module such as `data_prep.text`, or a script."""
    if program == "accelerate launch":
        return launch_command_parser()
    if program in ("nanogpt", "nanogpt.cli"):
        return make_parser()
    if program.endswith(".py"):
        return catch(lambda: runpy.run_path(str(ROOT / program), run_name="__main__"))
    loaded = sys.modules.pop(program, None)  # runpy warns about a module that is there already
    try:
        return catch(lambda: runpy.run_module(program, run_name="__main__"))
    finally:
        if loaded:
            sys.modules[program] = loaded


@lru_cache
def settings_of(recipe: str) -> tuple[GPTConfig, TrainConfig]:
    names = runpy.run_path(str(ROOT / recipe))
    return names.get("MODEL", GPTConfig()), names.get("TRAIN", TrainConfig())


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """All flags, those of sub-commands included."""
    flags = {flag for action in parser._actions for flag in action.option_strings}
    for command in subcommands(parser).values():
        flags |= flags_of(command)
    return flags


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next((a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)), {})


@lru_cache
def recipe_flags() -> set[str]:
    return flags_of(settings_parser(GPTConfig(), TrainConfig(), ""))


def error_of(run) -> str | None:
    """What a program complains about, or None."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            run()
        except SystemExit as exit:
            return (said.getvalue().strip() or "refused") if exit.code else None
        except ValueError as error:
            return str(error)
    return None


def commands(doc: Text) -> Iterator[tuple[int, list[str]]]:
    """(line, words) of every command in a bash block or in the indented lines of a docstring."""
    text = re.sub(r"\\\n *", lambda match: " " * len(match[0]), doc.text)  # what goes on in the next line
    lines, at = text.split("\n"), doc.line
    original = doc.text.split("\n")
    taken = 0
    for line in lines:
        line_number = at + taken
        taken += 1
        while original[taken - 1].endswith("\\") and taken < len(original):
            taken += 1
        for part in re.split(r"(?<=\S) \| |; (?=do |nanogpt|python|accelerate)", re.sub(r"\s# .*", "", line)):
            start = re.search(
                r"(?:^|[\s'(\"])((?:[A-Z_]+=\S+ )*(?:accelerate launch|nanogpt|python(?: -m)?|hf) .*)", part
            )
            if start and re.fullmatch(r"(?:next:)?\s*|.*\b(?:do|exec)\s*|.*\$\(", part[: start.start(1)]):
                yield line_number, split(start[1])


def split(command: str) -> list[str]:
    """A command's words; none where a shell could not read it. It may be the end of a quoted script (bash -c '…')."""
    for text in (command, command.rstrip("'")):
        with contextlib.suppress(ValueError):
            return shlex.split(text, comments=True)
    return []


def check(words: list[str], docs: Docs, whole: bool, page: str = "") -> str | None:
    """What is wrong with a command, or None. A command that is not `whole`, a mention, may lack arguments."""
    words = words[: words.index(">")] if ">" in words else words
    words = [re.sub(r'^"?\$.*', "1", word) for word in words if not re.match(r"[A-Z_]+=|\$flags$|--config=\$", word)]
    if not words:
        return "no shell could read this command"
    if words[:2] == ["accelerate", "launch"]:
        return check_launch(words[2:], docs, whole, page)
    if words[:2] == ["python", "-m"]:
        return check_module(words[2], words[3:], docs, whole)
    if words[0] == "python":
        return check_script(words[1], words[2:], docs, whole, page)
    if words[0] == "nanogpt":
        return check_nanogpt(words[1:], docs, whole, page)
    if words[0] == "hf":
        return check_hf(words[1:], docs, whole, page)
    return None


def check_hf(words: list[str], docs: Docs, whole: bool, page: str) -> str | None:
    """A command of huggingface_hub, by its own parser; of what a job runs in bash, our commands as well."""
    from huggingface_hub.cli.hf import app

    try:
        command, context = app, click.Context(app)
        while isinstance(command, click.Group) and words:
            name, command, words = command.resolve_command(context, words)
        if not whole:
            return None
        found = command.make_context(name, words).params
    except click.ClickException as error:
        return f"hf: {error.format_message()}"
    if odd := re.match(
        "-.*", str(found.get("image"))
    ):  # `hf jobs run` takes a flag that it does not know for the image
        return f"hf has no flag {odd[0]}"
    for option in command.params:
        if isinstance(option.type, click.Choice) and found[option.name] not in (None, *option.type.choices):
            return f"hf: {found[option.name]!r} is not one of {', '.join(option.type.choices)}"
    parts = [shlex.split(part) for part in found["command"][-1].split("&&")] if "command" in found else []
    errors = (check(part, docs, whole, page) for part in parts)
    return next(filter(None, errors), None)


def check_launch(words: list[str], docs: Docs, whole: bool, page: str) -> str | None:
    parser, args = parser_of("accelerate launch"), None
    if not whole and not any(word.endswith(".py") for word in words):
        return unknown_flags(words, flags_of(parser) | recipe_flags(), "accelerate launch")

    def run():
        nonlocal args
        args = parser.parse_args(words)

    if error := error_of(run):
        return f"accelerate launch: {error.splitlines()[-1]}"
    if args.config_file and args.config_file not in docs.files:
        return f"{args.config_file} does not exist"
    if args.module:
        return check_module(args.training_script, args.training_script_args, docs, whole)
    return check_script(args.training_script, args.training_script_args, docs, whole, page)


def check_module(module: str, words: list[str], docs: Docs, whole: bool) -> str | None:
    if "<" in module:  # data_prep.<name>
        return None
    name = module.replace(".", "/")
    if f"{name}.py" not in docs.files and f"{name}/__main__.py" not in docs.files:
        return None if module.split(".")[0] not in ("nanogpt", "data_prep", "recipes") else f"no module {module}"
    if module == "nanogpt.cli":
        return check_nanogpt(words, docs, whole, "")
    parser = parser_of(module)
    return unknown_flags(words, flags_of(parser), module) or (parsed(parser, words) if whole else None)


def check_script(script: str, words: list[str], docs: Docs, whole: bool, page: str) -> str | None:
    copied = re.search(rf"(\S+\.py) > {re.escape(script)}\b", page)
    if script in STANDS_FOR_ANY:
        return unknown_flags(words, recipe_flags(), script)
    if copied:
        script = copied[1]
    if f"```python\n# {script}\n" in page:  # its own parser reads these flags, in test_blocks
        return None
    if script not in docs.files:
        return f"{script} does not exist"
    if script.startswith("tests/"):
        return None
    if "OneLineParser" in docs.texts[script] or "read_flags" in docs.texts[script]:
        parser = parser_of(script)
        return unknown_flags(words, flags_of(parser), script) or (parsed(parser, words) if whole else None)
    return unknown_flags(words, recipe_flags(), script) or recipe_error(script, tuple(words))


@lru_cache(maxsize=1000)
def recipe_error(recipe: str, words: tuple[str, ...]) -> str | None:
    """What a recipe says to these flags, or None; without a recipe, what the defaults say."""
    model, train = settings_of(recipe) if recipe else (GPTConfig(), TrainConfig())
    return error_of(lambda: parse(model, train, list(words), ""))


def check_nanogpt(words: list[str], docs: Docs, whole: bool, page: str) -> str | None:
    known = subcommands(parser_of("nanogpt"))
    if not words or words[0].startswith("--"):
        return unknown_flags(words, flags_of(parser_of("nanogpt")), "nanogpt")
    command, *rest = words
    if command not in known:
        return f"nanogpt has no command {command}"
    if command in ("plan", "train") and rest:
        rest = [word for word in rest if not word.startswith("--processes=")]
        return check_script(rest[0], rest[1:], docs, whole, page)
    return unknown_flags(rest, flags_of(known[command]), f"nanogpt {command}") or (
        parsed(known[command], rest) if whole else None
    )


def unknown_flags(words: list[str], known: set[str], program: str) -> str | None:
    for word in words:
        if (flag := re.match(r"--[A-Za-z]\w*", word)) and flag[0] not in known:
            return f"{program} has no flag {flag[0]}"
    return None


def parsed(parser: argparse.ArgumentParser, words: list[str]) -> str | None:
    return error_of(lambda: parser.parse_args(words))


@lru_cache
def every_flag() -> frozenset[str]:
    """The flags of everything: recipes, nanogpt's commands, data_prep's modules, the launcher."""
    flags = recipe_flags() | flags_of(parser_of("nanogpt")) | flags_of(parser_of("accelerate launch"))
    for path in sorted((ROOT / "data_prep").glob("*.py")):
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
            flags |= flags_of(parser_of(f"data_prep.{path.stem}"))
    scripts = ("recipes/eval_gpt2.py", "recipes/scaling.py", "benchmarks/device_report.py")
    scripts += tuple(f"benchmarks/{name}.py" for name in ("against_nanogpt", "sampling", "table"))
    return frozenset(flags.union(*(flags_of(parser_of(script)) for script in scripts)))
