"""The model card of an export: what it is, where it comes from, how good it is, how to load it."""

import dataclasses
import json
import shlex
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from nanogpt import chat, checkpoint
from nanogpt.config import TrainConfig, ignored_by
from nanogpt.data.files import read_json
from nanogpt.data.mixture import read_shares
from nanogpt.data.remote import local
from nanogpt.model import GPT
from nanogpt.run import metrics

CURVE = "training_curve.png"
# settings that do not describe the model, or are elsewhere in the card

CARD = """\
---
{metadata}
---

# {title}

A GPT with {parameters:,} parameters, trained with nanogpt; a plain `{native}` of transformers.

```python
from transformers import pipeline

generate = pipeline("text-generation", {repo})
print(generate({prompt!r}, max_new_tokens={new_tokens})[0]["generated_text"])
```

The context is {block_size:,} tokens long, prompt and answer together.{notes}
{conversations}{training}{evaluation}
## Limits

It repeats what it was trained on, with its errors and its biases, and knows nothing else.
"""

CONVERSATIONS = """
## Conversations

`tokenizer.apply_chat_template` renders messages with this template, and so does `pipeline`:

```jinja
{template}
```
"""

EVALUATION = """
## Evaluation

Measured with lm_eval (`nanogpt eval --tasks`):

| task | examples | metric | value | standard error |
| --- | --- | --- | --- | --- |
{rows}
"""

TRAINING = """
## Training

{curve}{results}

Data: {data}.
{command}
| setting | value |
| --- | --- |
{settings}
{versions}"""


class Figure(NamedTuple):
    """A result of `nanogpt eval --tasks`."""

    task: str
    limit: int | None  # number of examples; None: all
    metric: str
    value: float
    error: float | None  # standard error


class RunInfo(NamedTuple):
    """What a checkpoint says about its run, read at once: a run in training may remove it."""

    out_dir: Path
    state: dict
    settings: dict
    environment: dict
    command: list[str]  # that started the run; empty if unknown
    figures: list[Figure]


def read(source: Path) -> RunInfo:
    """Reads a checkpoint's information. Raises ValueError if a file is missing or damaged."""
    state = vars(checkpoint.read_state(source))
    config = checkpoint.read_json(source / checkpoint.CONFIG)
    model, train = checkpoint.load_configs(source)
    environment = config.get("environment", {})
    settings = dataclasses.asdict(model) | dataclasses.asdict(train)
    environment = environment if isinstance(environment, dict) else {}
    command = config.get("command")
    command = [str(word) for word in command] if isinstance(command, list) else []
    return RunInfo(source.parent, state, settings, environment, command, read_figures(source))


def read_figures(source: Path) -> list[Figure]:
    """The results of tasks that `nanogpt eval` stored next to a checkpoint."""
    found = []
    with suppress(ValueError, OSError, AttributeError, TypeError):  # no such file, or damaged
        for results in read_json(source.with_name(f"{source.name}.eval.json")).values():
            if "limit" not in results:  # the loss of a split
                continue
            for task, values in results.items():
                if isinstance(values, dict):
                    found += task_figures(task, results["limit"], values)
    return found


def task_figures(task: str, limit: int | None, values: dict) -> list[Figure]:
    """The figures in lm_eval's results of a task, named METRIC,FILTER and METRIC_stderr,FILTER."""
    figures = []
    for name, value in values.items():
        metric, _, filter = name.partition(",")
        if isinstance(value, float) and not metric.endswith("_stderr"):
            error = values.get(f"{metric}_stderr,{filter}")
            if not isinstance(error, float):
                error = None
            shown = metric if filter == "none" else name
            figures.append(Figure(task, limit, shown, value, error))
    return figures


