"""What the documentation claims and can be looked up: each function gives what does not hold, with file and line.

`problems(docs)` is all of them, those of `figures` included. Texts come from `docs`, which a test may have damaged;
flags and defaults come from the code itself.
"""

import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from functools import lru_cache
from pathlib import PurePosixPath

import figures
from commands import PROGRAMS, check, commands, every_flag, recipe_error
from pages import OURS, ROOT, SAVED, Docs, Text, at
from settings_table import settings

from nanogpt import GPTConfig, TrainConfig

NANOGPTS = "README.md"  # whose table has nanoGPT's names in the first column
THEIR_COMMANDS = {"python bench.py"}
THEIR_FILES = {"configurator.py", "sample.py", "config/x.py"}
THEIR_NAMES = {"CalledProcessError", "WANDB_ENTITY", "WANDB_RUN_GROUP", "WANDB_TAGS", "PET_SHUTDOWN_TIMEOUT"}
SLURMS_FLAGS = {"--signal"}
MADE_BY_USERS = {"recipes/x.py", "tasks/", "mine.py"}
LANGUAGES = {"bash", "python", "text", ""}

MODULE = (".py", "/__init__.py")


def problems(docs: Docs) -> list[str]:
    """Every claim that does not hold, as `file:line: what`, in order."""
    checks = (commands_work, flags_exist, files_exist, names_exist, links_lead_somewhere, blocks_are_marked)
    checks += (blocks_are_run, markers_exist, settings_are_listed, folders_are_described, extras_exist)
    checks += (figures.losses_agree, figures.speeds_are_logged, figures.figures_follow)
    checks += (figures.defaults_are_right, figures.versions_agree)
    found = {f"{place.file}:{place.line}: {place.text}" for check in checks for place in check(docs)}
    return sorted(found)


def commands_work(docs: Docs) -> Iterator[Text]:
    """Commands in bash blocks and docstrings are parsed by the programs' own parsers; mentioned ones in part."""
    for file in docs.pages():
        for block in docs.blocks(file):
            if block.language != "python":  # quoted output has commands too
                for line, words in commands(Text(file, block.line, block.code)):
                    if error := check(words, docs, True, docs.texts[file]):
                        yield Text(file, line, error)
    for doc in docs.docstrings():
        for line, words in commands(doc):
            if error := check(words, docs, True):
                yield Text(doc.file, line, error)
    for span in docs.spans():
        if PROGRAMS.match(span.text + " ") and span.text not in THEIR_COMMANDS and not nanogpts(docs, span):
            words = span.text.replace(" …", "").split()
            if len(words) > 1 and (error := check(words, docs, False)):
                yield Text(span.file, span.line, error)


def nanogpts(docs: Docs, span: Text) -> bool:
    """Whether a span is in the first column of the table whose first column is headed nanoGPT."""
    lines = docs.texts[span.file].splitlines()
    row = head = span.line - 1
    while lines[head - 1].startswith("|"):
        head -= 1
    return span.file == NANOGPTS and lines[head].startswith("| nanoGPT |") and span.text in lines[row].split(" | ")[0]


def flags_exist(docs: Docs) -> Iterator[Text]:
    """Flags in spans and docstrings are some program's, and the value of a setting is one that it takes."""
    for span in docs.spans():
        if nanogpts(docs, span) or PROGRAMS.match(span.text):
            continue
        for flag in re.findall(r"(?<![\w-])--[a-z]\w*", span.text):
            if flag not in every_flag() | SLURMS_FLAGS:
                yield Text(span.file, span.line, f"nothing has a flag {flag}")
        setting = re.fullmatch(r"--(\w+)=\S+", span.text)
        known = setting and setting[1] in TrainConfig.__dataclass_fields__ | GPTConfig.__dataclass_fields__
        if known and (error := recipe_error("", (span.text,))):
            yield Text(span.file, span.line, error)
    for doc in docs.docstrings():
        for match in re.finditer(r"(?<![\w-])--[a-z]\w*", doc.text):
            if match[0] not in every_flag():
                yield at(doc, match.start(), f"nothing has a flag {match[0]}")


