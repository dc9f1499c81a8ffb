"""nanoGPT's checkpoints: imports `ckpt.pt`, without its optimizer state, and writes one.

    nanogpt import-nanogpt out-shakespeare-char/ckpt.pt --data data/shakespeare_char
    nanogpt export out/shakespeare --to ckpt.pt --format nanogpt

nanoGPT (Karpathy 2022) has the same weights under the same names, except for the prefix
`transformer.` and the padding of the vocabulary.
"""

import re
from dataclasses import asdict
from pathlib import Path

import torch

from nanogpt import checkpoint
from nanogpt.config import TrainConfig
from nanogpt.data.files import one_line_errors
from nanogpt.hub.export import check_own_class, writing
from nanogpt.hub.load import load
from nanogpt.hub.weights import on_meta, pad
from nanogpt.model import GPT, GPTConfig
from nanogpt.text import pickles
from nanogpt.text.directories import load_meta
from nanogpt.text.tokenizer import load_tokenizer

# settings of the same name and meaning
SHARED = "n_layer n_head n_embd block_size vocab_size bias dropout".split()
SETTINGS = "batch_size gradient_accumulation_steps max_iters warmup_iters lr_decay_iters".split()
SETTINGS += "eval_interval eval_iters log_interval always_save_checkpoint".split()
SETTINGS += "learning_rate min_lr weight_decay beta1 beta2 grad_clip".split()
PADDED_GPT2 = 50304  # nanoGPT's vocabulary size for GPT-2's 50257 tokens


def import_checkpoint(path: Path, data: Path, out_dir: Path) -> Path:
    """Writes nanoGPT's checkpoint `path`, trained on `data`, as one of the run `out_dir`.

    Logits equal nanoGPT's; of its 50304 rows for GPT-2's vocabulary only the 50257 that have a
    token are kept. Training continues with a new optimizer state. Returns the directory of the
    checkpoint. Raises ValueError or OSError before anything is written.
    """
    if checkpoint.list_checkpoints(out_dir):
        raise ValueError(f"{out_dir} already holds a run: name another --out_dir")
    load_meta(data)  # raises ValueError if something is wrong with the data
    contents = pickles.read_checkpoint(path)
    tokenizer = load_tokenizer(data)
    advice = "name nanoGPT's ckpt.pt, and with --data what it was trained on"
    with one_line_errors(f"{path} cannot be imported", advice):
        args, vocab_size = contents["model_args"], tokenizer.vocab_size
        gpt2 = tokenizer.name == "gpt2" and args["vocab_size"] == PADDED_GPT2
        if args["vocab_size"] != vocab_size and not gpt2:
            sizes = f"{args['vocab_size']} tokens, the data's {vocab_size}"
            raise ValueError(f"its vocabulary has {sizes}")
        # early checkpoints do not record bias, and have biases
        args = {"bias": True} | args | {"vocab_size": vocab_size}
        config = GPTConfig(**{name: args[name] for name in SHARED})
        weights = convert_weights(contents["model"], config)
        config.tie_embeddings = "lm_head.weight" not in weights
        checkpoint.check_tensors(path, weights, on_meta(config))
        train = train_config(contents.get("config", {}), data, out_dir)
        step = int(contents["iter_num"])
        tokens = step * train.gradient_accumulation_steps * train.batch_size * config.block_size
        # nanoGPT saves after an evaluation, with its loss as the best one
        loss = float(contents["best_val_loss"])
        state = checkpoint.State(
            step, tokens, evaluated_step=step, best_step=step, best_val_loss=loss
        )
    run = {"model": asdict(config), "train": asdict(train), "environment": {}}
    out_dir.mkdir(parents=True, exist_ok=True)
    saved = checkpoint.save(out_dir, state, weights, {}, run, tokenizer, keep=0)
    checkpoint.write_json(out_dir / checkpoint.CONFIG, run)
    return saved


def convert_weights(state: dict, config: GPTConfig) -> dict[str, torch.Tensor]:
    """nanoGPT's state dict by our names, in its order, without lm_head if that is tied.

    `torch.compile` adds the prefix `_orig_mod.`, DDP adds `module.`. Attention masks
    (`h.0.attn.bias`), buffers of models without fused attention, are left out.
    """
    weights = {}
    for name, tensor in state.items():
        name = re.sub(r"^(_orig_mod\.|module\.)*(transformer\.)?", "", name)
        if not re.fullmatch(r"h\.\d+\.attn\.bias", name):
            if name in ("wte.weight", "lm_head.weight"):
                tensor = tensor[: config.vocab_size]
            weights[name] = pad(name, tensor.float().contiguous(), config)
    if torch.equal(weights["lm_head.weight"], weights["wte.weight"]):
        del weights["lm_head.weight"]
    return weights


def train_config(config: dict, data: Path, out_dir: Path) -> TrainConfig:
    """Converts nanoGPT's `config`, except the settings that concern the machine."""
    settings = {name: config[name] for name in SETTINGS if name in config}
    if not config.get("decay_lr", True):
        settings |= {"lr_schedule": "constant", "warmup_iters": 0}
    fp32 = config.get("device") == "cpu" or config.get("dtype") == "float32"
    precision = "fp32" if fp32 else "auto"  # nanoGPT has no autocast on a CPU
    return TrainConfig(data=str(data), out_dir=str(out_dir), precision=precision, **settings)


def require_nanogpts(config: GPTConfig) -> None:
    """Raises ValueError naming a setting that nanoGPT's GPT does not support."""
    plain = GPTConfig(**{name: getattr(config, name) for name in SHARED})
    derived = ("kv_heads", "head_size", "inner")
    for name in ("norm", "position", "mlp", "norm_eps", "qk_norm", "tie_embeddings", *derived):
        actual, value = getattr(config, name), getattr(plain, name)
        if actual != value:
            fits = "recipes/shakespeare_nanogpt.py trains one that fits"
            raise ValueError(f"nanoGPT's GPT has {name}={value}, not {name}={actual}: {fits}")


def export(run: str | Path, to: str | Path, say=print, **options) -> Path:
    """Exports `run` as the file `to`, a ckpt.pt; `options` are those of `nanogpt.hub.load.load`."""
    to = Path(to)
    with writing(to) as path:
        model, _, source = load(run, say=say, **options)
        check_own_class(model)
        state = checkpoint.read_state(source) if source else checkpoint.State()
        loss = float("inf") if state.best_val_loss is None else state.best_val_loss
        write_checkpoint(model, path, state.step, loss)
    say(f"{to}: nanoGPT's checkpoint")
    return to


def write_checkpoint(model: GPT, to: Path, step: int, loss: float) -> None:
    """Writes a model, without optimizer state, as a ckpt.pt that nanoGPT loads, or a ValueError."""
    require_nanogpts(model.config)
    state = {f"transformer.{name}": p.detach() for name, p in model.named_parameters()}
    embedding = model.wte.weight.detach()[: model.config.vocab_size].clone()  # without padding
    state["transformer.wte.weight"] = state["lm_head.weight"] = embedding
    args = {name: getattr(model.config, name) for name in SHARED}
    contents = {"model": state, "model_args": args, "iter_num": step, "best_val_loss": loss}
    try:
        with open(to, "wb") as file:
            torch.save(contents, file)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(str(error).splitlines()[0]) from None
