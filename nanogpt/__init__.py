"""nanogpt: train small GPTs on the Hugging Face stack.

    import torch

    from nanogpt import GPT, GPTConfig, TrainConfig, load, train

    # a run, one of its checkpoints, a transformers directory, or a name on the Hub
    model, tokenizer = load("out/shakespeare")
    ids = torch.tensor(tokenizer.encode("ROMEO:"))[None]  # (B, T)
    print(tokenizer.decode(model.generate(ids, 100, temperature=0.8)[0].tolist()))
    train.main(GPTConfig(n_layer=4), TrainConfig(data="data/mine", out_dir="out/mine"))

GPT is the model, a torch module: `model(idx)` gives logits, `model(idx, targets)` the loss.
GPT.from_pretrained loads a model without its tokenizer. `help(GPTConfig)` and docs/settings.md list
the settings; each is a flag of a recipe too. nanogpt/README.md lists the files in reading order.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from nanogpt.run import startup  # noqa: F401

if TYPE_CHECKING:
    from nanogpt.config import TrainConfig
    from nanogpt.model import GPT, GPTConfig
    from nanogpt.text.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = ["GPT", "GPTConfig", "TrainConfig", "load", "train"]


def __getattr__(name: str):
    """Imports torch only when a class is first used, so `nanogpt --help` does not wait for it."""
    if name == "train":
        return import_module("nanogpt.train")
    module = {"GPT": "model", "GPTConfig": "model", "TrainConfig": "config"}.get(name)
    if module is None:
        raise AttributeError(f"module 'nanogpt' has no attribute {name!r}")
    return getattr(import_module(f"nanogpt.{module}"), name)


def load(run: str | Path, device: str = "cpu", **options) -> "tuple[GPT, Tokenizer]":
    """Loads a run, a checkpoint, a transformers directory or a Hub name: (model, tokenizer).

    `options` are passed to `nanogpt.hub.load.load`. Raises ValueError if `run` is none of these.
    """
    from nanogpt.hub.load import load

    model, tokenizer, _ = load(run, device, **options)
    return model, tokenizer
