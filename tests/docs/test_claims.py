"""What the documentation names exists: commands and their flags, links, files, settings.

Each check takes a text and yields its problems as (line, what), so the last test shows what each of them finds.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest
from commands import commands, every_flag, problem
from pages import FILES, OURS, PAGES, ROOT, Text, docstrings, parse_markdown
from settings_table import settings

from nanogpt.cli import COMMANDS

OTHERS = "--dataset --eval_only --dtype --decay_lr --wandb_log --backend --wandb_project --wandb_run_name --start"
# and of torchrun, Slurm, wandb and pytest
OTHERS = {*OTHERS.split(), "--nproc_per_node", "--signal", "--count", "--ignore", "--repo-type"}
BY_USERS = {"recipes/x.py"}  # stands for a file of the reader's own
HISTORY = ("CHANGELOG.md", "LOG.md")  # which speak of what is gone, too


def command_problems(text: Text, page: str = "") -> Iterator[Text]:
    for number, words in commands(text.text):
        if found := problem(words, page):
            yield Text(text.line + number, found)


def flag_problems(text: Text) -> Iterator[Text]:
    for flag in set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text.text)) - OTHERS:
        if flag.replace("-", "_") not in every_flag():
            yield Text(text.line, f"nothing has a flag {flag}")
    for name in re.findall(r"^nanogpt ([a-z][\w-]+)", text.text):
        if name not in COMMANDS:
            yield Text(text.line, f"nanogpt has no command {name}")


def file_problems(text: Text) -> Iterator[Text]:
    """Paths into our folders exist; so does a bare name in capitals, such as LOG.md."""
    folders = {f"{parent}/" for name in FILES for parent in PurePosixPath(name).parents}
    ours = "|".join(re.escape(folder) for folder in OURS)
    for match in re.finditer(rf"(?<![\w/.-])(?:(?:{ours})/[\w./-]*|[A-Z]{{3,}}\.md\b)(?!\*)", text.text):
        path = match[0].rstrip(".")
        if path not in FILES | BY_USERS and path.rstrip("/") + "/" not in folders and not path.endswith("_"):
            yield Text(text.line + text.text.count("\n", 0, match.start()), f"{path} does not exist")


def link_problems(link: Text, file: str) -> Iterator[Text]:
    """A relative link has a target, and what follows # is a heading there."""
    path, _, heading = link.text.partition("#")
    if re.match(r"https://|mailto:", link.text):
        return
    target = ((ROOT / file).parent / path).resolve() if path else ROOT / file
    slugs = []
    if heading and target.is_file():
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings]
    if not target.exists() or (heading and heading not in slugs):
        yield Text(link.line, f"the link to {link.text} leads nowhere")


def page_problems(file: str, text: str) -> list[Text]:
    page = parse_markdown(text)
    found = [problem for link in page.links for problem in link_problems(link, file)]
    if file in HISTORY:
        return found
    for block in page.blocks:
        if block.language != "python":  # quoted output has commands, too
            found += command_problems(Text(block.line, block.code), text)
    for span in page.spans:
        found += flag_problems(span)
    return found + list(file_problems(Text(1, text)))


@pytest.mark.parametrize("file", PAGES)
def test_what_a_page_names_exists(file):
    assert page_problems(file, (ROOT / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("folder", ["nanogpt", "data_prep", "recipes", "accelerate_configs"])
def test_what_docstrings_and_configurations_name_exists(folder):
    found = []
    for path in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.yaml")]:
        source = path.read_text(encoding="utf-8")
        comments = Text(1, re.sub("^# ?", "", source, flags=re.MULTILINE))
        for text in docstrings(source) if path.suffix == ".py" else [comments]:
            problems = [*command_problems(text), *flag_problems(text), *file_problems(text)]
            found += [(path.name, *problem) for problem in problems]
    assert found == []


def test_the_page_of_settings_is_up_to_date():
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == settings()


MISTAKES = {
    "```bash\nnanogpt eval out/a \\\n  --eval_itres 3\n```": (2, "unknown flag --eval_itres"),
    "```bash\npython recipes/shakespeare.py --n_embd=190 --n_head=4\n```": (2, "not divisible"),
    "`--bad_steps`": (1, "nothing has a flag --bad_steps"),
    "See [the log](README.md#logs).": (1, "the link to README.md#logs leads nowhere"),
    "line\n\nin nanogpt/modle.py": (3, "nanogpt/modle.py does not exist"),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_found_on_its_line(text):
    [found] = page_problems("README.md", text)
    line, complaint = MISTAKES[text]
    assert found.line == line and complaint in found.text
