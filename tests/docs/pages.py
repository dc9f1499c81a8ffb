"""What there is to read: Markdown files, docstrings and the comments of launcher settings, with file and line.

Markdown is parsed by markdown-it, Python by ast. A fenced block that cannot run where the tests run has a comment with
the reason right before it, `<!-- skip: needs the Hub -->`, or one that names the environment variable without which it
cannot, `<!-- needs: TIKTOKEN_CACHE_DIR -->`. A block of Python whose first line is `# known.py` is a script of
that name, which a later block runs.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
OURS = ("nanogpt", "data_prep", "recipes", "accelerate_configs", "tests", "docs", ".github", ".ci")
TEXTS = (".md", ".py", ".yaml", ".yml", ".cfg", ".toml")
SAVED = re.compile(r"# (\w+\.py)\n")  # the first line of a script that a block below runs
DIRECTIVE = re.compile(r"<!--\s*(skip|needs):\s*(.*?)\s*-->\s*", re.DOTALL)


class Text(NamedTuple):
    """Some text and where it begins."""

    file: str
    line: int
    text: str


def at(doc: Text, position: int, what: str) -> Text:
    """Something about the line of `doc` in which `position` is."""
    return Text(doc.file, doc.line + doc.text.count("\n", 0, position), what)


class Block(NamedTuple):
    file: str
    line: int  # of the first line of code
    language: str
    code: str
    skip: str | None  # why it does not run here
    needs: str | None  # the environment variable without which it cannot


@dataclass(frozen=True)
class Docs:
    """The project as its documentation sees it: texts to be read, and the names of all files."""

    texts: dict[str, str]  # path -> content, of .ci/run, Makefile and files that end with one of TEXTS
    files: frozenset[str]

    @classmethod
    def read(cls, root: Path = ROOT) -> "Docs":
        paths = [
            *root.glob("*.*"),
            root / "Makefile",
            *(path for folder in OURS for path in (root / folder).rglob("*")),
        ]
        paths = [path for path in paths if path.is_file() and "__pycache__" not in path.parts]
        names = {path.relative_to(root).as_posix(): path for path in paths}
        readable = {name: p for name, p in names.items() if p.suffix in TEXTS or name in (".ci/run", "Makefile")}
        return cls({name: p.read_text(encoding="utf-8") for name, p in readable.items()}, frozenset(names))

    def change(self, file: str, old: str, new: str) -> "Docs":
        """A copy with one text changed; raises if `old` is not in it."""
        assert old in self.texts[file], f"{file} does not have {old!r}"
        return replace(self, texts=self.texts | {file: self.texts[file].replace(old, new, 1)})

    def without(self, file: str) -> "Docs":
        """A copy without one file."""
        return Docs({k: v for k, v in self.texts.items() if k != file}, self.files - {file})

    def pages(self) -> list[str]:
        """The Markdown files."""
        return sorted(name for name in self.texts if name.endswith(".md"))

    def blocks(self, file: str) -> list[Block]:
        return read_markdown(file, self.texts[file])[0]

    def spans(self) -> Iterator[Text]:
        """What stands between backticks, in Markdown's prose and in docstrings."""
        for file, text in self.texts.items():
            if file.endswith(".md"):
                yield from read_markdown(file, text)[1]
        for doc in self.docstrings():
            for match in re.finditer(r"(?<!`)`([^`\n]+)`(?!`)", doc.text):
                yield Text(doc.file, doc.line + doc.text.count("\n", 0, match.start()), match[1])

    def docstrings(self) -> Iterator[Text]:
        """Docstrings of modules, classes and functions, and the comments that launcher settings begin with."""
        for file, text in self.texts.items():
            if file.endswith(".py") and not file.startswith("tests/integration/"):  # which are nobody's documentation
                yield from read_docstrings(file, text)
            elif file.startswith("accelerate_configs/") and file.endswith(".yaml"):
                yield Text(file, 1, re.sub("^# ?", " ", text, flags=re.MULTILINE))

    def everything(self) -> Iterator[Text]:
        """All Markdown and all docstrings, as they are."""
        yield from (Text(file, 1, self.texts[file]) for file in self.pages())
        yield from self.docstrings()

    def marks(self) -> Iterator[Text]:
        """The comments of Markdown files, which are all about blocks."""
        for file in self.pages():
            yield from read_markdown(file, self.texts[file])[3]

    def links(self) -> Iterator[Text]:
        for file in self.pages():
            yield from read_markdown(file, self.texts[file])[2]


@lru_cache(maxsize=500)
def read_markdown(file: str, text: str) -> tuple[list[Block], list[Text], list[Text], list[Text]]:
    """Fenced blocks, code spans, the targets of links, and comments."""
    blocks, spans, links, marks = [], [], [], []
    directive = None
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "html_block":
            directive = DIRECTIVE.fullmatch(token.content)
            marks.append(Text(file, token.map[0] + 1, token.content.strip()))
            continue
        if token.type == "fence":
            kind, value = directive.groups() if directive else (None, None)
            why = {"skip": value if kind == "skip" else None, "needs": value if kind == "needs" else None}
            blocks.append(Block(file, token.map[0] + 2, token.info.strip(), token.content, **why))
        directive = None
        if token.type != "inline":
            continue
        at = 0
        for child in token.children:
            if child.type == "code_inline":
                pattern = r"\s+".join(re.escape(word) for word in child.content.split())
                match = re.compile(pattern).search(token.content, at)
                at = match.end()
                line = token.map[0] + 1 + token.content.count("\n", 0, match.start())
                spans.append(Text(file, line, child.content))
            elif child.type in ("link_open", "image"):
                target = child.attrs.get("href") or child.attrs.get("src")
                before = token.content.find(f"]({target}")
                links.append(Text(file, token.map[0] + 1 + token.content.count("\n", 0, max(before, 0)), target))
    return blocks, spans, links, marks


@lru_cache(maxsize=500)
def read_docstrings(file: str, source: str) -> list[Text]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            found.append(Text(file, node.body[0].lineno, node.body[0].value.value))
    return found
