"""Imports nanoGPT's `ckpt.pt` with its optimizer state, to continue training.

    nanogpt import-nanogpt out-shakespeare-char/ckpt.pt --data data/shakespeare_char --out_dir out/shakespeare

nanoGPT (Karpathy 2022) has the same weights under the same names. Different are the prefix `transformer.`, the padding
of the vocabulary, and the optimizer state, which goes by number instead of by name.
"""

import dataclasses
import re
import shlex
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F

from nanogpt import checkpoint
from nanogpt.config import TrainConfig
from nanogpt.data import pickles
from nanogpt.data.files import first_line
from nanogpt.data.meta import read_meta
from nanogpt.data.tokenizer import load_tokenizer
from nanogpt.model import GPT, GPTConfig

# settings of the same name and meaning
MODEL = "n_layer n_head n_embd block_size".split()
COUNTS = "batch_size gradient_accumulation_steps max_iters warmup_iters lr_decay_iters".split()
COUNTS += "eval_interval eval_iters log_interval".split()
NUMBERS = "learning_rate min_lr weight_decay beta1 beta2 grad_clip".split()
PADDED_GPT2 = 50304  # nanoGPT's vocabulary size for GPT-2's 50257 tokens


def import_checkpoint(path: Path, data: Path, out_dir: Path, weights_only: bool = False) -> Path:
    """Writes nanoGPT's checkpoint `path`, trained on `data`, as one of the run `out_dir`; returns its directory.

    Logits and the following steps are nanoGPT's, with one exception: of its 50304 rows for GPT-2's vocabulary only the
    50257 with a token are kept, so the others get no probability. `weights_only` leaves out the optimizer state, which
    a checkpoint from `nanogpt export` does not have. Raises ValueError or OSError, and then has written nothing.
    """
    if there := checkpoint.steps(out_dir):
        raise ValueError(f"{out_dir} already holds a run ({there[-1].name}): name another --out_dir")
    read_meta(data)  # raises ValueError if something is wrong with the data
    contents, tokenizer = pickles.read_checkpoint(path), load_tokenizer(data)
    try:
        config = model_config(contents["model_args"], tokenizer)
        weights = convert_weights(contents["model"], config)
        config.tie_embeddings = "lm_head.weight" not in weights
        padded = {name: pad(name, tensor, config) for name, tensor in weights.items()}
        check_shapes(padded, config)
        optimizer = None if weights_only else contents.get("optimizer")  # not in an export
        moments = convert_moments(optimizer, weights) if optimizer else {}
        moments = {name: pad(name, tensor, config) for name, tensor in moments.items()}
        train = train_config(contents.get("config", {}), optimizer, data, out_dir)
        step, loss = int(contents["iter_num"]), float(contents["best_val_loss"])
    except ValueError as error:
        raise ValueError(f"{path} cannot be imported: {error}") from None
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        what = first_line(error)
        raise ValueError(f"{path} cannot be imported: it is not one of nanoGPT's checkpoints ({what})") from None

    # nanoGPT saves right after an evaluation, and stores its loss as the best
    tokens = step * train.gradient_accumulation_steps * train.batch_size * config.block_size
    state = checkpoint.State(step, tokens, evaluated_step=step, best_val_loss=loss, best_step=step)
    run = {"model": dataclasses.asdict(config), "train": dataclasses.asdict(train)}
    run["environment"] = {"imported_from": "nanoGPT"}
    out_dir.mkdir(parents=True, exist_ok=True)
    saved = checkpoint.save(out_dir, state, padded, moments, run, tokenizer, train.keep_checkpoints, best=True)
    checkpoint.write_json(out_dir / checkpoint.CONFIG, run)
    return saved


def model_config(args: dict, tokenizer) -> GPTConfig:
    """Our configuration for nanoGPT's `model_args`. Raises ValueError if the tokenizer is not the model's."""
    vocab_size, rows = tokenizer.vocab_size, args["vocab_size"]
    if rows != vocab_size and not (tokenizer.name == "gpt2" and rows == PADDED_GPT2):
        raise ValueError(
            f"its vocabulary has {rows} tokens, the data's {vocab_size}: name the data it was trained on with --data"
        )
    sizes = {name: int(args[name]) for name in MODEL}
    # early checkpoints do not record `bias`, and have biases
    return GPTConfig(**sizes, vocab_size=vocab_size, bias=bool(args.get("bias", True)), dropout=float(args["dropout"]))


