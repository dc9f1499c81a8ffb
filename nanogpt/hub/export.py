"""Exports a checkpoint as a directory that transformers loads, and pushes it to the Hub.

    nanogpt export out/shakespeare --to exports/shakespeare
    nanogpt push out/shakespeare USER/NAME

Every export is verified before it takes its name: transformers loads it, and its tokens and logits
are compared with the model's. An export that differs is removed.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError

from nanogpt import checkpoint
from nanogpt.config import TrainConfig
from nanogpt.data.files import one_line_errors
from nanogpt.data.meta import TOKENIZER
from nanogpt.hub import card, weights
from nanogpt.hub.load import HUB_ADVICE, load
from nanogpt.model import GPT, GPTConfig
from nanogpt.text import chat
from nanogpt.text.generate import default_prompt
from nanogpt.text.tokenizer import END

TOLERANCE = 1e-4  # of logits, in fp32


def check_publishing(model_config: GPTConfig, config: TrainConfig) -> None:
    """Checks before training that the model can be exported, and creates the repository to push to.

    Raises ValueError if the settings ask for an export that is impossible; otherwise only warns.
    """
    try:
        weights.native_type(model_config)
    except ValueError as error:
        if config.require_exportable or config.push_to_hub:
            raise
        checkpoint.logger.warning(f"the model can be trained but not exported: {error}")
    if config.push_to_hub:
        make_repository(config.push_to_hub)


def export(
    run: str | Path,
    to: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    license: str = "unknown",
    name: str | None = None,
    say=print,
    **options,
) -> Path:
    """Exports `run` to the directory `to` in transformers' format and verifies it.

    `dtype` is that of the stored weights, `name` the model's name in the card (default: `to`);
    the other options are those of `nanogpt.hub.load.load`. Raises ValueError if no transformers
    class can hold the model, if `to` exists, or if transformers loads a different model from it;
    OSError if it cannot be written. After an error nothing is left at `to`.
    """
    to = Path(to)
    with writing(to) as directory:
        model, tokenizer, source = load(run, say=say, **options)
        model.to("cpu", dtype).float()  # rounded as stored
        directory.mkdir()
        # at once: a run that is training may soon remove this checkpoint
        training = card.training(source, directory) if source else ""
        ends = end_ids(tokenizer, model.config.vocab_size)
        native = weights.to_transformers(model, ends[0] if ends else None)
        write_model(directory, native.to(dtype), model.config, ends)
        write_tokenizer(directory, model, tokenizer)
        prompt = default_prompt(tokenizer)[0]
        if chat.can_chat(tokenizer):
            prompt = [{"role": "user", "content": "Hello"}]
        repo = name or str(to.resolve())
        card.write(directory, model, type(native).__name__, repo, license, prompt, training)
        worst = verify(directory, model, tokenizer)
        for file in directory.iterdir():
            with suppress(OSError):  # on a file system without modes
                file.chmod(0o644)  # safetensors makes files that only their owner can read
    say(f"{name or to}: {type(native).__name__}, verified: logits differ by {worst:.1e} at most")
    return to


@contextmanager
def writing(to: Path) -> Iterator[Path]:
    """Context manager: a temporary path, for a file or a directory, that becomes `to` at the end.

    After an error nothing is left. Raises ValueError if `to` exists and is not an empty directory;
    an OSError, such as on a full disk, names `to`.
    """
    if to.is_symlink() or not to.name or (to.exists() and (not to.is_dir() or any(to.iterdir()))):
        raise ValueError(f"{to} exists already: remove it, or export --to another path")
    to.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".tmp-{to.name}-"
    try:
        with tempfile.TemporaryDirectory(prefix=prefix, dir=to.parent) as temporary:
            yield Path(temporary, to.name)
            Path(temporary, to.name).replace(to)
    except (OSError, SafetensorError) as error:
        if prefix not in str(getattr(error, "filename", None) or prefix):
            raise  # of a file that is read
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(getattr(error, "errno", None), reason, str(to)) from None


def end_ids(tokenizer, vocab_size: int) -> list[int]:
    """The tokens that end a text or a message; raises ValueError if the tokenizer is too large."""
    if tokenizer.vocab_size > vocab_size:
        sizes = f"{tokenizer.vocab_size} tokens, but the model only {vocab_size}"
        raise ValueError(f"the tokenizer has {sizes}: they do not belong together")
    ends = dict.fromkeys((tokenizer.eot_id, tokenizer.special.get(END)))
    return [i for i in ends if i is not None]


def write_model(directory: Path, native, config: GPTConfig, ends: list[int]) -> None:
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
        native.generation_config.max_new_tokens = max(1, config.block_size // 2)
        if len(ends) > 1:
            native.generation_config.eos_token_id = ends
        if config.position == "rope":  # transformers 4 and mlx-lm read the base here
            native.config.rope_theta = config.rope_theta
        native.save_pretrained(directory, state_dict=state, max_shard_size="5GB")


def write_tokenizer(directory: Path, model: GPT, tokenizer) -> None:
    """Writes the files that `AutoTokenizer` reads, with the special tokens and the context length.

    Training does not use the tokenizer's template, such as [CLS] … [SEP], so the export has none.
    At character level a known character stands for unknown ones.
    """
    contents = tokenizer.to_dict() | {"post_processor": None}
    if known := tokenizer.characters:
        contents["model"]["unk_token"] = next((c for c in "\ufffd \n" if c in known), known[0])
    (directory / TOKENIZER).write_text(json.dumps(contents, ensure_ascii=False), encoding="utf-8")
    config = {
        # the class with which every version of transformers reads a bare tokenizer.json
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.block_size,
        "padding_side": "left",  # a batch is continued at its right end
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],  # version 4 adds token_type_ids
    }
    if ends := end_ids(tokenizer, model.config.vocab_size):  # one token for everything, as in GPT-2
        roles = ("bos_token", "eos_token", "pad_token", "unk_token")
        config |= dict.fromkeys(roles, tokenizer.decode(ends[:1]))
    checkpoint.write_json(directory / "tokenizer_config.json", config)
    if chat.can_chat(tokenizer):
        (directory / "chat_template.jinja").write_text(chat.TEMPLATE, encoding="utf-8")


def random_tokens(model: GPT) -> torch.Tensor:
    """Tokens (2, T) for the comparison, always the same ones."""
    T, generator = min(model.config.block_size, 256), torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (2, T), generator=generator)


def verify(directory: Path, model: GPT, tokenizer) -> float:
    """Compares what transformers loads from `directory` with `model`, on random tokens.

    Returns the largest difference between logits. Raises ValueError naming what differs.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = random_tokens(model)
    with weights.quiet():
        hf_tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        hf_model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, trust_remote_code=False
        )
        # some tokenizers read a special token that a text spells out as that token
        plain = [i for i in ids[0].tolist() if i not in hf_tokenizer.added_tokens_decoder]
        text = tokenizer.decode(plain)
        hf_ids = hf_tokenizer(text, split_special_tokens=True)["input_ids"]
    expected = tokenizer.encode(text).tolist()
    if hf_ids != expected or hf_tokenizer.decode(expected) != tokenizer.decode(expected):
        raise ValueError(f"the export is wrong: its tokenizer reads {text[:40]!r} differently")
    if chat.can_chat(tokenizer):
        hello = [{"role": "user", "content": text[:8] or " "}]
        rendered = hf_tokenizer.apply_chat_template(hello, return_dict=False)
        if rendered != chat.render(tokenizer, hello).tolist():
            raise ValueError("the export is wrong: its template gives other tokens")
    with torch.no_grad():
        return check_logits(hf_model(ids).logits, model(ids))


