"""Where a run starts, and what has changed since its checkpoint."""

import os
from pathlib import Path

from nanogpt import checkpoint, rundir
from nanogpt.config import TrainConfig, ignored_by
from nanogpt.model import GPTConfig
from nanogpt.train import done, logger


def find_start(config: TrainConfig) -> Path | None:
    """The checkpoint to resume from, if any.

    Raises ValueError if out_dir holds a different run or other files, or if a process writes there.
    """
    out_dir = Path(config.out_dir)
    if out_dir.exists() and os.environ.get("RANK", "0") == "0":
        rundir.claim(out_dir)
        checkpoint.remove_leftovers(out_dir)
    steps = checkpoint.list_checkpoints(out_dir)
    if config.resume == "auto" and not steps:
        return None
    if config.resume in ("auto", "last", "best"):
        prefer = "best" if config.resume == "best" else "last"
        return checkpoint.find(out_dir, prefer, to_resume=True)
    start = None
    if config.resume != "none":
        start = checkpoint.find(config.resume, "last", to_resume=True)
    if steps and (start is None or start.parent != out_dir.resolve()):
        raise ValueError(f"{out_dir} holds a run: give --resume=auto, or another --out_dir")
    return start


def check_changes(
    start: Path, model_config: GPTConfig, config: TrainConfig, settings: dict
) -> bool:
    """Compares a run with its checkpoint: refuses a different model or optimizer.

    A note names other changes that matter to exactness: of settings, and of "environment" and
    "data" in `settings`, the content of the run's config.json. Returns whether the validation text
    is the same.
    """
    model, train = checkpoint.load_configs(start)
    saved = checkpoint.read_json(start / checkpoint.CONFIG)
    now = vars(model_config) | vars(config)
    # a recipe may have settings of its own
    before = {name: value for name, value in saved["train"].items() if name in now}
    before |= vars(model) | vars(train)
    free = ignored_by("resume")
    sequences = [c.batch_size * c.gradient_accumulation_steps for c in (train, config)]
    if sequences[0] == sequences[1] and not model_config.dropout:
        # a step is the same, only divided differently
        free |= {"batch_size", "gradient_accumulation_steps"}
    fixed = vars(model).keys() | {"optimizer", "lora_rank"}
    fixed -= {"dropout", "train_temperature", "gradient_checkpointing"}
    differing = [name for name in before if before[name] != now[name] and name not in free]
    refused = [name for name in differing if name in fixed]
    if refused:
        was = ", ".join(f"{name}={before[name]}" for name in refused)
        raise ValueError(
            f"{start} was trained with {was}, not {', '.join(str(now[n]) for n in refused)}: "
            "resume with these settings, or train the new model into another --out_dir"
        )
    changed = [f"{name} {before[name]} -> {now[name]}" for name in differing]
    old = saved.get("environment") or {}
    for name, value in settings["environment"].items():
        if old.get(name, value) != value and name != "commit":  # `code` says whether it matters
            changed.append(f"{name} {old[name]} -> {value}")
    data = saved.get("data", settings["data"])
    if data != settings["data"]:
        changed.append(f"{config.data} has different tokens")
    by_step = config.lr_schedule != "constant" and not config.train_minutes and config.max_iters > 0
    ends = [c.lr_decay_iters or c.max_iters for c in (train, config)]
    if by_step and ends[0] != ends[1]:
        changed.append("the learning rate follows the new length")
    if changed:
        logger.info(f"note: changed since the checkpoint: {'; '.join(changed)}")
    return data.get("val") == settings["data"]["val"]


def resumed_state(start: Path, config: TrainConfig, scaler, same_text: bool) -> checkpoint.State:
    """The state to resume from, with a best step only if it can be compared and still exists.

    `scaler` is fp16's or None; `same_text`: the validation text is that of the checkpoint.
    """
    state = checkpoint.read_state(start)
    if scaler is not None and state.loss_scale is not None:
        saved = {"scale": state.loss_scale, "_growth_tracker": state.loss_scale_steps}
        scaler.load_state_dict(scaler.state_dict() | saved)
    if done(config, state):
        return state
    if not same_text:
        logger.info("note: the validation data changed, so the best loss is reset")
        state.best_step = state.evaluated_step = None
    saved_steps = map(checkpoint.step_of, checkpoint.list_checkpoints(Path(config.out_dir)))
    if state.best_step not in saved_steps:
        state.best_step = state.best_val_loss = None  # the next evaluation is the best
    return state
