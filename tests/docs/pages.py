"""The documentation: Markdown files with their blocks, code spans and links, and the docstrings.

A fenced block that cannot run in tests has a comment right before it: `<!-- skip: needs the Hub -->`. A block of Python
whose first line is `# known.py` is a script of that name, which a later block runs.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
OURS = ("nanogpt", "data_prep", "recipes", "accelerate_configs", "benchmarks", "tests", "docs", ".github", ".ci")
PATHS = [*ROOT.glob("*.md"), *(path for folder in OURS for path in (ROOT / folder).rglob("*.md"))]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in PATHS)
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


class Page(NamedTuple):
    blocks: list[Block]
    spans: list[Text]  # between backticks
    links: list[Text]  # their targets


def parse_markdown(text: str) -> Page:
    """The blocks, spans and links of a page. A span or link has the first line of its paragraph or row."""
    page, comment = Page([], [], []), ""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "fence":
            block = Block(token.map[0] + 2, token.info.strip(), token.content, comment.startswith("<!-- skip: "))
            page.blocks.append(block)
        comment = token.content if token.type == "html_block" else ""
        for child in token.children or []:
            if child.type == "code_inline":
                page.spans.append(Text(token.map[0] + 1, child.content))
            elif child.type in ("link_open", "image"):
                page.links.append(Text(token.map[0] + 1, child.attrs.get("href") or child.attrs.get("src")))
    return page


def docstrings(source: str) -> list[Text]:
    """Those of the module, its classes and its functions."""
    nodes = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef))
    return [Text(node.body[0].lineno, node.body[0].value.value) for node in nodes if ast.get_docstring(node)]
