"""Exports a checkpoint as a directory that transformers loads, and pushes it to the Hub.

    nanogpt export out/shakespeare --to exports/shakespeare
    nanogpt push out/shakespeare USER/NAME

Before an export is finalized, transformers loads it and its tokens, logits and a greedy continuation are compared with
the model's. An export that differs is removed.
"""

import json
import math
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from unicodedata import category

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer

from nanogpt import chat, checkpoint
from nanogpt.data.mixture import open_data
from nanogpt.data.pickles import first_line
from nanogpt.data.tokenizer import END, FILE, CharTokenizer
from nanogpt.hub import card, client, nanogpt, weights
from nanogpt.hub.load import load
from nanogpt.model import GPT, GPTConfig
from nanogpt.run import plot
from nanogpt.sample import generate

TOLERANCE = 1e-4  # of logits, in fp32
HELLO = [{"role": "user", "content": "Hello"}]  # in the card's example


def check_publishing(model_config: GPTConfig, exportable: bool, repo: str | None, say) -> None:
    """Checks before training whether the model can be exported and pushed; creates the repository if needed.

    Raises ValueError if the settings ask for an export and it is impossible, otherwise warns.
    """
    try:
        weights.native_type(model_config)
    except ValueError as error:
        if exportable or repo:
            raise ValueError(f"transformers has no class for this model: {error}") from None
        say(
            f"warning: transformers has no class for this model, so it can be trained but not exported: {error}"
        )
    if repo:
        client.make_repository(repo)


def export(
    run: str | Path,
    to: str | Path,
    *,
    which: str | None = None,
    dtype: torch.dtype = torch.float32,
    license: str = "unknown",
    name: str | None = None,
    format: str = "transformers",
    say=print,
) -> Path:
    """Exports `run` (see `load`) to the directory `to` in transformers' format, and verifies the export.

    `dtype` is that of the stored weights, `name` the model's name in the card (default: the directory). With the format
    "nanogpt", `to` is a file, nanoGPT's ckpt.pt. Raises ValueError if no transformers class can hold the model, if `to`
    exists, or if transformers loads a different model from it; OSError if it cannot be written. On error nothing is
    left at `to`.
    """
    to = Path(to)
    check_target(to, directory=format == "transformers")
    model, tokenizer, source, info = load_with_info(run, which, say)
    if format == "nanogpt":
        state = info.state if info else checkpoint.START
        loss = state["best_val_loss"]
        with named_errors(to):
            nanogpt.write_checkpoint(
                model.to(dtype), to, state["step"], math.inf if loss is None else loss
            )
        say(f"{to}: nanoGPT's checkpoint, verified: the same weights and sizes")
        return to
    model.to(dtype).float()  # rounded as stored
    special = special_tokens(tokenizer, model.config.vocab_size)
    native = weights.to_transformers(model, next(iter(special.eos_ids), None), special.pad_id)
    ids = real_tokens(model, info)
    with (
        named_errors(to),
        tempfile.TemporaryDirectory(prefix=f".tmp-{to.name}-", dir=to.parent) as directory,
    ):
        unverified = Path(directory, to.name)
        unverified.mkdir()
        write(unverified, native.to(dtype), tokenizer, model.config.block_size, special)
        card.write(
            unverified,
            model=model,
            native=type(native).__name__,
            repo=name or str(to.resolve()),
            license=license,
            prompt=HELLO if chat.can_chat(tokenizer) else tokenizer.decode(ids[0, :8].tolist()),
            notes=special.notes,
            info=info,
            curve=source is not None and plot.curves([source.parent], unverified / card.CURVE),
        )
        worst = verify(unverified, model, tokenizer, ids, special)
        for file in unverified.iterdir():
            file.chmod(0o644)  # safetensors writes for the owner only
        unverified.replace(to)
    for note in special.notes:
        say(f"note: {note}")
    what = f"{name or to}: {type(native).__name__}"
    say(f"{what}, verified: logits differ by {worst:.1e} at most, the same greedy continuation")
    return to


