"""What happens inside a model while it reads a text: docs/inside.ipynb builds the same by hand."""

import copy
import math

import torch

from nanogpt.model import GPT


@torch.inference_mode()
def look(model: GPT, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention weights (L, H, T, T) and the output of each block (L, T, C) for ids (T,).

    Row t of a head's weights is what position t reads: they sum to 1 over the positions up to t.
    """
    weights: list[torch.Tensor] = []
    states: list[torch.Tensor] = []
    ops = model.ops

    def attention(q, k, v, *args, **options) -> torch.Tensor:
        keys = k.repeat_interleave(q.size(1) // k.size(1), dim=1)  # (1, H, T, D), also for GQA
        scores = (q @ keys.transpose(-2, -1)).float() / math.sqrt(q.size(-1))  # (1, H, T, T)
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)
        weights.append(scores.masked_fill(future, -torch.inf).softmax(-1)[0])
        return ops.attention(q, k, v, *args, **options)

    # a copy of the modules with the same parameters: another thread may be sampling from the model
    copied = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    for block in copied.h:
        block.register_forward_hook(lambda block, args, output: states.append(output[0]))
    copied.use(ops._replace(attention=attention))(ids[None])
    return torch.stack(weights), torch.stack(states)


@torch.inference_mode()
def lens(model: GPT, state: torch.Tensor) -> torch.Tensor:
    """The logits (T, V) that the model would give if it ended after a block with output (T, C).

    This is the logit lens (nostalgebraist 2020): the final norm and the output projection.
    """
    logits = model.ops.linear(model.ln_f(state), model.head.weight)
    return logits[..., : model.config.vocab_size].float()