def check_logits(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference between logits. Raises ValueError if it is too large."""
    if not expected.isfinite().all():
        raise ValueError("the model's logits are not finite: its training has diverged")
    difference = (found - expected).abs()
    worst = difference.max().item()
    # fp32 has seven digits: GPT-2's logits, around -100, can agree to five decimals at most
    allowed = TOLERANCE * (expected.abs() / 10).clamp(min=1)
    if not (difference <= allowed).all():
        raise ValueError(f"the export is wrong: logits differ by {worst:.2g}, above {TOLERANCE}")
    return worst


def check_own_class(model: GPT) -> None:
    """Raises ValueError if a subclass of GPT has other parameters, or computes something else."""
    if type(model) is GPT:
        return
    weights.check_parameters(model)
    plain, ids = weights.on_meta(model.config).eval(), random_tokens(model)
    plain.load_state_dict(dict(model.named_parameters()), assign=True)
    with torch.no_grad():
        if not torch.allclose(plain(ids), model(ids), atol=TOLERANCE, equal_nan=True):
            raise ValueError(f"{type(model).__name__} does not compute what a GPT does")


def make_repository(name: str, private: bool = False) -> None:
    """Creates the repository `name` if needed; raises ValueError without the right to write."""
    from huggingface_hub import auth_check, create_repo

    if name.count("/") != 1:
        raise ValueError(f"{name!r} is not the name of a repository on the Hub: expected USER/NAME")
    with one_line_errors(f"the Hub refuses {name!r}", HUB_ADVICE):
        create_repo(name, private=private, exist_ok=True)
        auth_check(name, write=True)  # create_repo also accepts another user's repository


def push(run: str | Path, repo: str, *, private: bool = False, say=print, **options) -> None:
    """Exports `run` and adds it to the repository `repo` on the Hub.

    Checks token and write access first, and creates the repository if needed. Other files in it
    stay, except earlier weights, which might be loaded instead. `options` are those of `export`.
    """
    from huggingface_hub import upload_folder

    make_repository(repo, private)
    message = f"Export of {Path(run).absolute().name} by nanogpt"
    with tempfile.TemporaryDirectory() as directory:
        folder = export(run, Path(directory, "export"), name=repo, say=say, **options)
        with one_line_errors(f"the Hub refuses {repo!r}", HUB_ADVICE):
            commit = upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=message,
                delete_patterns="model*.safetensors*",
            )
    say(f"pushed: {commit.commit_url}")
