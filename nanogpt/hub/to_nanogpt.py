"""Back to nanoGPT: a model as `ckpt.pt`, which nanoGPT's sample.py and its GPT load.

    nanogpt export out/shakespeare --to ckpt.pt --format nanogpt

The file has `model`, a state dict by nanoGPT's names, and `model_args`; no optimizer state. It is read back by torch's
restricted unpickler and compared before it gets its name.
"""

import dataclasses
from pathlib import Path

import torch

from nanogpt.data import pickles
from nanogpt.hub.from_nanogpt import MODEL, convert_weights
from nanogpt.model import GPT, GPTConfig


def require_nanogpts(config: GPTConfig) -> None:
    """Raises ValueError naming a field that nanoGPT's GPT has no place for."""
    c = config
    required = {"norm": "layernorm", "position": "learned", "mlp": "gelu", "norm_eps": 1e-5, "qk_norm": False}
    required |= {"tie_embeddings": True, "n_kv_head": c.n_head}
    required |= {"head_dim": c.n_embd / c.n_head, "n_inner": 4 * c.n_embd}
    actual = dataclasses.asdict(c) | {"n_kv_head": c.kv_heads, "head_dim": c.head_size, "n_inner": c.inner}
    for name, value in required.items():
        if actual[name] != value:
            raise ValueError(f"nanoGPT's GPT cannot hold this model: {name}={actual[name]}, there it is always {value}")


def write(model: GPT, to: Path, step: int, loss: float) -> None:
    """Writes the model as nanoGPT's checkpoint `to`, of a step with that validation loss.

    Raises ValueError if nanoGPT's GPT cannot hold the model, OSError if it cannot be written.
    """
    c = model.config
    require_nanogpts(c)
    # the padding of the vocabulary is ours
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
            raise ValueError(f"{to} is wrong: what is read back from it is not the model")
        temporary.replace(to)
    except RuntimeError as error:  # torch's, of a full disk among others
        raise OSError(f"{to} cannot be written: {pickles.first_line(error)}") from None
    finally:
        temporary.unlink(missing_ok=True)
