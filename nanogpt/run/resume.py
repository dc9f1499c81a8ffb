"""Where a run starts, what has changed since its checkpoint, and how to resume it."""

import os
import shlex
import sys
from pathlib import Path

from nanogpt import checkpoint, rundir
from nanogpt.config import TrainConfig, ignored_by
from nanogpt.data.mixture import read_shares
from nanogpt.data.tokenizer import check_same
from nanogpt.model import GPTConfig
from nanogpt.train import logger


def find_start(config: TrainConfig) -> Path | None:
    """The checkpoint to resume from, if any.

    Raises ValueError if out_dir holds another run or anything else, or if a process writes there.
    """
    out_dir = Path(config.out_dir)
    if out_dir.exists() and os.environ.get("RANK", "0") == "0":
        rundir.claim(out_dir)
        checkpoint.remove_leftovers(out_dir)
    start = None
    steps = checkpoint.list_checkpoints(out_dir)
    if config.resume in ("auto", "last", "best"):
        if config.resume == "auto" and not steps:
            return None
        prefer = "best" if config.resume == "best" else "last"
        return checkpoint.find(out_dir, prefer, to_resume=True)
    if config.resume != "none":
        start = checkpoint.find(config.resume, "last", to_resume=True)
    if steps and (start is None or start.parent != out_dir.resolve()):
        raise ValueError(
            f"{out_dir} already holds a run ({steps[-1].name}): resume it with --resume=auto, "
            "or start another with another --out_dir"
        )
    return start


def compare(start: Path, model_config: GPTConfig, config: TrainConfig, settings: dict) -> bool:
    """Compares a run with its checkpoint: refuses a different model, optimizer or tokenizer.

    Reports other changes that matter: of settings, and of "data" and "environment" in `settings`,
    the content of the run's config.json. Returns whether the validation text is the same.
    """
    check_same(start, next(iter(read_shares(config.data))))
    model, train = checkpoint.load_configs(start)
    free = ignored_by("resume")
    if sequences(train) == sequences(config) and not model_config.dropout:
        # a step is the same, only divided differently
        free = free | {"batch_size", "gradient_accumulation_steps"}
    fixed = vars(model).keys() | {"optimizer", "lora_rank"}
    before, now = vars(model) | vars(train), vars(model_config) | vars(config)
    differing = {name for name in before if before[name] != now[name]} - free
    if refused := sorted(differing & fixed - {"dropout", "gradient_checkpointing"}):
        was = ", ".join(f"{name}={before[name]}" for name in refused)
        raise ValueError(
            f"{start} was trained with {was}, not {', '.join(str(now[n]) for n in refused)}: "
            "resume with these settings, or train the new model into another --out_dir"
        )
    changed = [f"{name} {before[name]} -> {now[name]}" for name in before if name in differing]
    decays = [decay_steps(train), decay_steps(config)]
    if None not in decays and decays[0] != decays[1]:
        changed.append(f"the learning rate decays over {decays[1]} steps, not {decays[0]}")
    saved = checkpoint.read_json(start / checkpoint.CONFIG)
    data = saved.get("data", settings["data"])
    if data != settings["data"]:
        changed.append(f"{config.data} has different tokens")
    if changed:
        logger.info(f"note: the settings differ from the checkpoint's: {'; '.join(changed)}")
    old, new = saved.get("environment") or {}, settings["environment"]
    moved = ", ".join(f"{k} {old[k]} -> {new[k]}" for k in new if k in old and old[k] != new[k])
    if moved:
        logger.info(f"note: the environment changed; results match only up to rounding: {moved}")
    # counts that both record: directories of nanoGPT had others in earlier versions
    a, b = data.get("val") or {}, settings["data"]["val"]
    return bool(a) and all(a[key] == b[key] for key in a.keys() & b.keys())


def sequences(config: TrainConfig) -> int:
    """Sequences of a step."""
    return config.batch_size * config.gradient_accumulation_steps


def decay_steps(config: TrainConfig) -> int | None:
    """The step at which the learning rate ends; None if no step is, or nothing is trained."""
    if config.lr_schedule == "constant" or not config.max_iters or config.train_minutes:
        return None
    return config.lr_decay_iters or config.max_iters


def resume_command(config: TrainConfig, several: bool, *changes: str) -> str:
    """The command that resumes this run.

    `changes` are flags with their values; the last flag of a name counts.
    """
    changes = ("--resume=auto", *changes)
    if any(word.partition("=")[0] == "--seeds" for word in sys.argv):
        changes = ("--seeds=1", f"--seed={config.seed}", f"--out_dir={config.out_dir}", *changes)
    replaced = tuple(change.partition("=")[0] + "=" for change in changes)
    words = [word for word in sys.argv if not word.startswith(replaced)]
    program = "accelerate launch (as before)" if several else "python"
    return f"{program} {shlex.join([*words, *changes])}"
