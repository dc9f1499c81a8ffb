"""nanogpt: train small GPTs on the Hugging Face stack.

>>> from nanogpt import GPT, GPTConfig, TrainConfig, load, train

    model, tokenizer = load("out/shakespeare")          # a run, one of its checkpoints, a transformers directory, gpt2
    ids = torch.tensor(tokenizer.encode("ROMEO:"))[None]  # (B, T)
    print(tokenizer.decode(model.generate(ids, 100, temperature=0.8)[0].tolist()))
    train.main(GPTConfig(n_layer=4), TrainConfig(data="data/mine", out_dir="out/mine"))

GPT is the model, a torch module: `model(idx)` gives logits, `model(idx, targets)` the loss. GPT.from_pretrained loads a
model without its tokenizer. `help(GPTConfig)` and docs/settings.md list the settings; each is a flag of a recipe too.

Start reading at `nanogpt.model`, then `nanogpt.train`; `nanogpt/README.md` lists the files in reading order.
"""

import sys
from pathlib import Path


def report(kind, error, traceback, report=sys.excepthook) -> None:
    """`sys.excepthook`: Ctrl-C while a program imports modules, which takes seconds, is one line and exit code 130."""
    modules, frame = 0, traceback
    while frame:
        modules += frame.tb_frame.f_code.co_name == "<module>"  # the program's, and of each module that it is importing
        frame = frame.tb_next
    if not issubclass(kind, KeyboardInterrupt) or modules < 2 or hasattr(sys, "ps1"):  # ps1: at a prompt
        return report(kind, error, traceback)
    print("\nstopped", file=sys.stderr)
    sys.exit(130)


sys.excepthook = report  # before torch is imported

from nanogpt.config import TrainConfig  # noqa: E402
from nanogpt.model import GPT, GPTConfig  # noqa: E402

__version__ = "0.1.0"
__all__ = ["GPT", "GPTConfig", "TrainConfig", "load", "train"]


def load(run: str | Path, device: str = "cpu", **options) -> tuple:
    """Loads a run, one of its checkpoints, or a transformers directory or Hub name: returns (model, tokenizer).

    `options` are those of `nanogpt.hub.load.load`. Raises ValueError if `run` is none of these.
    """
    from nanogpt.hub.load import load

    model, tokenizer, _ = load(run, device, **options)
    return model, tokenizer
