"""nanogpt: train small GPTs on the Hugging Face stack.

>>> from nanogpt import GPT, GPTConfig, TrainConfig, load, train

`GPT` is the model, `train.main(GPTConfig(...), TrainConfig(...))` trains one, `load("out/x")` reads it back. Start
reading at `nanogpt.model`, then `nanogpt.train`; `nanogpt/README.md` lists the files in reading order.
"""

from nanogpt.config import TrainConfig
from nanogpt.model import GPT, GPTConfig

__version__ = "0.1.0"
__all__ = ["GPT", "GPTConfig", "TrainConfig", "load", "train"]


def load(run, device: str = "cpu", **options):
    """Loads a run, one of its checkpoints, or a transformers directory or Hub name: returns (model, tokenizer).

    `options` are those of `nanogpt.hub.load.load`. Raises ValueError if `run` is none of these.
    """
    from nanogpt.hub.load import load

    model, tokenizer, _ = load(run, device, **options)
    return model, tokenizer
