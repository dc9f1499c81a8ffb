"""What the documentation names exists: commands and their flags, links, settings.

Each check takes a text and yields its problems as (line, what).
"""

import re
from collections.abc import Iterator

import pytest
from commands import commands, every_flag, problem
from pages import PAGES, ROOT, Text, blocks, docstrings, spans_and_links
from settings_table import settings

from nanogpt.cli import COMMANDS

OTHERS = "--dataset --eval_only --dtype --decay_lr --wandb_log --backend --wandb_project --wandb_run_name --start"
# and of torchrun, Slurm, wandb, pytest and hf
OTHERS = {*OTHERS.split(), "--nproc_per_node", "--signal", "--gpus-per-node", "--count", "--ignore", "--repo-type"}
HISTORY = ("CHANGELOG.md", "LOG.md")  # which speak of what is gone, too


def command_problems(text: Text) -> Iterator[Text]:
    for number, words in commands(text.text):
        if found := problem(words):
            yield Text(text.line + number, found)


def flag_problems(text: Text) -> Iterator[Text]:
    for flag in set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text.text)) - OTHERS:
        if flag.replace("-", "_") not in every_flag():
            yield Text(text.line, f"nothing has a flag {flag}")
    for name in re.findall(r"^nanogpt ([a-z][\w-]+)", text.text):
        if name not in COMMANDS:
            yield Text(text.line, f"nanogpt has no command {name}")


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
    spans, links = spans_and_links(text)
    found = [problem for link in links for problem in link_problems(link, file)]
    if file in HISTORY:
        return found
    for block in blocks(text):
        if block.language != "python":  # quoted output has commands, too
            found += command_problems(Text(block.line, block.code))
    for span in spans:
        found += flag_problems(span)
    return found


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
            found += [(path.name, *problem) for problem in (*command_problems(text), *flag_problems(text))]
    assert found == []


def test_the_page_of_settings_is_up_to_date():
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == settings()
