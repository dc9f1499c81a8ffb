"""The model card of an export: what it is, where it comes from, how good it is, how to load it."""

import json
import shlex
from contextlib import suppress
from dataclasses import asdict
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

The model reproduces the errors and biases of its training data and knows nothing else.
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
    """What a checkpoint says about its run."""

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
    environment, command = config.get("environment"), config.get("command")
    return RunInfo(
        source.parent,
        state,
        asdict(model) | asdict(train),
        environment if isinstance(environment, dict) else {},
        [str(word) for word in command] if isinstance(command, list) else [],
        read_figures(source.with_name(f"{source.name}.eval.json")),
    )


def read_figures(path: Path) -> list[Figure]:
    """The results of tasks that `nanogpt eval` stored next to a checkpoint.

    lm_eval names them METRIC,FILTER and METRIC_stderr,FILTER.
    """
    found = []
    with suppress(ValueError, AttributeError, TypeError):  # no such file, or damaged
        for results in read_json(path).values():
            if "limit" not in results:  # the loss of a split
                continue
            limit = results.pop("limit")
            for task, values in results.items():
                for name, value in values.items():
                    metric, _, filter = name.partition(",")
                    if isinstance(value, float) and not metric.endswith("_stderr"):
                        error = values.get(f"{metric}_stderr,{filter}")
                        error = error if isinstance(error, float) else None
                        shown = metric if filter == "none" else name
                        found.append(Figure(task, limit, shown, value, error))
    return found


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
    from huggingface_hub import EvalResult, ModelCardData

    title = repo.rstrip("/").rpartition("/")[2]
    figures = info.figures if info else []
    rows = []
    for task, limit, metric, value, error in figures:
        error = "" if error is None else f"{error:.4f}"
        rows.append(f"| {task} | {limit or 'all'} | {metric} | {value:.4f} | {error} |")
    results = [  # for the Hub, without those on only some examples
        EvalResult("text-generation", task, task, metric, round(value, 6))
        for task, limit, metric, value, _ in figures
        if limit is None
    ]
    metadata = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["nanogpt"],
        model_name=title if figures else None,
        eval_results=results or None,
    )
    conversational = isinstance(prompt, list)
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
        conversations=CONVERSATIONS.format(template=chat.TEMPLATE) if conversational else "",
        training=training(info, curve) if info else "",
        evaluation=EVALUATION.format(rows="\n".join(rows)) if rows else "",
    )
    (directory / "README.md").write_text(card, encoding="utf-8")


def command_line(command: list[str]) -> str:
    """The command that trains the model again, without incidental flags and absolute paths."""
    words, skipping = ["accelerate", "launch"], False
    for word in command:
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            skipping = flag[2:].replace("-", "_") in ignored_by("compare", "card")
        if not skipping:
            path = Path(value if equals else word)
            name = path.name if path.is_absolute() else str(path)
            words.append(f"{flag}={name}" if equals else name)
    return shlex.join(words)


def training(info: RunInfo, curve: bool) -> str:
    """The card's section about training."""
    state, environment = info.state, info.environment
    results = f"{state['step']:,} steps, {state['tokens']:,} tokens, "
    results += f"{state['train_seconds']:,.0f} s of training"
    if "device" in environment:
        results += f" on {environment['device']} in {environment.get('precision')}"
    results += "."
    for line in reversed(metrics.read(info.out_dir / "metrics.jsonl")):
        if line["step"] == state["step"] and {"val_loss", "val_bpb"} <= line.keys():
            results += f" Validation loss {line['val_loss']:.4f} nats per token, "
            results += f"{line['val_bpb']:.4f} bits per byte."
            break
    defaults, hidden = asdict(TrainConfig()), ignored_by("card")
    settings = [
        f"| {name} | {value} |"
        for name, value in info.settings.items()
        if value not in (None, defaults.get(name)) and name not in hidden
    ]
    names = [name for name in ("python", "nanogpt", "torch", "accelerate") if name in environment]
    versions = ", ".join(f"{name} {environment[name]}" for name in names)
    return TRAINING.format(
        curve=f"![training curve]({CURVE})\n\n" if curve else "",
        results=results,
        data=data_line(info.settings["data"]),
        command=f"\n```bash\n{command_line(info.command)}\n```\n" if info.command else "",
        settings="\n".join(settings),
        versions=f"\nVersions: {versions}.\n" if versions else "",
    )


def data_line(data: str) -> str:
    """Describes a run's data: a directory, or a mixture of several, by their `meta.json`."""
    lines = []
    for directory, share in read_shares(data).items():
        line = Path(directory).name
        with suppress(ValueError, KeyError, TypeError):  # the directory is not here any more
            meta = read_json(local(directory) / "meta.json")
            source, tokens = Path(meta["source"]), meta["splits"]["train"]["tokens"]
            name = source.name if source.is_absolute() else meta["source"]
            line = f"{name} ({tokens:,} training tokens, {meta['tokenizer']} tokenizer)"
        lines.append(line if share == 1 else f"{share:.4g} of {line}")
    return lines[0] if len(lines) == 1 else f"a mixture: {', '.join(lines)}"
