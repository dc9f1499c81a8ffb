"""Exports a checkpoint as a directory that transformers loads, and pushes it to the Hub.

    nanogpt export out/shakespeare --to exports/shakespeare
    nanogpt push out/shakespeare USER/NAME

Every export is verified before it takes its name: transformers loads it, and its tokens, logits
and a greedy continuation are compared with the model's. An export that differs is removed.
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

from nanogpt import chat, checkpoint
from nanogpt.data.files import first_line
from nanogpt.data.mixture import open_data
from nanogpt.data.tokenizer import END, FILE
from nanogpt.hub import card, client, nanogpt, weights
from nanogpt.hub.load import load
from nanogpt.model import GPT, GPTConfig
from nanogpt.run import plot
from nanogpt.sample import generate

TOLERANCE = 1e-4  # of logits, in fp32
HELLO = [{"role": "user", "content": "Hello"}]  # in the card's example


def check_publishing(model_config: GPTConfig, exportable: bool, repo: str | None, say) -> None:
    """Checks before training that the model can be exported, and creates the repository to push to.

    Raises ValueError if the settings ask for an export that is impossible; otherwise only warns.
    """
    try:
        weights.native_type(model_config)
    except ValueError as error:
        problem = f"transformers has no class for this model: {error}"
        if exportable or repo:
            raise ValueError(problem) from None
        say(f"warning: it can be trained but not exported: {problem}")
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
    """Exports `run` (see `load`) to the directory `to` in transformers' format and verifies it.

    `dtype` is that of the stored weights, `name` the model's name in the card (default: `to`).
    With format="nanogpt", `to` is a file, nanoGPT's ckpt.pt. Raises ValueError if no transformers
    class can hold the model, if `to` exists, or if transformers loads a different model from it;
    OSError if it cannot be written. After an error nothing is left at `to`.
    """
    to = Path(to)
    check_target(to, directory=format == "transformers")
    model, tokenizer, source, info = load_with_info(run, which, say)
    model.to(dtype)
    if format == "nanogpt":
        state = info.state if info else vars(checkpoint.State())
        loss = math.inf if state["best_val_loss"] is None else state["best_val_loss"]
        with named_errors(to):
            nanogpt.write_checkpoint(model, to, state["step"], loss)
        say(f"{to}: nanoGPT's checkpoint, verified: the same weights and sizes")
        return to
    model.float()  # rounded as stored
    special = special_tokens(tokenizer, model.config.vocab_size)
    native = weights.to_transformers(model, next(iter(special.eos_ids), None), special.pad_id)
    ids = real_tokens(model, info)
    temporary = tempfile.TemporaryDirectory(prefix=f".tmp-{to.name}-", dir=to.parent)
    with named_errors(to), temporary as directory:
        unverified = Path(directory, to.name)
        unverified.mkdir()
        write_model(unverified, native.to(dtype), model.config.block_size, special)
        write_tokenizer(unverified, tokenizer, model.config.block_size, special)
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
            file.chmod(0o644)  # safetensors makes files that only their owner can read
        unverified.replace(to)
    for note in special.notes:
        say(f"note: {note}")
    say(
        f"{name or to}: {type(native).__name__}, verified: logits differ by {worst:.1e} at most, "
        "the same greedy continuation"
    )
    return to


def check_target(to: Path, directory: bool) -> None:
    """Raises ValueError if an export cannot be written to `to`; creates its parent directory."""
    # the path is written into the model card and into Ollama's Modelfile
    if any(category(c) in ("Cc", "Cs") for c in str(to)):
        raise ValueError(f"{str(to)!r} has line breaks or other control characters: rename it")
    if to.is_symlink():
        raise ValueError(f"{to} is a symbolic link: name its target, or another path")
    if to.exists() and not (directory and to.is_dir() and not any(to.iterdir())):
        raise ValueError(f"{to} exists already: remove it, or export --to another path")
    to.parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def named_errors(to: Path):
    """Context manager: a failed write, such as on a full disk, names `to`, not a temporary path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        file = getattr(error, "filename", None)
        if file and f".tmp-{to.name}" not in str(file):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(getattr(error, "errno", None), reason, str(to)) from None


def load_with_info(run: str | Path, which: str | None, say) -> tuple:
    """(model, tokenizer, checkpoint, its RunInfo), all of one checkpoint (see `load`)."""
    model, tokenizer, source = load(run, which=which, say=say)
    return model, tokenizer, source, card.read(source) if source else None


