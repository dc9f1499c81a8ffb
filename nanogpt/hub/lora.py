"""LoRA (Hu et al. 2021): the weights W stay frozen, and low-rank updates W + SCALE B A are trained.

`--lora_rank=8` with `--init_from` adds the adapters of peft before training. A checkpoint stores
the frozen weights beside them, so it is complete; whatever loads it to sample, evaluate or export
gets the merged model, which looks like an ordinary GPT.
"""

import torch

from nanogpt.model import GPT

SCALE = 2.0  # alpha / rank in peft's terms
A, B = ".lora_A.default.weight", ".lora_B.default.weight"  # (rank, in), (out, rank)


def inject(model: GPT, rank: int) -> None:
    """Freezes a model and adds trainable adapters to every linear layer of its blocks, in place.

    B starts at zero, so the model computes what it did.
    """
    from peft import LoraConfig, inject_adapter_in_model

    matmuls = r"h\.\d+\.(attn|mlp)\.(c_attn|c_proj|c_fc)"
    config = LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=matmuls)
    inject_adapter_in_model(config, model)


def merge(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint's weights with the adapters folded in, named as in a plain GPT."""
    merged = {
        name.replace(".base_layer.", "."): weight
        for name, weight in weights.items()
        if not name.endswith((A, B))
    }
    for name in weights:
        if name.endswith(A):
            module = name.removesuffix(A)
            change = weights[module + B].float() @ weights[name].float()
            merged[f"{module}.weight"] = merged[f"{module}.weight"] + SCALE * change
    return merged
