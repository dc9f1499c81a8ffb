"""Small models of every shape that transformers has a class for."""

import dataclasses
import json
from pathlib import Path

from helpers import randomize

from nanogpt import GPT, GPTConfig, TrainConfig, checkpoint

GPT2 = GPTConfig(vocab_size=70, block_size=32, n_layer=2, n_head=4, n_embd=32)
MODERN = dataclasses.replace(GPT2, norm="rmsnorm", position="rope", mlp="swiglu", n_kv_head=2, n_inner=48)
CASES = {
    "gpt2": GPT2,
    "gpt2, biases, tanh": dataclasses.replace(GPT2, bias=True, mlp="gelu_tanh", norm_eps=0.1),
    "gpt2, untied, own n_inner": dataclasses.replace(GPT2, tie_embeddings=False, n_inner=80),
    "llama": MODERN,
    "llama, untied, biases": dataclasses.replace(MODERN, tie_embeddings=False, bias=True),
    "llama, all heads, own head size": dataclasses.replace(MODERN, n_kv_head=None, head_dim=64),
    "qwen3": dataclasses.replace(MODERN, qk_norm=True, rope_theta=500.0),
    "qwen3, untied": dataclasses.replace(MODERN, qk_norm=True, tie_embeddings=False),
    "qwen3, head size 64": dataclasses.replace(MODERN, qk_norm=True, head_dim=64),
}
CHARACTERS = "".join(chr(33 + i) for i in range(70))


def make_checkpoint(out_dir: Path, config: GPTConfig, tokenizer, seed: int = 0) -> Path:
    """A checkpoint of an untrained model in an out directory."""
    model = GPT(config)
    randomize(model, seed)
    settings = {"model": dataclasses.asdict(config), "train": dataclasses.asdict(TrainConfig(data="nowhere"))}
    settings["environment"] = {"device": "cpu", "precision": "fp32"}
    state = checkpoint.State(7, 700, 1.5, evaluated_step=7, best_val_loss=2.0, best_step=7)
    weights = dict(model.state_dict())
    out_dir.mkdir(parents=True, exist_ok=True)
    lines = [
        {"step": s, "tokens": 100 * s, "val_loss": loss, "val_bpb": 1.44 * loss} for s, loss in ((0, 4.0), (7, 2.0))
    ]
    saved = checkpoint.save(out_dir, state, weights, {}, settings, tokenizer, keep=2)
    (out_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return saved