@dataclass
class Special:
    """Special tokens that an export adds to the tokenizer, and notes about them for the user."""

    pad_token: str | None
    pad_id: int | None
    unk_token: str | None  # at character level
    eos_ids: list[int]  # tokens that end a text: the end-of-text token, the end of a message
    notes: list[str]


def special_tokens(tokenizer, vocab_size: int) -> Special:
    """Chooses the special tokens of an export.

    The token that ends a text also pads. Without one, a new token pads if the model's vocabulary
    has room for it. A character-level tokenizer has no unknown token, so a known character takes
    that role. Raises ValueError if the tokenizer has more tokens than the model.
    """
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model only {vocab_size}: "
            "they do not belong together"
        )
    special = Special(None, None, None, [], [])
    for i in (tokenizer.eot_id, tokenizer.special.get(END)):
        if i is not None and i not in special.eos_ids:
            special.eos_ids.append(i)
    if special.eos_ids:
        special.pad_id = special.eos_ids[0]
        special.pad_token = tokenizer.decode([special.pad_id])
    elif tokenizer.vocab_size < vocab_size:
        special.pad_id = tokenizer.vocab_size
        special.pad_token = "<pad>"
    else:
        special.notes.append(
            "the vocabulary has no end-of-text token and no room for a padding token: "
            "batches need texts of one length"
        )
    known = tokenizer.characters
    if known:
        special.unk_token = next((c for c in "\ufffd \n" if c in known), known[0])
        special.notes.append(
            "in transformers, characters that the model does not know "
            f"are read as {special.unk_token!r}"
        )
    return special


def write_model(directory: Path, native, block_size: int, special: Special) -> None:
    """Writes weights, configuration and generation settings.

    Tied weights have the names of published files: GPT-2's have no prefix, as mlx-lm requires. With
    untied embeddings transformers 4 needs the prefix.
    """
    state = native.state_dict()
    if native.config.tie_word_embeddings:
        del state["lm_head.weight"]
        state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    with weights.quiet():
        # not max_length, about which transformers warns whenever max_new_tokens is given
        native.generation_config.max_new_tokens = max(1, block_size // 2)
        if len(special.eos_ids) > 1:
            native.generation_config.eos_token_id = special.eos_ids
        native.save_pretrained(directory, state_dict=state, max_shard_size="5GB")
    config = checkpoint.read_json(directory / "config.json")
    if "rope_parameters" in config:
        # transformers 4 and mlx-lm read rope_theta here and otherwise use their default
        config["rope_theta"] = config["rope_parameters"]["rope_theta"]
        checkpoint.write_json(directory / "config.json", config)


def write_tokenizer(directory: Path, tokenizer, block_size: int, special: Special) -> None:
    """Writes the files that `AutoTokenizer` reads, with the special tokens and the context length.

    Training does not use the tokenizer's template, such as [CLS] … [SEP], so the export has none,
    and a note says so.
    """
    tokenizer.save(directory)
    contents = checkpoint.read_json(directory / FILE)
    processor = contents.get("post_processor")
    if processor:
        steps = processor.get("processors", [processor])
        kept = [step for step in steps if step["type"] == "ByteLevel"]  # which adds no tokens
        contents["post_processor"] = kept[0] if kept else None
        if kept != steps:
            special.notes.append("the tokenizer's template is left out: training did not use it")
    if special.unk_token:
        contents["model"]["unk_token"] = special.unk_token
    if processor or special.unk_token:
        text = json.dumps(contents, ensure_ascii=False)
        (directory / FILE).write_text(text, encoding="utf-8")
    config = {
        # the class with which every version of transformers reads a bare tokenizer.json
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "padding_side": "left",  # a batch is continued at its right end
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],  # version 4 adds token_type_ids
    }
    if special.pad_token:
        config["pad_token"] = special.pad_token
    if special.eos_ids:  # one token for everything, as in GPT-2
        config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), special.pad_token)
    checkpoint.write_json(directory / "tokenizer_config.json", config)
    if chat.can_chat(tokenizer):
        (directory / "chat_template.jinja").write_text(chat.TEMPLATE, encoding="utf-8")


