"""The documentation: Markdown files with their blocks, code spans and links, and the docstrings.

A fenced block that cannot run in tests has a comment right before it: `<!-- skip: needs the Hub -->`. A block of Python
whose first line is `# known.py` is a script of that name, which a later block runs.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
OURS = ("nanogpt", "data_prep", "recipes", "accelerate_configs", "benchmarks", "tests", "docs", ".github", ".ci")
PATHS = [*ROOT.glob("*.md"), *(path for folder in OURS for path in (ROOT / folder).rglob("*.md"))]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in PATHS)
BLOCK = re.compile(r"(<!-- skip: [^\n]*-->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAVED = re.compile(r"# (\w+\.py)\n")  # the first line of a script that a block below runs


class Text(NamedTuple):
    """Some text and the line where it begins."""

    line: int
    text: str


class Block(NamedTuple):
    line: int  # of the first line of code
    language: str
    code: str
    skip: bool


def lines(pattern: str, text: str) -> list[Text]:
    """What the group of a pattern finds."""
    return [Text(text.count("\n", 0, m.start(1)) + 1, m[1]) for m in re.finditer(pattern, text)]


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    found = BLOCK.finditer(text)
    return [Block(text.count("\n", 0, m.start(3)) + 1, m[2], m[3], bool(m[1])) for m in found]


def spans_and_links(text: str) -> tuple[list[Text], list[Text]]:
    """What stands between backticks on a page, and the targets of its links."""
    prose = BLOCK.sub(lambda m: "\n" * m[0].count("\n"), text)
    return lines(r"(?<!`)`([^`]+)`(?!`)", prose), lines(r"\]\(([^)\s]+)\)", prose)


def docstrings(source: str) -> list[Text]:
    """Those of the module, its classes and its functions."""
    nodes = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef))
    return [Text(node.body[0].lineno, node.body[0].value.value) for node in nodes if ast.get_docstring(node)]
