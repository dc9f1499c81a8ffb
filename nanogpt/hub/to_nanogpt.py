"""Exports a model as `ckpt.pt`, which nanoGPT's GPT and sample.py load.

    nanogpt export out/shakespeare --to ckpt.pt --format nanogpt

The file has `model`, a state dict with nanoGPT's names, and `model_args`, but no optimizer state. It is read back by
torch's restricted unpickler and compared before it is finalized.
"""

import dataclasses
from pathlib import Path

import torch

from nanogpt.data import pickles
from nanogpt.data.files import first_line
from nanogpt.hub.from_nanogpt import MODEL, convert_weights
from nanogpt.model import GPT, GPTConfig


def require_nanogpts(config: GPTConfig) -> None:
    """Raises ValueError naming a setting that nanoGPT's GPT does not support."""
    c = config
    required = {"norm": "layernorm", "position": "learned", "mlp": "gelu", "norm_eps": 1e-5, "qk_norm": False}
    required |= {"tie_embeddings": True, "n_kv_head": c.n_head}
    required |= {"head_dim": c.n_embd / c.n_head, "n_inner": 4 * c.n_embd}
    actual = dataclasses.asdict(c) | {"n_kv_head": c.kv_heads, "head_dim": c.head_size, "n_inner": c.inner}
    for name, value in required.items():
        if actual[name] != value:
            raise ValueError(f"nanoGPT's GPT does not support {name}={actual[name]}: there it is always {value}")


def write(model: GPT, to: Path, step: int, loss: float) -> None:
    """Writes the model as nanoGPT's checkpoint `to`, with its step and validation loss.

    Raises ValueError if nanoGPT's GPT does not support the model, OSError if it cannot be written.
    """
    c = model.config
    require_nanogpts(c)
    state = {f"transformer.{n}": p.detach() for n, p in model.named_parameters()}
    state["transformer.wte.weight"] = state["lm_head.weight"] = state["transformer.wte.weight"][: c.vocab_size].clone()
    args = {name: getattr(c, name) for name in [*MODEL, "vocab_size", "bias", "dropout"]}
    contents = {"model": state, "model_args": args, "iter_num": step, "best_val_loss": loss}
    temporary = to.with_name(f".tmp-{to.name}")
    try:
        torch.save(contents, temporary)
        back = pickles.read_checkpoint(temporary)
        weights = convert_weights(back["model"], c)
        same = all(torch.equal(weights[n], state[f"transformer.{n}"].float()) for n, _ in model.named_parameters())
        if not same or back["model_args"] != args:
            raise ValueError(f"{to} is wrong: the model read back from it differs")
        temporary.replace(to)
    except RuntimeError as error:  # raised by torch, for instance if the disk is full
        raise OSError(first_line(error)) from None
    finally:
        temporary.unlink(missing_ok=True)