def write(
    directory: Path,
    *,
    model: GPT,
    native: str,
    repo: str,
    license: str,
    prompt: str | list[dict],
    notes: list[str],
    info: RunInfo | None,
    curve: bool,
) -> None:
    """Writes README.md into an export.

    `native` is the transformers class, `repo` and `prompt` are those of the example, `info` is that
    of the exported checkpoint (None for a model from elsewhere); `curve` tells whether the export
    has a picture of its losses.
    """
    from huggingface_hub import ModelCardData

    title = repo.rstrip("/").rpartition("/")[2]
    figures = info.figures if info else []
    conversations = ""
    if isinstance(prompt, list):
        conversations = CONVERSATIONS.format(template=chat.TEMPLATE)
    metadata = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["nanogpt"],
        model_name=title if figures else None,
        eval_results=to_hub(figures),
    )
    card = CARD.format(
        metadata=metadata.to_yaml(),
        title=title,
        parameters=model.get_num_params(),
        native=native,
        repo=json.dumps(repo, ensure_ascii=False),
        prompt=prompt,
        new_tokens=min(200, model.config.block_size // 2),
        block_size=model.config.block_size,
        notes="".join(f" {note[0].upper()}{note[1:]}." for note in notes),
        conversations=conversations,
        training=training(info, curve) if info else "",
        evaluation=EVALUATION.format(rows="\n".join(map(row, figures))) if figures else "",
    )
    (directory / "README.md").write_text(card, encoding="utf-8")


def row(figure: Figure) -> str:
    error = "" if figure.error is None else f"{figure.error:.4f}"
    examples = figure.limit or "all"
    return f"| {figure.task} | {examples} | {figure.metric} | {figure.value:.4f} | {error} |"


def to_hub(figures: list[Figure]) -> list | None:
    """The results for the Hub's model index, without those on only some examples."""
    from huggingface_hub import EvalResult

    found = [
        EvalResult(
            "text-generation", figure.task, figure.task, figure.metric, round(figure.value, 6)
        )
        for figure in figures
        if figure.limit is None
    ]
    return found or None


def command_line(command: list[str]) -> str:
    """The command that trains the model again, without incidental flags and absolute paths."""
    words, skipping = [], False
    for word in command:
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") in ignored_by("compare", "card"):
            skipping = not equals  # its value follows, if it has one
        elif not word.startswith("--") and skipping:
            skipping = False
        else:
            skipping = False
            path = Path(value if equals else word)
            if path.is_absolute():
                word = f"{flag}={path.name}" if equals else path.name
            words.append(word)
    return shlex.join(["accelerate", "launch", *words])


def training(info: RunInfo, curve: bool) -> str:
    """The card's section about training."""
    state, settings, environment = info.state, info.settings, info.environment
    lines = metrics.read(info.out_dir / "metrics.jsonl")
    results = f"{state['step']:,} steps, {state['tokens']:,} tokens, "
    results += f"{state['train_seconds']:,.0f} s of training"
    if "device" in environment:
        results += f" on {environment['device']} in {environment.get('precision')}"
    results += "."
    for line in reversed(lines):
        if line["step"] == state["step"] and {"val_loss", "val_bpb"} <= line.keys():
            results += f" Validation loss {line['val_loss']:.4f} nats per token, "
            results += f"{line['val_bpb']:.4f} bits per byte."
            break
    defaults = dataclasses.asdict(TrainConfig())
    shown = {
        k: v
        for k, v in settings.items()
        if v is not None and v != defaults.get(k) and k not in ignored_by("card")
    }
    names = [name for name in ("python", "nanogpt", "torch", "accelerate") if name in environment]
    versions = ", ".join(f"{name} {environment[name]}" for name in names)
    return TRAINING.format(
        curve=f"![training curve]({CURVE})\n\n" if curve else "",
        results=results,
        data=data_line(settings["data"]),
        command=f"\n```bash\n{command_line(info.command)}\n```\n" if info.command else "",
        settings="\n".join(f"| {name} | {value} |" for name, value in shown.items()),
        versions=f"\nVersions: {versions}.\n" if versions else "",
    )


def data_line(data: str) -> str:
    """Describes a run's data: a directory, or a mixture of several."""
    shares = read_shares(data)
    if len(shares) == 1:
        return directory_line(data)
    parts = [f"{share:.4g} of {directory_line(directory)}" for directory, share in shares.items()]
    return f"a mixture: {', '.join(parts)}"


def directory_line(directory: str) -> str:
    """Describes a data directory by its `meta.json`, if that still exists."""
    try:
        meta = read_json(local(directory) / "meta.json")
        tokens = meta["splits"]["train"]["tokens"]
        source = Path(meta["source"]).name if Path(meta["source"]).is_absolute() else meta["source"]
        return f"{source} ({tokens:,} training tokens, {meta['tokenizer']} tokenizer)"
    except (ValueError, KeyError, TypeError):
        return Path(directory).name
