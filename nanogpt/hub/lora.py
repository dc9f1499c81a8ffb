"""LoRA (Hu et al. 2021): the weights W stay frozen, and low-rank updates W + SCALE B A are trained.

`--lora_rank=8` with `--init_from` adds the adapters of peft before training. A checkpoint stores
the frozen weights beside them, so it is complete; whatever loads it to sample, evaluate or export
gets the merged model, which looks like an ordinary GPT. `export` writes the adapters for peft.
"""

from pathlib import Path

import torch

from nanogpt import checkpoint
from nanogpt.hub import weights
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


def merge(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint's weights with the adapters folded in, named as in a plain GPT."""
    merged = {}
    for name, weight in tensors.items():
        module = name.removesuffix(".base_layer.weight")
        if module + A in tensors:
            change = tensors[module + B].float() @ tensors[module + A].float()
            weight = weight + SCALE * change
        if not name.endswith((A, B)):
            merged[name.replace(".base_layer.", ".")] = weight
    return merged


def export(run: str | Path, to: str | Path, say=print) -> Path:
    """Writes the adapters of a LoRA run to the directory `to`, for `PeftModel.from_pretrained`.

    transformers has a module each for queries, keys and values, and for gate and up, which our
    modules stack: their adapters share A and have their own rows of B.

    Raises ValueError if the run has no adapters, if no transformers class fits the model, or if
    `to` exists; OSError if it cannot be written.
    """
    from peft import LoraConfig

    from nanogpt.hub.export import writing  # not above: it loads models, for which `load` needs us

    to = Path(to)
    found = checkpoint.find(run)
    model_config, config = checkpoint.load_configs(found)
    if not config.lora_rank:
        raise ValueError(f"{run} has no adapters: it was trained without --lora_rank")
    ours = checkpoint.read_tensors(found / checkpoint.MODEL)
    fused = weights.on_meta(model_config).fused_rows()
    tensors = {}
    for name, (hf_names, _) in weights.layout(model_config).items():
        module = name.removesuffix(".weight")
        if module + A not in ours:
            continue
        stacked = ours[module + B]  # (rows, rank)
        parts = stacked.split(fused[name] if len(hf_names) > 1 else len(stacked))
        for hf_name, part in zip(hf_names, parts, strict=True):
            prefix = f"base_model.model.{hf_name.removesuffix('.weight')}"
            tensors[f"{prefix}.lora_A.weight"] = ours[module + A].clone()
            tensors[f"{prefix}.lora_B.weight"] = part.clone()
    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=SCALE * config.lora_rank,
        target_modules=sorted({name.split(".")[-3] for name in tensors}),
        fan_in_fan_out=weights.native_type(model_config) == "gpt2",
        base_model_name_or_path=config.init_from,
        task_type="CAUSAL_LM",
    )
    with writing(to) as directory:
        settings.save_pretrained(directory)
        checkpoint.write_tensors(directory / "adapter_model.safetensors", tensors)
    say(f"{to}: adapters for {config.init_from}; peft.PeftModel.from_pretrained loads them")
    return to