def convert_weights(state: dict, config: GPTConfig) -> dict[str, torch.Tensor]:
    """nanoGPT's state dict by our names, in its order; without lm_head if it is tied to the embedding.

    Names of a compiled model start with `_orig_mod.`, those of one wrapped by DDP with `module.`. Attention masks
    (`h.0.attn.bias`), which are buffers of models without torch's fused attention, are left out.
    """
    names = {name: re.sub(r"^(_orig_mod\.|module\.)*(transformer\.)?", "", name) for name in state}
    weights = {names[n]: t.float() for n, t in state.items() if not re.fullmatch(r"h\.\d+\.attn\.bias", names[n])}
    if torch.equal(weights["lm_head.weight"], weights["wte.weight"]):
        del weights["lm_head.weight"]
    return weights


def convert_moments(optimizer: dict, weights: dict) -> dict[str, torch.Tensor]:
    """AdamW's state as `checkpoint` keeps it, "<parameter>.<state>", from nanoGPT's, which goes by number.

    nanoGPT's groups are the matrices and embeddings, which decay, then the rest, both in the model's order.
    """
    groups = [[n for n, t in weights.items() if t.ndim >= 2], [n for n, t in weights.items() if t.ndim < 2]]
    numbers = [group["params"] for group in optimizer["param_groups"]]
    if [len(names) for names in groups] != [len(ids) for ids in numbers]:
        raise ValueError(
            f"its optimizer has groups of {[len(ids) for ids in numbers]} parameters, not of "
            f"{[len(names) for names in groups]}: import the model alone with --weights_only"
        )
    moments = {}
    for name, number in zip(chain(*groups), chain(*numbers), strict=True):
        state = optimizer["state"][number]
        if state["exp_avg"].shape != weights[name].shape or state["exp_avg_sq"].shape != weights[name].shape:
            raise ValueError(f"its optimizer state for {name} has another shape: import it with --weights_only")
        moments |= {f"{name}.{key}": state[key].float() for key in ("exp_avg", "exp_avg_sq")}
        moments[f"{name}.step"] = torch.tensor(float(state["step"]))
    return moments


def pad(name: str, tensor: torch.Tensor, config: GPTConfig) -> torch.Tensor:
    """Pads tensors with a row per token by zeros to a multiple of 64 rows; the padding is never read."""
    if not name.startswith(("wte.", "lm_head.")) or tensor.ndim != 2:
        return tensor.contiguous()
    return F.pad(tensor[: config.vocab_size], (0, 0, 0, config.padded_vocab_size - config.vocab_size))


def check_shapes(weights: dict, config: GPTConfig) -> None:
    """Raises ValueError naming a parameter that is missing, unknown or has another shape."""
    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in GPT(config).named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(f"{name} should be {expected.get(name, 'absent')}, but is {found.get(name, 'absent')}")


def train_config(config: dict, optimizer: dict | None, data: Path, out_dir: Path) -> TrainConfig:
    """Our settings for nanoGPT's `config`, except those of the machine."""
    if optimizer:  # a resumed optimizer keeps its own values, whatever the settings say
        group = optimizer["param_groups"][0]
        config = config | {"weight_decay": group["weight_decay"]}
        config |= dict(zip(("beta1", "beta2"), group["betas"], strict=True))
    settings = {name: int(config[name]) for name in COUNTS if name in config}
    settings |= {name: float(config[name]) for name in NUMBERS if name in config}
    settings["always_save_checkpoint"] = bool(config.get("always_save_checkpoint", True))
    if not config.get("decay_lr", True):
        settings |= {"lr_schedule": "constant", "warmup_iters": 0}
    fp32 = config.get("device") == "cpu" or config.get("dtype") == "float32"  # nanoGPT has no autocast on a CPU
    return TrainConfig(data=str(data), out_dir=str(out_dir), precision="fp32" if fp32 else "auto", **settings)


def resume_command(saved: Path) -> str:
    """The command line that continues an imported checkpoint: resuming takes its settings from recipe and flags."""
    config, train = checkpoint.load_configs(saved)
    step = checkpoint.read_json(saved / checkpoint.STATE)["step"]
    values = {"out_dir": train.out_dir, "data": train.data}
    values |= {name: getattr(config, name) for name in [*MODEL, "bias", "dropout", "tie_embeddings"]}
    values |= {name: getattr(train, name) for name in [*COUNTS, *NUMBERS, "lr_schedule"]}
    values |= {name: getattr(train, name) for name in ("always_save_checkpoint", "precision")}
    if step >= train.max_iters:
        values["max_iters"] = 2 * step
    flags = [f"--{name}={value}" for name, value in values.items()]
    return shlex.join(["accelerate", "launch", "recipes/shakespeare_nanogpt.py", "--resume=auto", *flags])