def files_exist(docs: Docs) -> Iterator[Text]:
    """Paths into our folders exist; a bare file name is one of ours, or one that the code writes or reads."""
    folders = {str(parent) + "/" for name in docs.files for parent in PurePosixPath(name).parents}
    ours = "|".join(re.escape(folder) for folder in OURS)
    for doc in docs.everything():
        for match in re.finditer(rf"(?<![\w/.-])(?:{ours})/[\w./*-]*", doc.text):
            path = match[0].rstrip(".")
            known = path in docs.files | MADE_BY_USERS or path.rstrip("/") + "/" in folders
            if not known and "*" not in path and not path.endswith("test_"):
                yield at(doc, match.start(), f"{path} does not exist")
        for match in re.finditer(r"(?<![\w/.-])[A-Z]{3,}\.md\b", doc.text):
            if match[0] not in {PurePosixPath(name).name for name in docs.files}:
                yield at(doc, match.start(), f"{match[0]} does not exist")
    names = {PurePosixPath(name).name for name in docs.files}
    for span in docs.spans():
        if not re.fullmatch(r"[\w/-]*\w\.(?:py|md|yaml|cfg|toml|txt|jsonl?|bin|safetensors|pt|pkl)", span.text):
            continue
        beside = (PurePosixPath(span.file).parent / span.text).as_posix()
        known = {span.text, beside} & (docs.files | THEIR_FILES) or ("/" not in span.text and span.text in names)
        if not known and PurePosixPath(span.text).name not in words_of_the_code() and not nanogpts(docs, span):
            yield Text(span.file, span.line, f"{span.text} is no file of ours and none that the code names")


