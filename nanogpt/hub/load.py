"""Loads a RUN, as all commands take it: a run's checkpoint or a transformers model."""

import runpy
import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from difflib import get_close_matches
from pathlib import Path

import torch

from nanogpt import checkpoint
from nanogpt.config import TrainConfig
from nanogpt.data.files import follow, one_line_errors
from nanogpt.hub import lora, weights
from nanogpt.model import GPT, GPTConfig
from nanogpt.text.tokenizer import load_tokenizer

# the files to download: no pickles and no code
WANTED = ["config.json", "model*.safetensors*", "tokenizer*.json", "vocab.json", "merges.txt"]
HUB_ADVICE = "check the name, network, HF_HUB_OFFLINE and token (`hf auth login` or HF_TOKEN)"


def load(run: str | Path, device: str = "cpu", **options) -> tuple:
    """Loads a RUN as `load_model` does: (model, tokenizer, its checkpoint, or None without one)."""
    model, directory = load_model(run, device, **options)
    # transformers' Trainer also writes a trainer_state.json
    config = checkpoint.read_json(directory / checkpoint.CONFIG)
    is_run = (directory / checkpoint.STATE).exists() and "model_type" not in config
    return model, load_tokenizer(directory), directory if is_run else None


def load_model(
    run: str | Path,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    say=print,
    trust_recipe: str | Path | None = None,
    make_model=GPT,
    **changes,
) -> tuple[GPT, Path]:
    """Loads the model of a RUN, and returns it with the directory of its files.

    RUN is an out directory (its `best` checkpoint, else `last`), one checkpoint in it, or a
    transformers model, as a directory or a name on the Hub. `changes` are fields of GPTConfig that
    do not affect the weights, such as dropout. A model that was trained as a subclass of GPT is
    loaded as that class if `make_model` is it, or `trust_recipe` names the Python file that defines
    it, which is run; otherwise as a GPT, if its parameters are those of one. Raises ValueError if
    RUN is none of these.
    """
    path = follow(run)
    if not path.is_dir():
        if path.is_absolute() or (path.parent != Path(".") and path.parent.is_dir()):
            there = [each.name for each in path.parent.glob("*") if each.is_dir()]
            near = get_close_matches(path.name, there, n=1)
            hint = f"did you mean {path.with_name(near[0])}?" if near else "name a run or a model"
            raise ValueError(f"{str(path)!r} is not a directory: {hint}")
        path = download(str(run))
    config = path / checkpoint.CONFIG
    if config.is_file() and "model_type" in checkpoint.read_json(config):
        if make_model is not GPT:
            raise ValueError(f"{run} is a transformers model, which is loaded as a plain GPT")
        return weights.from_pretrained(path, dtype=dtype, **changes).to(device), path
    found = checkpoint.find(path)
    own_class, hint = make_model, ""
    trained = checkpoint.read_json(found / checkpoint.CONFIG).get("class")
    if make_model is GPT and isinstance(trained, dict) and {"name", "file"} <= trained.keys():
        name, file = trained["name"], trained["file"]
        if trust_recipe:
            own_class = load_class(trust_recipe, str(name))
        else:
            flag = f"--trust_recipe {shlex.quote(str(file))}"
            hint = f"was trained as {name}: {flag} runs that file and loads it so (not for GGUF)"
    elif trust_recipe and make_model is GPT:
        say(f"{found} is a plain GPT: {trust_recipe!s:.200} is not needed, and was not run")
    try:
        model = load_checkpoint(found, device, dtype, own_class, **changes)
    except ValueError as error:
        raise ValueError(f"{found} {hint} ({error})" if hint else error) from None
    if hint:
        say(f"{found} is loaded as a plain GPT, and {hint}")
    return model, found


def download(name: str) -> Path:
    """Downloads the model `name` to the cache of the Hub; returns its directory, or ValueError."""
    from huggingface_hub import snapshot_download

    with one_line_errors(f"{name!r} is not a directory, and the Hub does not have it", HUB_ADVICE):
        return Path(snapshot_download(name, allow_patterns=WANTED))


def load_checkpoint(
    path: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    make_model=GPT,
    **changes,
) -> GPT:
    """The model of one of our checkpoints, in eval mode, as GPT or the subclass `make_model`.

    `changes` are those of `load_model`. Raises ValueError if the files do not fit the model.
    """
    config = replace(checkpoint.load_configs(path)[0], **changes)
    tensors = lora.merge(checkpoint.read_tensors(path / checkpoint.MODEL))
    model = weights.on_meta(config) if make_model is GPT else make_model(config)
    checkpoint.check_tensors(path / checkpoint.MODEL, tensors, model)
    # copies, of what may be views of a mapped file
    own = {name: tensor.to(device, dtype, copy=True) for name, tensor in tensors.items()}
    # check_tensors has compared the names; buffers, which are constants, are made by the class
    model.load_state_dict(own, strict=False, assign=make_model is GPT)
    return model.to(device, dtype).eval()


