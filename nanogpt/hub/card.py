"""The model card of an export: how to load the model, how good it is, how it was trained."""

import json
import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from nanogpt import checkpoint
from nanogpt.config import TrainConfig, ignored_by
from nanogpt.data.files import read_json
from nanogpt.model import GPT, GPTConfig
from nanogpt.run import plot
from nanogpt.text.directories import read_shares

CURVE = "training_curve.png"

CARD = """\
---
license: {license}
library_name: transformers
pipeline_tag: text-generation
tags: [nanogpt]
---

# {title}

A GPT with {parameters:,} parameters, trained with nanogpt; a plain `{native}` of transformers.

```python
from transformers import pipeline

generate = pipeline("text-generation", {repo})
print(generate({prompt!r}, max_new_tokens={new_tokens})[0]["generated_text"])
```

The context is {block_size:,} tokens long, prompt and answer together.
"""

TRAINING = """
## Training

{results}.

Data: {data}.

| setting | value |
| --- | --- |
{settings}
"""


def write(
    directory: Path, model: GPT, native: str, repo: str, license: str, prompt, training: str
) -> None:
    """Writes README.md into an export.

    `native` is the transformers class, `repo` and `prompt` (a text, or messages) are those of the
    example, `training` is the section of that name.
    """
    card = CARD.format(
        license=json.dumps(license),
        title=repo.rstrip("/").rpartition("/")[2],
        parameters=model.get_num_params(),
        native=native,
        repo=json.dumps(repo, ensure_ascii=False),
        prompt=prompt,
        new_tokens=min(200, model.config.block_size // 2),
        block_size=model.config.block_size,
    )
    (directory / "README.md").write_text(card + training, encoding="utf-8")


def training(source: Path, directory: Path) -> str:
    """The section about the training of a checkpoint; draws the losses into the `directory`."""
    model, train = checkpoint.load_configs(source)
    state = checkpoint.read_state(source)
    environment = read_json(source / checkpoint.CONFIG).get("environment") or {}
    defaults, hidden = asdict(GPTConfig()) | asdict(TrainConfig()), ignored_by("card")
    settings = []
    for name, value in (asdict(model) | asdict(train)).items():
        if value not in (None, defaults.get(name)) and name not in hidden:
            value = without_directories(value) if name == "init_from" else value
            settings.append(f"| {name} | {value} |")
    results = f"{state.step:,} steps, {state.tokens:,} tokens, "
    results += f"{state.train_seconds:,.0f} s of training"
    if "device" in environment:
        results += f" on {environment['device']} in {environment.get('precision')}"
    if state.best_step == state.step:
        results += f". Validation loss {state.best_val_loss:.4f} nats per token"
    if plot.curves([source.parent], directory / CURVE):
        results = f"![training curve]({CURVE})\n\n{results}"
    data = data_line(train.data)
    return TRAINING.format(results=results, data=data, settings="\n".join(settings))


def data_line(data: str) -> str:
    """Describes a run's data: a directory, or a mixture of several, by their `meta.json`."""
    lines = []
    for directory, share in read_shares(data).items():
        line = Path(directory).name
        with suppress(ValueError, KeyError, TypeError):  # the directory is not here any more
            meta = read_json(Path(directory, "meta.json"))
            name, tokens = without_directories(meta["source"]), meta["splits"]["train"]["tokens"]
            line = f"{name} ({tokens:,} training tokens, {meta['tokenizer']} tokenizer)"
        lines.append(line if share == 1 else f"{share:.4g} of {line}")
    return ", ".join(lines)


def without_directories(names: str) -> str:
    """Names, separated by spaces, without the directories of absolute paths: a card is public."""
    return re.sub(r"(?<!\S)/\S*/(?=\S)", "", names)