def check_target(to: Path, directory: bool) -> None:
    """Raises ValueError if an export cannot be written to `to`; creates its parent directory."""
    if any(
        category(c) in ("Cc", "Cs") for c in str(to)
    ):  # it stands in the model card and in Ollama's Modelfile
        raise ValueError(
            f"{str(to)!r} has line breaks, control characters or bytes that are not UTF-8: rename it"
        )
    if to.is_symlink():
        raise ValueError(f"{to} is a symbolic link: name its target, or another path")
    if to.exists() and not (directory and to.is_dir() and not any(to.iterdir())):
        raise ValueError(f"{to} exists already: remove it, or export --to another path")
    to.parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def named_errors(to: Path):
    """Context manager in which a failed write, such as on a full disk, names `to`, not a temporary path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        file = getattr(error, "filename", None)
        if file and f".tmp-{to.name}" not in str(file):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(getattr(error, "errno", None), reason, str(to)) from None


def load_with_info(run: str | Path, which: str | None, say) -> tuple:
    """(model, tokenizer, checkpoint, its RunInfo), all from one checkpoint; see `load` and `card.read`.

    If a run in training removes the checkpoint meanwhile, takes the next one.
    """
    while True:
        model, tokenizer, source = load(run, which=which, say=say)
        try:
            return model, tokenizer, source, card.read(source) if source else None
        except ValueError:
            if source.is_dir():
                raise
            say(f"{source.name} was removed while it was read: taking the next")


@dataclass
class Special:
    """Special tokens that an export adds to the tokenizer, and notes about them for the user."""

    pad_token: str | None
    pad_id: int | None
    unk_token: str | None  # at character level
    eos_ids: list[int]  # tokens that end a text: the end-of-text token, the end of a message
    notes: list[str]


def special_tokens(tokenizer, vocab_size: int) -> Special:
    """The padding token is that which ends a text, or else a new one if the model's vocabulary has room for it.

    A character-level tokenizer has no unknown token, so a known character takes that role. Raises ValueError if the
    tokenizer has more tokens than the model.
    """
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model only {vocab_size}: "
            "they do not belong together"
        )
    ends = dict.fromkeys((tokenizer.eot_id, tokenizer.special.get(END)))  # in this order, each once
    eos_ids = [i for i in ends if i is not None]
    pad_token, pad_id, unk_token, notes = None, next(iter(eos_ids), None), None, []
    if pad_id is not None:
        pad_token = tokenizer.decode([pad_id])
    elif tokenizer.vocab_size < vocab_size:
        pad_token, pad_id = "<pad>", tokenizer.vocab_size
    else:
        notes.append(
            "the vocabulary has no end-of-text token and no room for a padding token: batches need texts of one length"
        )
    if isinstance(tokenizer, CharTokenizer):
        unk_token = next(
            (c for c in "\ufffd \n" if c in tokenizer.characters), tokenizer.characters[0]
        )
        notes.append(
            f"in transformers, characters that the model does not know are read as {unk_token!r}"
        )
    return Special(pad_token, pad_id, unk_token, eos_ids, notes)


def write(directory: Path, native, tokenizer, block_size: int, special: Special) -> None:
    """Weights, configuration, generation settings and tokenizer, as transformers expects them."""
    with weights.quiet():
        # not max_length, about which transformers warns whenever max_new_tokens is given
        native.generation_config.max_new_tokens = max(1, block_size // 2)
        if len(special.eos_ids) > 1:
            native.generation_config.eos_token_id = special.eos_ids
        native.save_pretrained(directory, state_dict=published_names(native), max_shard_size="5GB")
    config = checkpoint.read_json(directory / "config.json")
    if (
        "rope_parameters" in config
    ):  # transformers 4 and mlx-lm read rope_theta here and otherwise use their default
        config["rope_theta"] = config["rope_parameters"]["rope_theta"]
        checkpoint.write_json(directory / "config.json", config)
    write_tokenizer(directory, tokenizer, block_size, special)


def published_names(native) -> dict[str, torch.Tensor]:
    """The weights by the names of published files: GPT-2's have no prefix, which mlx-lm requires.

    With untied embeddings transformers 4 needs the prefix.
    """
    state = native.state_dict()
    if not native.config.tie_word_embeddings:
        return state
    return {
        name.removeprefix("transformer."): tensor
        for name, tensor in state.items()
        if name != "lm_head.weight"
    }


def write_tokenizer(directory: Path, tokenizer, block_size: int, special: Special) -> None:
    """Writes the files that `AutoTokenizer` reads, with the special tokens and the context length.

    Training does not use the tokenizer's template, such as [CLS] … [SEP], so the export has none, and a note says so.
    """
    tokenizer.save(directory)
    contents = checkpoint.read_json(directory / FILE)
    template = contents.get("post_processor")
    if template:
        contents["post_processor"] = without_template(template)
        added = Tokenizer.from_file(str(directory / FILE)).encode("").tokens
        if added:
            special.notes.append(
                f"the tokenizer's template adds {' '.join(added)}; training did not use it: left out"
            )
    if special.unk_token:
        contents["model"]["unk_token"] = special.unk_token
    if template or special.unk_token:
        (directory / FILE).write_text(json.dumps(contents, ensure_ascii=False), encoding="utf-8")
    names = ("bos_token", "eos_token", "unk_token")  # all the same token, as in GPT-2
    tokens = dict.fromkeys(names, special.pad_token) if special.eos_ids else {}
    if special.pad_token:
        tokens["pad_token"] = special.pad_token
    # the class with which every version of transformers reads a bare tokenizer.json
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size} | tokens
    config |= {
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }  # a batch continues at its right end
    config["model_input_names"] = [
        "input_ids",
        "attention_mask",
    ]  # transformers 4 adds token_type_ids
    checkpoint.write_json(directory / "tokenizer_config.json", config)
    if chat.can_chat(tokenizer):
        (directory / "chat_template.jinja").write_text(chat.TEMPLATE, encoding="utf-8")


def without_template(processor: dict) -> dict | None:
    """The step of a post-processor that adds no tokens: ByteLevel, which trims offsets."""
    return next(
        (step for step in processor.get("processors", [processor]) if step["type"] == "ByteLevel"),
        None,
    )


def real_tokens(model: GPT, info: card.RunInfo | None) -> torch.Tensor:
    """Tokens for the comparison, (2, T): from the validation data if it is available, else sampled from the model."""
    T = min(model.config.block_size, 256)
    if info is not None:
        with suppress(ValueError):  # the data was moved, or is shorter than the context
            return open_data(info.settings["data"], "val", T, model.config.vocab_size).batch(
                0, 0, 2
            )[0]
    start = torch.arange(2)[:, None] % model.config.vocab_size
    return generate(model, start, T - 1, seed=0)


def verify(directory: Path, model: GPT, tokenizer, ids: torch.Tensor, special: Special) -> float:
    """Compares the model that transformers loads from `directory` with `model`, on ids (B, T).

    Returns the largest difference between logits. Raises ValueError naming what differs.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with weights.quiet():
        try:
            hf_model = AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, trust_remote_code=False
            )
            hf_tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
            # some tokenizers read a special token that a text spells out as the token, others as plain text
            plain = [i for i in ids[0].tolist() if i not in hf_tokenizer.added_tokens_decoder]
            text = tokenizer.decode(plain)
            hf_ids = hf_tokenizer(text, split_special_tokens=True)["input_ids"]
        except Exception as error:  # whatever a third-party tokenizer raises
            raise ValueError(
                f"the export is wrong: transformers cannot read it ({first_line(error)})"
            ) from None
    hello = [{"role": "user", "content": text[:8] or " "}]
    if chat.can_chat(tokenizer):
        rendered = hf_tokenizer.apply_chat_template(hello, return_dict=False)
        if rendered != chat.render(tokenizer, hello).tolist():
            raise ValueError(
                "the export is wrong: transformers' template gives other tokens for a conversation"
            )
    if hf_tokenizer.pad_token_id != special.pad_id:
        raise ValueError(
            f"the export is wrong: its padding is token {hf_tokenizer.pad_token_id}, not {special.pad_id}"
        )
    expected_ids = tokenizer.encode(text).tolist()
    if expected_ids != hf_ids or hf_tokenizer.decode(expected_ids) != tokenizer.decode(
        expected_ids
    ):
        raise ValueError(
            f"the export is wrong: transformers' tokenizer reads {text[:40]!r} differently"
        )
    with torch.no_grad(), weights.quiet():  # transformers warns of an end-of-text token at the end
        a, b = model(ids), hf_model(ids).logits
    if a.shape != b.shape:
        raise ValueError(
            f"the export is wrong: logits have shape {tuple(b.shape)} instead of {tuple(a.shape)}"
        )
    # fp32 has seven digits: GPT-2's logits, around -100, can agree to five decimals at most
    off = (a - b).abs() - TOLERANCE * (a.abs() / 10).clamp(min=1)
    if not (off <= 0).all():
        raise ValueError(
            f"the export is wrong: logits differ by {(a - b).abs().max():.2g}, above the tolerance of {TOLERANCE:.0e}"
        )
    start = max(1, min(16, model.config.block_size - 64))
    new = min(64, model.config.block_size + 1 - start)  # the last one is not read again
    expected = generate(model, ids[:1, :start], new, temperature=0)[0].tolist()
    with weights.quiet():
        mask = torch.ones(1, start, dtype=torch.long)
        output = hf_model.generate(
            ids[:1, :start], attention_mask=mask, do_sample=False, max_new_tokens=new
        )
    continued = output[0].tolist()  # transformers stops at the end of a text
    differing = [i for i, (a, b) in enumerate(zip(expected, continued, strict=False)) if a != b]
    if differing:
        shown = slice(differing[0], differing[0] + 8)
        raise ValueError(
            f"the export is wrong: it continues with {continued[shown]}, not with {expected[shown]}"
        )
    return (a - b).abs().max().item()


def push(
    run: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    say=print,
    **options,
) -> str:
    """Exports `run` and adds it to the repository `repo` on the Hub, creating it if needed; returns the commit's URL.

    Checks token and write access first. Other files in the repository stay. `options` are those of `export`.
    """
    client.make_repository(repo, private, revision)
    with tempfile.TemporaryDirectory() as directory:
        folder = export(run, Path(directory, "export"), name=repo, say=say, **options)
        address = client.upload(folder, repo, f"Export of {Path(run).name} by nanogpt", revision)
    say(f"pushed: {address}")
    return address
