"""Where a run starts: anew, or from a checkpoint; and what about it is not as it was."""

import dataclasses
import os
from pathlib import Path

from nanogpt import checkpoint, rundir
from nanogpt.config import INCIDENTAL, TrainConfig
from nanogpt.data.mixture import read_shares
from nanogpt.data.tokenizer import check_same
from nanogpt.model import GPTConfig
from nanogpt.runtime.processes import Peers

# besides, what may differ from a checkpoint's settings: it shows in the tokens, the learning rate or the environment,
# or concerns the start or the evaluations alone
HARMLESS = INCIDENTAL | set(
    "data init_from max_iters lr_decay_iters eval_iters device precision compile deterministic "
    "gradient_checkpointing".split()
)


def find_start(config: TrainConfig, say) -> Path | None:
    """The checkpoint to go on from, if any. Raises ValueError if this run would overwrite another in out_dir, or
    anything else, or if another process writes there."""
    out_dir = Path(config.out_dir)
    if out_dir.exists() and os.environ.get("RANK", "0") == "0":
        rundir.claim(out_dir)
        checkpoint.finish_renaming(out_dir)
    wish, there = config.resume, checkpoint.steps(out_dir)
    if wish == "auto" and not there:
        return None
    if wish in ("auto", "last", "best"):
        return checkpoint.find(out_dir, ("best",) if wish == "best" else ("last",), say, hold=False)
    start = None if wish == "none" else checkpoint.find(wish, ("last",), say, hold=False)
    if there and (start is None or start.parent != out_dir.resolve()):
        free = next(n for n in range(2, 10**6) if not Path(f"{out_dir}-{n}").exists())
        raise ValueError(
            f"{out_dir} already holds a run ({there[-1].name}): go on with it by --resume=auto, "
            f"or write another one by --out_dir={out_dir}-{free}"
        )
    return start


def check_agreement(start: Path | None, out_dir: Path, peers: Peers) -> None:
    """Raises ValueError where the processes do not find the same checkpoint: they must see the same files."""
    step = int(start.name[5:]) if start and start.name[5:].isdigit() else -1
    newest, oldest = peers.largest(step, -step)
    if newest != -oldest:
        raise ValueError(
            f"the processes find different checkpoints in {out_dir} (steps {-oldest} and {newest}): "
            "out_dir must be on a file system that all machines see"
        )


def compare(start: Path, model_config: GPTConfig, config: TrainConfig, settings: dict, say) -> None:
    """Compares with the checkpoint: another model or tokenizer is refused, other changes that matter are named.

    `settings` are those of the run's config.json, of which "data" and "environment" are compared here.
    """
    check_same(start, next(iter(read_shares(config.data))))
    model, train = checkpoint.load_configs(start)
    changed = []
    for old, new in ((model, model_config), (train, config)):
        for name in (field.name for field in dataclasses.fields(old)):
            a, b = getattr(old, name), getattr(new, name)
            fixed = old is model and name not in ("dropout", "gradient_checkpointing")
            if a != b and (fixed or name == "optimizer"):
                raise ValueError(
                    f"{start} was trained with {name}={a}, not {b}: resume with --{name}={a}, "
                    "or train the new model into another --out_dir"
                )
            if a != b and name not in HARMLESS:
                changed.append(f"{name} {a} -> {b}")
    decay = [c.lr_decay_iters or (c.max_iters if c.lr_schedule != "constant" else 0) for c in (train, config)]
    if decay[0] != decay[1]:
        changed.append(f"the learning rate decays over {decay[1]} steps, not {decay[0]}")
    saved = checkpoint.read_json(start / checkpoint.CONFIG)
    if saved.get("data", settings["data"]) != settings["data"]:
        changed.append(f"{config.data} holds other tokens")
    if changed:
        say(f"note: this goes on with other settings than the run was started with: {'; '.join(changed)}")
    before = saved.get("environment")
    before, now = before if isinstance(before, dict) else {}, settings["environment"]
    moved = [f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    if moved:
        say(f"note: the environment changed; results match only up to rounding: {', '.join(moved)}")
