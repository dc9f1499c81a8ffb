"""Where a run starts, at step 0 or from a checkpoint, what has changed since that, and how to resume it."""

import dataclasses
import os
import shlex
import sys
from pathlib import Path

from nanogpt import checkpoint, rundir
from nanogpt.config import TrainConfig, ignored_by
from nanogpt.data.mixture import read_shares
from nanogpt.data.tokenizer import check_same
from nanogpt.model import GPTConfig
from nanogpt.run.agree import Peers
from nanogpt.train import logger


def find_start(config: TrainConfig) -> Path | None:
    """The checkpoint to resume from, if any.

    Raises ValueError if out_dir holds another run or anything else, or if another process writes there.
    """
    out_dir = Path(config.out_dir)
    check_name(out_dir)
    if out_dir.exists() and os.environ.get("RANK", "0") == "0":
        rundir.claim(out_dir)
        checkpoint.finish_renaming(out_dir)
    requested, there = config.resume, checkpoint.list_checkpoints(out_dir)
    if requested == "auto" and not there:
        return None
    if requested in ("auto", "last", "best"):
        prefer = "best" if requested == "best" else "last"
        return checkpoint.find(out_dir, (prefer,), to_resume=True)
    start = None if requested == "none" else checkpoint.find(requested, ("last",), to_resume=True)
    if there and (start is None or start.parent != out_dir.resolve()):
        free = next(n for n in range(2, 10**6) if not Path(f"{out_dir}-{n}").exists())
        raise ValueError(
            f"{out_dir} already holds a run ({there[-1].name}): resume it with --resume=auto, "
            f"or start another with {shlex.quote(f'--out_dir={out_dir}-{free}')}"
        )
    return start


def check_name(out_dir: Path) -> None:
    """Raises ValueError for a path in which no checkpoint could be written, or read again."""
    name = f"out_dir={str(out_dir)!r}"
    for path in (out_dir, *out_dir.parents):
        if path.is_symlink() and not path.exists():
            raise ValueError(
                f"{name}: {path} is a link to {os.readlink(path)}, which does not exist: create it first"
            )
    try:
        str(out_dir.resolve()).encode("utf-8")
    except UnicodeEncodeError:  # safetensors could not read from there
        raise ValueError(
            f"{name}: its path is not UTF-8: name another directory with --out_dir"
        ) from None


def check_agreement(start: Path | None, out_dir: Path, peers: Peers) -> None:
    """Raises ValueError unless all processes find the same checkpoint."""
    step = int(start.name[5:]) if start and start.name[5:].isdigit() else -1
    newest, oldest = peers.largest(step, -step)
    if newest != -oldest:
        raise ValueError(
            f"the processes find different checkpoints in {out_dir} (steps {-oldest} and {newest}): "
            "out_dir must be on a file system that all machines see"
        )


def compare(start: Path, model_config: GPTConfig, config: TrainConfig, settings: dict) -> bool:
    """Compares a run with its checkpoint: refuses another model or tokenizer, reports other changes that matter.

    `settings` is the content of the run's config.json; "data" and "environment" in it are compared as well. Returns
    whether the validation text is the same.
    """
    check_same(start, next(iter(read_shares(config.data))))
    model, train = checkpoint.load_configs(start)
    changed, harmless = [], ignored_by("resume")
    sequences = {c.batch_size * c.gradient_accumulation_steps for c in (train, config)}
    if (
        len(sequences) == 1 and not model_config.dropout
    ):  # a step is the same, only divided differently
        harmless = harmless | {"batch_size", "gradient_accumulation_steps"}
    for old, new in ((model, model_config), (train, config)):
        for name in (field.name for field in dataclasses.fields(old)):
            a, b = getattr(old, name), getattr(new, name)
            fixed = old is model and name not in ("dropout", "gradient_checkpointing")
            if a != b and (fixed or name == "optimizer"):
                raise ValueError(
                    f"{start} was trained with {name}={a}, not {b}: resume with --{name}={a}, "
                    "or train the new model into another --out_dir"
                )
            if a != b and name not in harmless:
                changed.append(f"{name} {a} -> {b}")
    decay = [
        c.lr_decay_iters or c.max_iters for c in (train, config) if c.lr_schedule != "constant"
    ]
    if len(decay) == 2 and decay[0] != decay[1] and config.max_iters and not config.train_minutes:
        changed.append(f"the learning rate decays over {decay[1]} steps, not {decay[0]}")
    saved = checkpoint.read_json(start / checkpoint.CONFIG)
    data = saved.get("data", settings["data"])
    if data != settings["data"]:
        changed.append(f"{config.data} has other tokens")
    if changed:
        logger.info(f"note: the settings differ from the checkpoint's: {'; '.join(changed)}")
    before = saved.get("environment")
    before, now = before if isinstance(before, dict) else {}, settings["environment"]
    moved = [
        f"{name} {before[name]} -> {now[name]}"
        for name in now
        if before.get(name, now[name]) != now[name]
    ]
    if moved:
        logger.info(
            f"note: the environment changed; results match only up to rounding: {', '.join(moved)}"
        )
    return data.get("val") == settings["data"]["val"]


def resume_command(config: TrainConfig, several: bool, *changes: str) -> str:
    """The command that resumes this run; `changes` are flags with their values that replace those given."""
    if any(word.partition("=")[0] == "--seeds" for word in sys.argv):
        changes = ("--seeds=1", f"--seed={config.seed}", f"--out_dir={config.out_dir}", *changes)
    changes = ("--resume=auto", *changes)
    replaced = {change.partition("=")[0] for change in changes}
    words, given = [], iter(sys.argv)
    for word in given:
        name, equals, _ = word.partition("=")
        if name not in replaced:
            words.append(word)
        elif not equals:
            next(given, None)  # its value
    same = " (as before)" if several else ""
    return f"accelerate launch{same} {shlex.join([*words, *changes])}"