@lru_cache
def words_of_the_code() -> frozenset[str]:
    """Names and the words of strings, comments apart, in everything that is Python here."""
    words = set()
    for folder in ("nanogpt", "data_prep", "recipes", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.parent.name == "docs":
                continue
            with tokenize.open(path) as file:
                docless = io.StringIO(file.read())
            for token in tokenize.generate_tokens(docless.readline):
                if token.type == tokenize.NAME:
                    words.add(token.string)
                elif token.type == tokenize.STRING and not token.string.startswith('"""'):
                    words |= set(re.findall(r"[\w./-]+", token.string)) | set(re.findall(r"\w+", token.string))
    return frozenset(words)


def names_exist(docs: Docs) -> Iterator[Text]:
    """Dotted names that begin with our packages can be imported; other names between backticks occur in the code."""
    for doc in docs.everything():
        for match in re.finditer(r"(?<![\w/.-])(?:nanogpt|data_prep)(?:\.[a-z_A-Z]\w*)+", doc.text):
            if not importable(match[0], docs):
                yield at(doc, match.start(), f"{match[0]} does not exist")
    known = words_of_the_code() | {PurePosixPath(file).stem for file in docs.files} | THEIR_NAMES
    for span in docs.spans():  # a_name, AName, A_VARIABLE
        name = re.fullmatch(r"([a-z]\w*_\w+|(?=\w*[a-z])[A-Z]\w*[A-Z]\w*|[A-Z][A-Z\d]*_[A-Z\d_]+)(\(\))?", span.text)
        if name and name[1] not in known and not nanogpts(docs, span):
            yield Text(span.file, span.line, f"{name[1]} is no name in the code")


def importable(name: str, docs: Docs) -> bool:
    """Whether a dotted name is a module of ours, or something in one."""
    parts = name.split(".")
    if parts[1] in ("py", "git"):
        return True
    modules = [n for n in range(1, len(parts) + 1) if {f"{'/'.join(parts[:n])}{end}" for end in MODULE} & docs.files]
    thing = importlib.import_module(".".join(parts[: max(modules)]))
    for part in parts[max(modules) :]:
        if not hasattr(thing, part):
            return False
        thing = getattr(thing, part)
    return True


def links_lead_somewhere(docs: Docs) -> Iterator[Text]:
    """Relative links have a target, and what follows # is a heading there. Others are https."""
    for link in docs.links():
        if re.match(r"[a-z]+:", link.text):
            if not link.text.startswith("https://"):
                yield Text(link.file, link.line, f"{link.text} is not https")
            continue
        path, _, heading = link.text.partition("#")
        target = (PurePosixPath(link.file).parent / path).as_posix() if path else link.file
        parts = []
        for part in target.split("/"):
            parts = parts[:-1] if part == ".." else [*parts, part]
        target = "/".join(parts)
        if target not in docs.files and not any(name.startswith(target.rstrip("/") + "/") for name in docs.files):
            yield Text(link.file, link.line, f"the link to {link.text} leads nowhere")
        elif heading and heading not in {slug(h) for h in re.findall(r"^#+ (.*)$", docs.texts[target], re.MULTILINE)}:
            yield Text(link.file, link.line, f"{target} has no heading #{heading}")


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def blocks_are_marked(docs: Docs) -> Iterator[Text]:
    """Fenced blocks are in a language that is run here, or none; a mark stands right before one, with a reason."""
    for file in docs.pages():
        for block in docs.blocks(file):
            if block.language not in LANGUAGES:
                yield Text(file, block.line, f"blocks in {block.language!r} are not checked by anything")
    for comment in docs.marks():
        if not re.fullmatch(r"<!-- (skip|needs): \S.* -->", comment.text, re.DOTALL):
            yield Text(comment.file, comment.line, "a mark is <!-- skip: reason --> or <!-- needs: VARIABLE -->")
        lines = docs.texts[comment.file].splitlines()
        if not lines[comment.line + comment.text.count("\n")].startswith("```"):
            yield Text(comment.file, comment.line, "this mark stands before no block")


def blocks_are_run(docs: Docs) -> Iterator[Text]:
    """Continuous integration's very lines are in `.ci/run` or `Makefile`; a script that is shown is run below."""
    made = docs.texts.get("Makefile", "").replace("$(PIP)", "pip").splitlines()
    for file in docs.pages():
        blocks = docs.blocks(file)
        for i, block in enumerate(blocks):
            if block.skip and "very line" in block.skip:
                for number, line in enumerate(block.code.splitlines(), block.line):
                    if f'readme "{line}"' not in docs.texts[".ci/run"].splitlines() and f"\t{line}" not in made:
                        yield Text(file, number, f".ci/run and Makefile do not have the line {line}")
            saved = SAVED.match(block.code)
            if saved and not any(f"python {saved[1]} " in later.code for later in blocks[i + 1 :]):
                yield Text(file, block.line, f"no block runs {saved[1]}")


def settings_are_listed(docs: Docs) -> Iterator[Text]:
    """docs/settings.md is what `settings_table` makes of the dataclasses."""
    expected, page = settings().splitlines(), docs.texts.get("docs/settings.md", "").splitlines()
    for number in range(max(len(expected), len(page))):
        there, due = page[number : number + 1], expected[number : number + 1]
        if there != due:
            yield Text("docs/settings.md", number + 1, f"should be {due[0] if due else 'the end'}")
            return


def folders_are_described(docs: Docs) -> Iterator[Text]:
    """The first columns of a folder's README name each of its files once, those in folders below by their path."""
    for folder in OURS[:4]:
        page = f"{folder}/README.md"
        rows = [line.split(" | ")[0] for line in docs.texts.get(page, "").splitlines()]
        named = [(i, name) for i, row in enumerate(rows, 1) if row[:3] == "| `" for name in re.findall("`(.*?)`", row)]
        for file in sorted(docs.files):
            path = PurePosixPath(file)
            if not file.startswith(f"{folder}/") or path.suffix not in (".py", ".yaml") or path.stem.startswith("__"):
                continue
            found = [i for i, name in named if name == file.removeprefix(f"{folder}/")]
            if len(found) != 1:
                yield Text(page, found[-1] if found else 1, f"{file} is named in {len(found)} rows, not in one")


def markers_exist(docs: Docs) -> Iterator[Text]:
    """What `pytest -m` selects by is a marker of pyproject.toml."""
    markers = set(re.findall(r'"(\w+): ', docs.texts["pyproject.toml"]))
    for doc in docs.everything():
        for match in re.finditer(r"\bpytest\b[^\n`]*? -m (?:'([^']*)'|(\w+))", doc.text):
            for word in set(re.findall(r"\w+", match[1] or match[2])) - markers - {"and", "or", "not"}:
                yield at(doc, match.start(), f"pyproject.toml has no marker {word}")


def extras_exist(docs: Docs) -> Iterator[Text]:
    """What stands in brackets behind `nanogpt` or `.` for pip is an extra of setup.cfg."""
    extras = re.findall(r"^(\w+) =$", docs.texts["setup.cfg"].split("extras_require]")[-1], re.MULTILINE)
    for doc in docs.everything():
        for match in re.finditer(r"(?:[ '\"]\.|\bnanogpt)\[(\w+)\]", doc.text):
            if match[1] not in extras:
                yield at(doc, match.start(), f"setup.cfg has no extra {match[1]}")
