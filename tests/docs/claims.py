"""What the documentation claims and can be looked up: each function gives what does not hold, with file and line.

`problems(docs)` is all of them. Texts come from `docs`, which a test may have damaged; flags, defaults and numbers come
from the code itself.
"""

import importlib
import io
import math
import re
import tokenize
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import PurePosixPath

from commands import PROGRAMS, check, commands, every_flag, recipe_error, settings_of
from pages import OURS, ROOT, Docs, Text
from settings_table import settings

from nanogpt import TrainConfig, plan
from nanogpt.optim import lr_at

NANOGPTS = "README.md"  # whose table has nanoGPT's names in the first column
THEIR_COMMANDS = {"python bench.py"}
THEIR_FILES = {"configurator.py", "sample.py", "config/x.py"}
SLURMS_FLAGS = {"--signal"}
MADE_BY_USERS = {"recipes/x.py", "tasks/", "mine.py"}
LANGUAGES = {"bash", "python", "text", ""}
LOSS = re.compile(r"loss (?:of |about |is )?(\d\.\d{2,4})\b")
EVALUATION = re.compile(r"validation loss (\d\.\d{4}) \((\d\.\d{3}) bits per byte\)")


def problems(docs: Docs) -> list[str]:
    """Every claim that does not hold, as `file:line: what`, in order."""
    checks = (commands_work, flags_exist, files_exist, names_exist, links_lead_somewhere, blocks_are_marked)
    checks += (settings_are_listed, folders_are_described, losses_agree, figures_follow, extras_exist)
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
    """Whether a span is in the first column of the table of nanoGPT's names."""
    line = docs.texts[span.file].splitlines()[span.line - 1]
    return span.file == NANOGPTS and span.text in line.split(" | ")[0] and line.startswith("| `")


def flags_exist(docs: Docs) -> Iterator[Text]:
    """Flags in spans and docstrings are some program's, and the value of a setting is one that it takes."""
    for span in docs.spans():
        if nanogpts(docs, span) or PROGRAMS.match(span.text):
            continue
        for flag in re.findall(r"(?<![\w-])--[a-z]\w*", span.text):
            if flag not in every_flag() | SLURMS_FLAGS:
                yield Text(span.file, span.line, f"nothing has a flag {flag}")
        setting = re.fullmatch(r"--(\w+)=\S+", span.text)
        known = setting and setting[1] in TrainConfig.__dataclass_fields__
        if known and (error := recipe_error("", (span.text,))):
            yield Text(span.file, span.line, error)
    for doc in docs.docstrings():
        for match in re.finditer(r"(?<![\w-])--[a-z]\w*", doc.text):
            if match[0] not in every_flag():
                yield at(doc, match.start(), f"nothing has a flag {match[0]}")


def at(doc: Text, position: int, what: str) -> Text:
    return Text(doc.file, doc.line + doc.text.count("\n", 0, position), what)


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
        known = span.text in docs.files | THEIR_FILES or ("/" not in span.text and span.text in names)
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
    known = words_of_the_code() | {PurePosixPath(file).stem for file in docs.files}
    for span in docs.spans():
        name = re.fullmatch(r"([a-z]\w*_\w+|[A-Z][a-z]+[A-Z]\w+)(\(\))?", span.text)
        if name and name[1] not in known and not nanogpts(docs, span):
            yield Text(span.file, span.line, f"{name[1]} is no name in the code")


def importable(name: str, docs: Docs) -> bool:
    """Whether a dotted name is a module of ours, or something in one."""
    parts = name.split(".")
    if parts[1] in ("py", "git"):
        return True
    if len(parts) > 1 and f"{parts[0]}/{parts[1]}.py" in docs.files:
        thing, rest = importlib.import_module(".".join(parts[:2])), parts[2:]
    else:
        thing, rest = importlib.import_module(parts[0]), parts[1:]
    for part in rest:
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


def settings_are_listed(docs: Docs) -> Iterator[Text]:
    """docs/settings.md is what `settings_table` makes of the dataclasses."""
    expected, page = settings().splitlines(), docs.texts.get("docs/settings.md", "").splitlines()
    for number in range(max(len(expected), len(page))):
        there, due = page[number : number + 1], expected[number : number + 1]
        if there != due:
            yield Text("docs/settings.md", number + 1, f"should be {due[0] if due else 'the end'}")
            return


def folders_are_described(docs: Docs) -> Iterator[Text]:
    """README.md has a line for each module, the README of a folder one for each of its files."""
    pages = {"nanogpt": "README.md"} | {folder: f"{folder}/README.md" for folder in OURS[1:4]}
    for folder, page in pages.items():
        text = docs.texts.get(page, "")
        for file in sorted(docs.files):
            path = PurePosixPath(file)
            if str(path.parent) != folder or path.name in ("__init__.py", "README.md"):
                continue
            if (file if page == "README.md" else path.name) not in text:
                yield Text(page, 1, f"says nothing of {file}")


def losses_agree(docs: Docs) -> Iterator[Text]:
    """A loss that is stated in prose or by a recipe is a rounding of one in LOG.md, or is nanoGPT's own figure."""
    logged = {float(number) for number in re.findall(r"\b\d\.\d{3,4}\b", docs.texts.get("LOG.md", ""))}
    for doc in docs.everything():
        if doc.file == "LOG.md" or doc.file.startswith("tests/"):
            continue
        for match in LOSS.finditer(re.sub(r"\s", " ", doc.text)):
            digits = len(match[1]) - 2
            in_a_curve = EVALUATION.match(doc.text, match.start() - len("validation "))  # of it only the end is logged
            rounds = any(round(loss, digits) == float(match[1]) for loss in logged)
            close = any(abs(loss - float(match[1])) <= 0.006 for loss in logged)
            if not (in_a_curve or rounds or (digits == 2 and close)):
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
    steps = re.findall(r"^step +(\d+)  ", output[0], re.MULTILINE)
    if steps != [str(i) for i in range(0, train.max_iters + 1, train.eval_interval)]:
        yield at(page, output.start(), f"evaluations at {steps} are not every {train.eval_interval} steps")
    if lr_at(train.max_iters, train) != train.min_lr:
        yield at(page, output.start(), "the schedule does not end with the run")


def extras_exist(docs: Docs) -> Iterator[Text]:
    """What stands in brackets behind `nanogpt` or `.` for pip is an extra of setup.cfg."""
    extras = re.findall(r"^(\w+) =$", docs.texts["setup.cfg"].split("extras_require]")[-1], re.MULTILINE)
    for doc in docs.everything():
        for match in re.finditer(r"(?:[ '\"]\.|\bnanogpt)\[(\w+)\]", doc.text):
            if match[1] not in extras:
                yield at(doc, match.start(), f"setup.cfg has no extra {match[1]}")
