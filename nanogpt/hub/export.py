"""Publishing: a checkpoint as a directory that transformers loads, verified before it leaves; and what RUN means.

    nanogpt export out/shakespeare --to exports/shakespeare
    nanogpt push out/shakespeare USER/NAME

An export is loaded back by transformers, with nothing of ours, and compared with our model: tokens, logits, a greedy
continuation. One that differs is removed and never gets its name.
"""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError

from nanogpt import checkpoint
from nanogpt.data.mixture import open_data
from nanogpt.generate import generate
from nanogpt.hub import card, client, weights
from nanogpt.hub.load import load
from nanogpt.model import GPT, GPTConfig
from nanogpt.view import plot

TOLERANCE = 1e-4  # between our logits and transformers', in fp32


def check_publishing(model_config: GPTConfig, exportable: bool, repo: str | None, say) -> None:
    """What would be a pity to learn after the training: whether transformers and the Hub will take the model.

    Makes the repository, if there is none. Raises ValueError where they will not, but the settings ask for it.
    """
    try:
        weights.native_type(model_config)
    except ValueError as error:
        if exportable or repo:
            raise ValueError(f"transformers has no class for this model: {error}") from None
        say(f"warning: transformers has no class for this model, so it can be trained but not exported: {error}")
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
    say=print,
) -> Path:
    """Writes what `run` means (see `load`) into the directory `to`, in transformers' format, and verifies it.

    `dtype` is that of the stored weights; `name` is how the model card calls it, by default the directory. Raises
    ValueError if no native class can hold the model, if `to` is in use, or if what transformers loads from it is not
    our model; OSError if it cannot be written. In each case nothing is left of it.
    """
    to = Path(to)
    if to.is_symlink():
        raise ValueError(f"{to} is a symbolic link: export --to a directory")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"{to} exists already: remove it, or export --to another directory")
    model, words, source = load(run, which=which, say=say)
    model.to(dtype).float()  # as the weights will be read back
    if words.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {words.vocab_size} tokens, but the model only {model.config.vocab_size}: they do not "
            f"belong together"
        )
    native = weights.to_transformers(model, words.eot_id)
    ids = real_tokens(model, source)
    to.parent.mkdir(parents=True, exist_ok=True)
    unverified = Path(tempfile.mkdtemp(prefix=f".tmp-{to.name}-", dir=to.parent))
    try:
        write(unverified, native.to(dtype), words, model.config.block_size)
        card.write(
            unverified,
            model=model,
            native=type(native).__name__,
            repo=name or to.name,
            license=license,
            prompt=words.decode(ids[0, :8].tolist()),
            source=source,
            curve=source is not None and plot.curves([source.parent], unverified / card.CURVE),
        )
        worst = verify(unverified, model, words, ids)
        unverified.chmod(0o755)  # mkdtemp and safetensors write for the owner alone
        for file in unverified.iterdir():
            file.chmod(0o644)
        unverified.replace(to)
    except SafetensorError as error:
        raise OSError(f"{to} cannot be written: {error}") from None
    finally:
        shutil.rmtree(unverified, ignore_errors=True)
    what = f"{name or to}: {type(native).__name__}"
    say(f"{what}, verified: logits differ by {worst:.1e} at most, the same greedy continuation")
    return to


def write(directory: Path, native, words, block_size: int) -> None:
    """Weights, configuration, generation settings and tokenizer, as transformers expects them."""
    with weights.quiet():
        native.generation_config.max_length = block_size
        native.save_pretrained(directory, max_shard_size="5GB")
    write_tokenizer(directory, words, block_size)


def write_tokenizer(directory: Path, words, block_size: int) -> None:
    """What `AutoTokenizer` reads: tokenizer.json, and the special tokens and the context length."""
    words.save(directory)
    names = ("bos_token", "eos_token", "unk_token")  # all the same, as with GPT-2's own
    special = {} if words.eot_id is None else dict.fromkeys(names, words.decode([words.eot_id]))
    # the class that every version of transformers reads a bare tokenizer.json with
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size} | special
    config["clean_up_tokenization_spaces"] = False
    checkpoint.write_json(directory / "tokenizer_config.json", config)


def real_tokens(model: GPT, source: Path | None) -> torch.Tensor:
    """Tokens to compare with, (2, T): of the validation data where it is at hand, else written by the model."""
    T = min(model.config.block_size, 256)
    if source is not None:
        data = checkpoint.load_configs(source)[1].data
        with suppress(ValueError):  # elsewhere by now, or shorter than a context
            return open_data(data, "val", T, model.config.vocab_size).batch(0, 0, 2)[0]
    start = torch.arange(2)[:, None] % model.config.vocab_size
    return generate(model, start, T - 1, seed=0)


def verify(directory: Path, model: GPT, words, ids: torch.Tensor) -> float:
    """Compares what transformers loads from `directory` with our model, on ids (B, T).

    Returns the largest difference between logits; raises ValueError saying what differs.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = words.decode(ids[0].tolist())
    with weights.quiet():
        theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, trust_remote_code=False).eval()
        their_words = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        their_ids = their_words(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ours_ids = words.encode(text).tolist()
    if ours_ids != their_ids or their_words.decode(ours_ids) != words.decode(ours_ids):
        raise ValueError(f"the export is wrong: transformers' tokenizer reads {text[:40]!r} differently")
    with torch.no_grad():
        a, b = model(ids), theirs(ids).logits
    if a.shape != b.shape:
        raise ValueError(f"the export is wrong: logits have shape {tuple(b.shape)} instead of {tuple(a.shape)}")
    # fp32 has seven digits: GPT-2's logits, around -100, cannot agree to more than five behind the point
    off = (a - b).abs() - TOLERANCE * (a.abs() / 10).clamp(min=1)
    if not (off <= 0).all():
        raise ValueError(
            f"the export is wrong: logits differ by {(a - b).abs().max():.2g}, above the tolerance of {TOLERANCE:.0e}"
        )
    start = max(1, min(16, model.config.block_size - 64))
    new = min(64, model.config.block_size + 1 - start)  # the last one is not read again
    ours = generate(model, ids[:1, :start], new, temperature=0)[0].tolist()
    with weights.quiet():
        mask = torch.ones(1, start, dtype=torch.long)
        output = theirs.generate(ids[:1, :start], attention_mask=mask, do_sample=False, max_new_tokens=new)
    continued = output[0].tolist()  # transformers stops at the end of a text
    differing = [i for i, (a, b) in enumerate(zip(ours, continued, strict=False)) if a != b]
    if differing:
        shown = slice(differing[0], differing[0] + 8)
        raise ValueError(f"the export is wrong: it continues by {continued[shown]}, not by {ours[shown]}")
    return (a - b).abs().max().item()


def push(
    run: str | Path, repo: str, *, private: bool = False, revision: str | None = None, say=print, **options
) -> str:
    """Exports `run` and adds it to the repository `repo` on the Hub (made if there is none); returns its address.

    Asks for token and right first. What the repository holds besides stays. `options` are those of `export`.
    """
    client.make_repository(repo, private, revision)
    with tempfile.TemporaryDirectory() as directory:
        folder = export(run, Path(directory, "export"), name=repo, say=say, **options)
        address = client.upload(folder, repo, f"Export of {Path(run).name} by nanogpt", revision)
    say(f"pushed: {address}")
    return address
