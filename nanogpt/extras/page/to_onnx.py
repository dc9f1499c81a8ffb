"""Exports a model for ONNX Runtime and transformers.js: onnx/model.onnx beside transformers' files.

    pip install -e '.[onnx]' -c constraints.txt
    nanogpt export out/shakespeare --to exports/shakespeare --format onnx

The graph is one pass with a key-value cache. Its inputs and outputs have the names and dimensions
that transformers.js expects; S is the number of tokens read before, 0 in the first pass:

    input_ids (B, T), attention_mask (B, S + T), position_ids (B, T),
    past_key_values.N.key and .value (B, K, S, D)
    logits (B, T, V), present.N.key and .value (B, K, S + T, D)

Before an export is finalized, ONNX Runtime's logits, without and with a cache, are compared with
the model's.
"""

import copy
import math
import warnings
from pathlib import Path

import numpy as np
import onnx  # noqa: F401 -- torch.onnx.export needs it: without it nothing has been done yet
import onnxruntime
import torch
import torch.nn as nn
import torch.nn.functional as F

from nanogpt.hub.export import check_logits, random_tokens, writing
from nanogpt.hub.export import export as export_for_transformers
from nanogpt.hub.load import load
from nanogpt.model import GPT, GPTConfig, Ops, rope_tables

FILE = "onnx/model.onnx"
MOST_BYTES = 2**31  # of a protobuf message


def export(
    run: str | Path, to: str | Path, *, name: str | None = None, say=print, **options
) -> Path:
    """Exports `run` as `nanogpt.hub.export.export` does, with its options; adds the fp32 graph."""
    to = Path(to)
    with writing(to) as folder:
        export_for_transformers(run, folder, name=name or str(to.resolve()), say=say, **options)
        model = load(folder)[0]
        (folder / FILE).parent.mkdir()
        write(model, folder / FILE)
        worst = verify(folder / FILE, model)
    say(f"{name or to}: {FILE}, verified in ONNX Runtime: logits differ by {worst:.1e} at most")
    return to


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last dimension: ONNX has no operator for torch's own."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


class Graph(nn.Module):
    """The model with its cache as inputs and outputs, and an attention mask for left padding."""

    def __init__(self, model: GPT):
        super().__init__()
        self.scale = 1 / math.sqrt(model.config.head_size)
        self.past: list[torch.Tensor] = []  # keys and values of each layer before a pass
        self.present: list[torch.Tensor] = []  # and after it
        self.bias = torch.empty(0)  # of a pass's scores: (B, 1, 1, T, S + T)
        self.model = copy.deepcopy(model).use(Ops(rms_norm=rms_norm, attention=self.attention))

    def extend(self, k: torch.Tensor, v: torch.Tensor) -> tuple:
        """Appends to the cache of the next layer, as `nanogpt.sample.LayerCache.extend`."""
        for new in (k, v):
            self.present.append(torch.cat([self.past[len(self.present)], new], dim=2))
        return tuple(self.present[-2:])

    def attention(self, q, k, v, *args, **options) -> torch.Tensor:
        """Attention of q (B, H, T, D) to k, v (B, K, S + T, D), which serve H / K heads each."""
        q = q.unflatten(1, (k.size(1), -1)) * self.scale  # (B, K, H / K, T, D)
        scores = q @ k[:, :, None].transpose(-2, -1) + self.bias  # (B, K, H / K, T, S + T)
        return (scores.softmax(-1) @ v[:, :, None]).flatten(1, 2)

    def forward(self, input_ids, attention_mask, position_ids, past: list[torch.Tensor]) -> tuple:
        """Logits (B, T, V) and the new cache; the module docstring has the inputs' shapes."""
        model, T, total = self.model, input_ids.size(1), attention_mask.size(1)
        rows, columns = torch.arange(total - T, total), torch.arange(total)
        # (B, 1, 1, T, S + T)
        allowed = (columns <= rows[:, None]) & attention_mask.bool()[:, None, None, None]
        # not -inf, with which a row of only padding would be NaN
        self.bias = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
        self.past, self.present = past, []
        x = model.wte(input_ids)
        rope = None
        if model.wpe is not None:
            x = x + model.wpe(position_ids)
        else:
            tables = rope_tables(model.config, position_ids.flatten())  # (B T, 2, D/2)
            # (B, 1, T, 2, D/2)
            rope = [table.unflatten(0, position_ids.shape)[:, None] for table in tables]
        for block in model.h:
            x = block(x, rope, self)
        logits = F.linear(model.ln_f(x), model.head.weight)[..., : model.config.vocab_size]
        return logits, *self.present


def cache_names(config: GPTConfig, prefix: str) -> list[str]:
    layers = range(config.n_layer)
    return [f"{prefix}.{layer}.{kind}" for layer in layers for kind in ("key", "value")]


def write(model: GPT, path: Path) -> None:
    """Writes the graph of a model in fp32. Raises ValueError if it is too large for ONNX."""
    if 4 * model.get_num_params() >= MOST_BYTES:
        raise ValueError("an ONNX file has at most 2 GiB, and this model in fp32 has more")
    c, B, S, T = model.config, 2, 3, 5  # example sizes
    past = [torch.zeros(B, c.kv_heads, S, c.head_size) for _ in range(2 * c.n_layer)]
    ids = torch.zeros(B, T, dtype=torch.long)
    inputs, outputs = cache_names(c, "past_key_values"), cache_names(c, "present")
    # transformers.js makes an empty cache by the names of its dimensions
    sequences = ("input_ids", "position_ids", "logits")
    axes = {name: {0: "batch_size", 1: "sequence_length"} for name in sequences}
    axes["attention_mask"] = {0: "batch_size", 1: "total_sequence_length"}
    axes |= {name: {0: "batch_size", 2: "past_sequence_length"} for name in inputs}
    axes |= {name: {0: "batch_size", 2: "total_sequence_length"} for name in outputs}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # by TorchScript: the exporter by torch.export takes a minute instead of a second (LOG.md)
        torch.onnx.export(
            Graph(model).eval(),
            (ids, torch.ones(B, S + T, dtype=torch.long), ids.clone(), past),
            path,
            input_names=["input_ids", "attention_mask", "position_ids", *inputs],
            output_names=["logits", *outputs],
            dynamic_axes=axes,
            do_constant_folding=False,  # which would store the transposed embeddings once more
            opset_version=17,
            dynamo=False,
        )


def feed(tokens: np.ndarray, read: int, past: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The graph's inputs for tokens (B, S + T), of which the first `read`, S, are in the cache."""
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)[:, read:]
    inputs = {"attention_mask": np.ones_like(tokens), "position_ids": positions}
    return {"input_ids": tokens[:, read:]} | inputs | past


def verify(path: Path, model: GPT) -> float:
    """Compares ONNX Runtime with the model: logits of a context, whose second half uses the cache.

    Returns the largest difference. Raises ValueError if it is large.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    c, ids = model.config, random_tokens(model)
    nothing = np.zeros((2, c.kv_heads, 0, c.head_size), np.float32)
    past, half = dict.fromkeys(cache_names(c, "past_key_values"), nothing), ids.size(1) // 2
    first, *present = session.run(None, feed(ids[:, :half].numpy(), 0, past))
    past = dict(zip(past, present, strict=True))
    second = session.run(["logits"], feed(ids.numpy(), half, past))[0]
    with torch.no_grad():
        return check_logits(torch.from_numpy(np.concatenate((first, second), axis=1)), model(ids))