def load_class(recipe: str | Path, name: str) -> type[GPT]:
    """Runs a Python file that the user trusts; returns its subclass of GPT with that name.

    The file's name there is not __main__, so a recipe does not begin to train.
    """
    if Path(recipe).suffix != ".py" or not Path(recipe).is_file():
        raise ValueError(f"trust_recipe={recipe} is not a .py file: name the one with {name}")
    sys.path.insert(0, str(Path(recipe).resolve().parent))
    found = runpy.run_path(str(recipe), run_name="trusted_recipe").get(name)
    if not (isinstance(found, type) and issubclass(found, GPT)):
        raise ValueError(f"{recipe} has no subclass of GPT that is called {name}")
    return found


def load_for_training(
    wanted: GPTConfig, config: TrainConfig, start: Path | None, make_model, given: Iterable[str]
) -> tuple:
    """Loads the model to fine-tune, or None, and the tokenizer of it or of `start`, or None.

    It resumes from `start`, if given. Dropout, train_temperature, gradient_checkpointing, separator
    and block_size are those of `wanted`, the other settings are the checkpoint's. Raises ValueError
    if one that the user has `given` differs.
    """
    if config.init_from == "scratch":
        if config.lora_rank:
            raise ValueError("lora_rank adapts a trained model: name one by --init_from")
        return None, load_tokenizer(start) if start else None
    if make_model is not GPT:
        raise ValueError(f"init_from={config.init_from} loads a GPT: leave make_model out")
    run = start or config.init_from
    names = ("dropout", "train_temperature", "gradient_checkpointing", "separator")
    kept = {name: getattr(wanted, name) for name in names}
    model, tokenizer, _ = load(run, say=checkpoint.logger.info, **kept)
    c = model.config
    actual = asdict(c) | {"n_kv_head": c.kv_heads, "head_dim": c.head_size, "n_inner": c.inner}
    for name in actual.keys() & set(given) - kept.keys():
        asked = getattr(wanted, name)
        fits = name == "block_size" and asked <= c.block_size
        if not fits and asked not in (actual[name], None):
            has = f"{run} has {name}={actual[name]}"
            raise ValueError(f"{name}={asked}, but {has}: leave --{name} out")
    block_size = min(wanted.block_size, c.block_size)
    model.config = replace(c, block_size=block_size)
    if model.wpe is not None:
        model.wpe.weight = torch.nn.Parameter(model.wpe.weight.detach()[:block_size].clone())
    return model, tokenizer


def make_room(model: GPT, meta: dict, config: TrainConfig) -> None:
    """Extends a model's vocabulary by the special tokens of conversations, in place.

    Their embeddings are rows that padded the vocabulary, set to the mean of the others (Hewitt
    2021, "Initializing New Word Embeddings for Pretrained Language Models"). Raises ValueError if
    there is no room, or if `lora_rank` would freeze them: they could never be told apart.
    """
    old, new, room = model.config.vocab_size, meta["vocab_size"], model.config.padded_vocab_size
    if "chat" not in meta or new <= old:
        return
    if config.lora_rank:
        why = "whose embeddings lora_rank would freeze: leave --lora_rank out"
        raise ValueError(f"{config.data} adds tokens to init_from={config.init_from}, {why}")
    if new > room:
        has = f"init_from={config.init_from} has room for {room:,}"
        raise ValueError(f"{config.data} has {new:,} tokens, but {has}: use that model's tokenizer")
    with torch.no_grad():
        for weight in {model.wte.weight, model.head.weight}:  # one if they are tied
            weight[old:new] = weight[:old].mean(0)
    model.config = replace(model.config, vocab_size=new)


def check_tokenizer(expected, tokenizer, data: str, model: str | Path, exact=False) -> None:
    """Raises ValueError unless the tokens of `data` are those of `model`, its tokenizer `expected`.

    Unless they must be `exact`, special tokens may be new, after all of the model's.
    """
    new = tokenizer.vocabulary.items() - expected.vocabulary.items()
    fits = all(token in tokenizer.special and i >= expected.vocab_size for token, i in new)
    if not fits or (exact and tokenizer.vocabulary != expected.vocabulary):
        other = f"{tokenizer.name!r}, which is not the tokenizer of {model}"
        raise ValueError(f"{data} is tokenized by {other}: prepare the data with that one")
