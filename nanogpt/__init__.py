"""nanogpt: train small GPTs on the Hugging Face stack. Start reading at `nanogpt.model`, then `nanogpt.train`."""

from nanogpt.config import TrainConfig
from nanogpt.model import GPT, GPTConfig

__version__ = "0.1.0"
__all__ = ["GPT", "GPTConfig", "TrainConfig"]