def real_tokens(model: GPT, info: card.RunInfo | None) -> torch.Tensor:
    """Tokens (2, T) for the comparison: validation data if available, else a sample."""
    T = min(model.config.block_size, 256)
    if info is not None:
        with suppress(ValueError):  # the data was moved, or is shorter than the context
            data = open_data(info.settings["data"], "val", T, model.config.vocab_size)
            return data.batch(0, 0, 2)[0]
    start = torch.arange(2)[:, None] % model.config.vocab_size
    return generate(model, start, T - 1, seed=0)


def verify(directory: Path, model: GPT, tokenizer, ids: torch.Tensor, special: Special) -> float:
    """Compares what transformers loads from `directory` with `model`, on the tokens ids (B, T).

    Returns the largest difference between logits. Raises ValueError naming what differs.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with weights.quiet():
        try:
            hf_tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
            hf_model = AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, trust_remote_code=False
            )
            # some tokenizers read a special token that a text spells out as that token
            plain = [i for i in ids[0].tolist() if i not in hf_tokenizer.added_tokens_decoder]
            text = tokenizer.decode(plain)
            hf_ids = hf_tokenizer(text, split_special_tokens=True)["input_ids"]
        except Exception as error:  # a third-party tokenizer may raise anything
            raise wrong(f"transformers cannot read it ({first_line(error)})") from None
        with torch.no_grad():
            ours, theirs = model(ids), hf_model(ids).logits
    if chat.can_chat(tokenizer):
        hello = [{"role": "user", "content": text[:8] or " "}]
        rendered = hf_tokenizer.apply_chat_template(hello, return_dict=False)
        if rendered != chat.render(tokenizer, hello).tolist():
            raise wrong("transformers' template gives other tokens for a conversation")
    if hf_tokenizer.pad_token_id != special.pad_id:
        raise wrong(f"its padding is token {hf_tokenizer.pad_token_id}, not {special.pad_id}")
    expected = tokenizer.encode(text).tolist()
    if hf_ids != expected or hf_tokenizer.decode(expected) != tokenizer.decode(expected):
        raise wrong(f"transformers' tokenizer reads {text[:40]!r} differently")
    if ours.shape != theirs.shape:
        raise wrong(f"logits have shape {tuple(theirs.shape)} instead of {tuple(ours.shape)}")
    # fp32 has seven digits: GPT-2's logits, around -100, can agree to five decimals at most
    difference = (ours - theirs).abs()
    if not (difference <= TOLERANCE * (ours.abs() / 10).clamp(min=1)).all():  # catches NaN as well
        most = difference.max()
        raise wrong(f"logits differ by {most:.2g}, above the tolerance of {TOLERANCE:.0e}")
    verify_continuation(model, hf_model, ids[:1])
    return difference.max().item()


def wrong(difference: str) -> ValueError:
    """The error of an export that is not the model."""
    return ValueError(f"the export is wrong: {difference}")


def verify_continuation(model: GPT, hf_model, ids: torch.Tensor) -> None:
    """Raises ValueError if a greedy continuation of ids (1, T) by transformers differs."""
    start = max(1, min(16, model.config.block_size - 64))
    new = min(64, model.config.block_size + 1 - start)  # the last one is not read again
    prompt = ids[:, :start]
    expected = generate(model, prompt, new, temperature=0)[0].tolist()
    with weights.quiet():  # transformers warns of an end-of-text token at the end
        mask = torch.ones_like(prompt)
        output = hf_model.generate(prompt, attention_mask=mask, do_sample=False, max_new_tokens=new)
    continued = output[0].tolist()  # may be shorter: transformers stops at the end of a text
    for i, (ours, theirs) in enumerate(zip(expected, continued, strict=False)):
        if ours != theirs:
            raise wrong(f"it continues with {continued[i : i + 8]}, not with {expected[i : i + 8]}")


def push(
    run: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    say=print,
    **options,
) -> str:
    """Exports `run` and adds it to the repository `repo` on the Hub; returns the commit's URL.

    Checks token and write access first, and creates the repository if needed. Other files in it
    stay. `options` are those of `export`.
    """
    client.make_repository(repo, private, revision)
    with tempfile.TemporaryDirectory() as directory:
        folder = export(run, Path(directory, "export"), name=repo, say=say, **options)
        message = f"Export of {Path(run).name} by nanogpt"
        address = client.upload(folder, repo, message, revision)
    say(f"pushed: {address}")
    return address
