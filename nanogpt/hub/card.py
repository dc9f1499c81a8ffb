"""The model card of an export: what it is, where it comes from, how good it is, how to load it."""

import dataclasses
import json
from pathlib import Path

from nanogpt import checkpoint, metrics
from nanogpt.config import INCIDENTAL, TrainConfig
from nanogpt.data.mixture import read_shares
from nanogpt.model import GPT

CURVE = "training_curve.png"
# settings that say nothing about the model, or are said elsewhere
LEFT_OUT = INCIDENTAL | {"data", "device", "compile", "gradient_checkpointing"}

CARD = """\
---
{metadata}
---

# {title}

A GPT with {parameters:,} parameters, trained with nanogpt. It is a plain `{native}` of transformers.

```python
from transformers import pipeline

generate = pipeline("text-generation", "{repo}")
print(generate({prompt!r}, max_new_tokens={new_tokens})[0]["generated_text"])
```

The context is {block_size:,} tokens long, prompt and answer together.
{training}
## Limits

It repeats what it was trained on, with its errors and its biases, and knows nothing else.
"""

TRAINING = """
## Training

{curve}{results}

Data: {data}.

| setting | value |
| --- | --- |
{settings}
{versions}"""


def write(
    directory: Path, *, model: GPT, native: str, repo: str, license: str, prompt: str, source: Path | None, curve: bool
) -> None:
    """Writes README.md into an export.

    `native` is transformers' class, `source` the checkpoint that the export was made of (None for a model from
    elsewhere); `curve` tells whether its picture lies beside.
    """
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(
        license=license, library_name="transformers", pipeline_tag="text-generation", tags=["nanogpt"]
    )
    card = CARD.format(
        metadata=metadata.to_yaml(),
        title=repo.rstrip("/").rpartition("/")[2],
        parameters=model.get_num_params(),
        native=native,
        repo=repo,
        prompt=prompt,
        new_tokens=min(200, model.config.block_size // 2),
        block_size=model.config.block_size,
        training=training(source, curve) if source else "",
    )
    (directory / "README.md").write_text(card, encoding="utf-8")


def training(source: Path, curve: bool) -> str:
    """The part of the card that tells how a checkpoint came about."""
    state, config = checkpoint.read_json(source / checkpoint.STATE), checkpoint.read_json(source / checkpoint.CONFIG)
    lines = metrics.read(source.parent / "metrics.jsonl")
    here = [line for line in lines if line["step"] == state["step"] and {"val_loss", "val_bpb"} <= line.keys()]
    results = f"{state['step']:,} steps, {state['tokens']:,} tokens, {state['train_seconds']:,.0f} s of training"
    if "device" in config["environment"]:
        results += f" on {config['environment']['device']} in {config['environment']['precision']}"
    results += "."
    if here:
        results += (
            f" Validation loss {here[-1]['val_loss']:.4f} nats per token, {here[-1]['val_bpb']:.4f} bits per byte."
        )
    settings, defaults = config["model"] | config["train"], dataclasses.asdict(TrainConfig())
    shown = {k: v for k, v in settings.items() if v is not None and v != defaults.get(k) and k not in LEFT_OUT}
    names = [name for name in ("python", "nanogpt", "torch", "accelerate") if name in config["environment"]]
    versions = ", ".join(f"{name} {config['environment'][name]}" for name in names)
    return TRAINING.format(
        curve=f"![training curve]({CURVE})\n\n" if curve else "",
        results=results,
        data=data_line(settings["data"]),
        settings="\n".join(f"| {name} | {value} |" for name, value in shown.items()),
        versions=f"\nVersions: {versions}.\n" if versions else "",
    )


def data_line(data: str) -> str:
    """What is known of a run's data: a directory, or a mixture of several."""
    shares = read_shares(data)
    if len(shares) == 1:
        return directory_line(Path(data))
    parts = [f"{share:.4g} of {directory_line(Path(directory))}" for directory, share in shares.items()]
    return f"a mixture: {', '.join(parts)}"


def directory_line(directory: Path) -> str:
    """What `meta.json` says of the data, where it is still there."""
    try:
        meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
        tokens = meta["splits"]["train"]["tokens"]
        source = Path(meta["source"]).name if Path(meta["source"]).is_absolute() else meta["source"]
        return f"{source} ({tokens:,} training tokens, {meta['tokenizer']} tokenizer)"
    except (OSError, ValueError, KeyError, TypeError):
        return directory.name
