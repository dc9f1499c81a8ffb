"""Figures that the documentation states: losses, speeds, the quoted output of the main job, defaults, versions.

Each function gives those that are not in LOG.md or in the code, or do not follow from each other, with file and line.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import replace

from commands import settings_of
from pages import Docs, Text, at

from nanogpt import GPTConfig, TrainConfig
from nanogpt.optim import lr_at
from nanogpt.run import plan

LOSS = re.compile(r"loss (?:of |about |is )?(\d\.\d{2,4})\b")
EVALUATION = re.compile(r"validation loss (\d\.\d{4}) \((\d\.\d{3}) bits per byte\)")
NUMBER = re.compile(r"(?<![\w.-])\d+(?:,\d{3})*(?:\.\d+)?")


def losses_agree(docs: Docs) -> Iterator[Text]:
    """A loss that is stated in prose or by a recipe is one in LOG.md, or a rounding of one."""
    logged = {float(number) for number in re.findall(r"\b\d\.\d{3,4}\b", docs.texts.get("LOG.md", ""))}
    for doc in docs.everything():
        if doc.file == "LOG.md" or doc.file.startswith("tests/"):
            continue
        for match in LOSS.finditer(re.sub(r"\s", " ", doc.text)):
            digits = len(match[1]) - 2
            in_a_curve = EVALUATION.match(doc.text, match.start() - len("validation "))  # of it only the end is logged
            rounds = any(round(loss, digits) == float(match[1]) for loss in logged)
            if not (in_a_curve or rounds):
                yield at(doc, match.start(1), f"loss {match[1]} is not in LOG.md")


def figures_follow(docs: Docs) -> Iterator[Text]:
    """The quoted output of the main job agrees with itself, with the recipe, and with arithmetic."""
    text = docs.texts["README.md"]
    page = Text("README.md", 1, text)
    for match in EVALUATION.finditer(text):
        if abs(float(match[1]) / math.log(2) - float(match[2])) > 0.0006:
            yield at(
                page, match.start(), f"{match[1]} nats are {float(match[1]) / math.log(2):.3f} bits, not {match[2]}"
            )
    model, train = settings_of("recipes/shakespeare.py")
    output = re.search(r"^model   .*?^800 steps.*?$", text, re.DOTALL | re.MULTILINE)
    if not output:
        yield Text("README.md", 1, "the output of the main job is missing, or its steps are not the recipe's")
        return
    model = replace(model, vocab_size=int(re.search(r"vocabulary (\d+)", output[0])[1]))
    tokens = int(re.search(r"([\d,]+) tokens to train on", output[0])[1].replace(",", ""))
    shape = train.gradient_accumulation_steps, train.batch_size, model.block_size
    step = math.prod(shape)
    count = sum(plan.parameters(model).values())
    expected = {
        r"([\d,]+) parameters": f"{count:,}",
        r"parameters: (.*) channels": f"{model.n_layer} layers, {model.n_head} heads, {model.n_embd}",
        r"steps   (\d+) of": f"{train.max_iters}",
        r"of ([\d,]+) tokens \(": f"{step:,}",
        r"tokens \((.*?)\)": "{} x {} sequences of {}".format(*shape),
        r"([\d.]+) epochs": f"{train.max_iters * step / tokens:.2f}",
        r"optimizer (\w+)": train.optimizer,
        r"output  (\S+)": train.out_dir,
        r"best validation loss .* at step (\d+)": f"{train.max_iters}",
        r"best validation loss (\S+)": min(EVALUATION.findall(text))[0],
    }
    for pattern, value in expected.items():
        found = re.search(pattern, output[0])
        if not found or found[1] != value:
            position = output.start() + (found.start() if found else 0)
            yield at(page, position, f"{found[1] if found else 'nothing'} should be {value}")
    steps = re.findall(r"^step +(\d+)  validation", output[0], re.MULTILINE)
    if steps != [str(i) for i in range(0, train.max_iters + 1, train.eval_interval)]:
        yield at(page, output.start(), f"evaluations at {steps} are not every {train.eval_interval} steps")
    if lr_at(train.max_iters, train) != train.min_lr:
        yield at(page, output.start(), "the schedule does not end with the run")


def speeds_are_logged(docs: Docs) -> Iterator[Text]:
    """The numbers of a row of README.md's table of speeds stand in one section of LOG.md, or those that they round."""
    page = Text("README.md", 1, docs.texts["README.md"])
    logged = [numbers(section) for section in docs.texts.get("LOG.md", "").split("\n## ")]
    start = page.text.index("### Speed\n")
    end = page.text.index("\n## ", start)
    for row in re.finditer(r"^\| .*$", page.text[start:end], re.MULTILINE):
        stated = numbers(row[0])
        missing = min((stated - rounded(section, stated) for section in logged), key=len)
        if missing:
            yield at(
                page, start + row.start(), f"{', '.join(sorted(missing))}: in no section of LOG.md with the others"
            )


def numbers(text: str) -> set[str]:
    return {number.replace(",", "") for number in NUMBER.findall(text)}


def rounded(exact: set[str], wanted: set[str]) -> set[str]:
    """Those of `wanted` to which a number in `exact` can be rounded."""
    return {w for w in wanted if any(round(float(x), len(w.partition(".")[2])) == float(w) for x in exact)}


def defaults_are_right(docs: Docs) -> Iterator[Text]:
    """A number in brackets soon after a setting, as in `--timeout` seconds (600), is the default."""
    for doc in docs.everything():
        for match in re.finditer(r"`--(\w+)`[^.`(|]{0,40}\((\d+)\)", doc.text):
            default = {**vars(GPTConfig()), **vars(TrainConfig())}.get(match[1])
            if default != float(match[2]):
                yield at(doc, match.start(2), f"the default of --{match[1]} is {default}, not {match[2]}")


def versions_agree(docs: Docs) -> Iterator[Text]:
    """The oldest Python is the one of setup.cfg, in prose and for continuous integration."""
    oldest = re.search(r"python_requires = >=(\S+)", docs.texts["setup.cfg"])[1]
    workflow = Text(".github/workflows/ci.yml", 1, docs.texts[".github/workflows/ci.yml"])
    for doc in (*docs.everything(), workflow):
        for match in re.finditer(r"Python (\d\.\d+) or newer|python: \[\"([\d.]+)\"", doc.text):
            if oldest != (match[1] or match[2]):
                yield at(doc, match.start(), f"the oldest Python is {oldest} in setup.cfg")
