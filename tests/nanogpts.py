"""nanoGPT's model, written out in plain torch code, for checkpoints in its layout."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

ARGS = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 16, "dropout": 0.0}


def block(C: int, bias: bool) -> nn.ModuleDict:
    """A block with nanoGPT's names, in its order."""
    attn = nn.ModuleDict({"c_attn": nn.Linear(C, 3 * C, bias), "c_proj": nn.Linear(C, C, bias)})
    mlp = nn.ModuleDict({"c_fc": nn.Linear(C, 4 * C, bias), "c_proj": nn.Linear(4 * C, C, bias)})
    return nn.ModuleDict(
        {"ln_1": nn.LayerNorm(C, bias=bias), "attn": attn, "ln_2": nn.LayerNorm(C, bias=bias), "mlp": mlp}
    )


class Theirs(nn.Module):
    """nanoGPT's model, written out: its names, tied embeddings, attention by an explicit softmax."""

    def __init__(self, vocab_size: int, bias: bool):
        super().__init__()
        self.args = ARGS | {"vocab_size": vocab_size, "bias": bias}
        C, layers, block_size = ARGS["n_embd"], ARGS["n_layer"], ARGS["block_size"]
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(vocab_size, C), "wpe": nn.Embedding(block_size, C)})
        self.transformer["h"] = nn.ModuleList(block(C, bias) for _ in range(layers))
        self.transformer["ln_f"] = nn.LayerNorm(C, bias=bias)
        self.lm_head = nn.Linear(C, vocab_size, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        parts, H = self.transformer, ARGS["n_head"]
        B, T = idx.shape
        x = parts["wte"](idx) + parts["wpe"](torch.arange(T))
        for layer in parts["h"]:
            heads = layer["attn"]["c_attn"](layer["ln_1"](x)).view(B, T, 3, H, -1).permute(2, 0, 3, 1, 4)
            q, k, v = heads
            scores = q @ k.mT / math.sqrt(q.size(-1))
            scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
            y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, -1)
            x = x + layer["attn"]["c_proj"](y)
            x = x + layer["mlp"]["c_proj"](F.gelu(layer["mlp"]["c_fc"](layer["ln_2"](x))))
        return self.lm_head(parts["ln_f"](x))
