"""Exports the adapters of a LoRA run in peft's format, for `PeftModel.from_pretrained`."""

from pathlib import Path

import torch

from nanogpt import checkpoint
from nanogpt.hub import lora
from nanogpt.hub.export import writing
from nanogpt.hub.weights import layout, native_type
from nanogpt.model import GPT


def export(run: str | Path, to: str | Path, say=print) -> Path:
    """Writes the adapters of a LoRA run (see `load`) to the directory `to`.

    transformers has a module each for queries, keys and values, and for gate and up, which our
    modules stack: their adapters share A and have their own rows of B.

    Raises ValueError if the run has no adapters, if no transformers class fits the model, or if
    `to` exists; OSError if it cannot be written.
    """
    from peft import LoraConfig

    to = Path(to)
    found = checkpoint.find(run)
    model_config, config = checkpoint.load_configs(found)
    if not config.lora_rank:
        raise ValueError(f"{run} has no adapters: it was trained without --lora_rank")
    ours = checkpoint.read_tensors(found / checkpoint.MODEL)
    with torch.device("meta"):
        fused = GPT(model_config).fused_rows()
    tensors = {}
    for name, (hf_names, _) in layout(model_config).items():
        module = name.removesuffix(".weight")
        if module + lora.A not in ours:
            continue
        B = ours[module + lora.B]  # (rows, rank)
        parts = B.split(fused[name] if len(hf_names) > 1 else len(B))
        for hf_name, part in zip(hf_names, parts, strict=True):
            prefix = f"base_model.model.{hf_name.removesuffix('.weight')}"
            tensors[f"{prefix}.lora_A.weight"] = ours[module + lora.A].clone()
            tensors[f"{prefix}.lora_B.weight"] = part.clone()
    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=lora.SCALE * config.lora_rank,
        target_modules=sorted({name.split(".")[-3] for name in tensors}),
        fan_in_fan_out=native_type(model_config) == "gpt2",
        base_model_name_or_path=config.init_from,
        task_type="CAUSAL_LM",
    )
    with writing(to) as directory:
        settings.save_pretrained(directory)
        checkpoint.write_tensors(directory / "adapter_model.safetensors", tensors)
    say(f"{to}: adapters for {config.init_from}; peft.PeftModel.from_pretrained loads them")
    return to
