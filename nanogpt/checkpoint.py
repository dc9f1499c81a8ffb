"""Atomic checkpoints without pickle, in one format for any number of processes.

    out/<run>/step-000500/model.safetensors        the weights by name, as the model has them
                          optimizer.safetensors    "<parameter>.<state>", such as wte.weight.exp_avg
                          config.json              all settings and versions
                          tokenizer.json           the data's tokenizer
                          trainer_state.json       State, and the CRC-32 of every file
    out/<run>/last, best                           links to two of them, or text files with names

A checkpoint is written once, to a temporary directory, synced, and renamed: everything with a
final name is complete, and is never edited. Loading reads safetensors and JSON only, and executes
nothing.
"""

import contextlib
import dataclasses
import json
import logging
import re
import shutil
import zlib
from pathlib import Path
from typing import Annotated

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanogpt import rundir
from nanogpt.config import TrainConfig
from nanogpt.data.files import follow, one_line_errors, read_json, sync, write_atomic, write_json
from nanogpt.data.meta import TOKENIZER
from nanogpt.model import GPT, GPTConfig, check_fields
from nanogpt.optim import full_tensor, shard_like

logger = logging.getLogger("nanogpt")

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
CONFIG = "config.json"
STATE = "trainer_state.json"
FILES = (MODEL, OPTIMIZER, CONFIG, TOKENIZER)  # those that STATE describes
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # that can be loaded

Counted = Annotated[int, 0, 2**53]


@dataclasses.dataclass
class State:
    """A run's progress: everything that a checkpoint stores besides tensors and settings."""

    step: Counted = 0
    tokens: Counted = 0
    train_seconds: Annotated[float, 0, 1e12] = 0.0
    skipped_steps: Counted = 0
    evaluated_step: int | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    # fp16's gradient scaler
    loss_scale: float | None = None
    loss_scale_steps: int | None = None  # steps in a row that did not overflow

    def __post_init__(self):
        check_fields(self)


# Saving


def collect(
    model: GPT, optimizers: list[torch.optim.Optimizer], receive: bool = True
) -> tuple[dict, dict]:
    """Full weights and optimizer state by name, on the CPU. Must be called on all processes.

    They may share the model's memory. Without `receive` a process only helps to gather shards, and
    gets None in place of the tensors.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():  # an evaluation leaves FSDP's outermost parameters unsharded
        if isinstance(module, FSDPModule):
            module.reshard()

    failed: Exception | None = None

    def gather(tensor: torch.Tensor | float) -> torch.Tensor | None:
        nonlocal failed
        tensor = full_tensor(torch.as_tensor(tensor).detach())
        try:
            return tensor.cpu().contiguous() if receive and failed is None else None
        except (MemoryError, RuntimeError) as error:  # raised at the end: others wait in gather
            failed = error
            return None

    weights = {}
    moments = {}
    for name, p in model.named_parameters():
        weights[name] = gather(p)
        for optimizer in optimizers:
            for key, value in optimizer.state.get(p, {}).items():
                moments[f"{name}.{key}"] = gather(value)
    if failed is not None:
        raise failed
    return weights, moments


def save(
    out_dir: Path, state: State, weights: dict, moments: dict, config: dict, tokenizer, keep: int
) -> Path:
    """Writes the checkpoint of step `state.step`, links `last` and `best`, and prunes old ones.

    Raises OSError if it cannot be written, ValueError if out_dir is not this run's; existing
    checkpoints stay as they were.
    """
    rundir.claim(out_dir)  # does not create out_dir: its disk may just be unmounted
    remove_leftovers(out_dir)
    final = step_dir(out_dir, state.step)
    new = out_dir / f".tmp-{final.name}"
    new.mkdir()
    try:
        write_tensors(new / MODEL, weights)
        write_tensors(new / OPTIMIZER, moments)
        write_json(new / CONFIG, config)
        tokenizer.save(new)
        manifest = {}
        for file in sorted(new.iterdir()):
            manifest[file.name] = {"crc32": crc32(file)}
            sync(file)
        content = dataclasses.asdict(state) | {"files": manifest}
        write_json(new / STATE, content | {"crc32": seal(content)})
        sync(new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if final.exists():
        final.rename(out_dir / f".old-{final.name}")
    new.rename(final)
    # `best` first: a run killed in between resumes before this step and finds the best again
    if state.best_step is not None and step_dir(out_dir, state.best_step).is_dir():
        point(out_dir / "best", step_dir(out_dir, state.best_step))
    point(out_dir / "last", final)
    sync(out_dir)
    prune(out_dir, keep)
    return final


def remove_leftovers(out_dir: Path) -> None:
    """Removes what a killed process left behind, but brings back a checkpoint not yet replaced.

    In a copy of a run that followed its links, `best` and `last` may be its only checkpoints.
    """
    for link in (out_dir / "best", out_dir / "last"):
        if not link.is_symlink() and find_damage(link) is None:
            final = step_dir(out_dir, read_state(link).step)
            if not final.exists():
                link.rename(final)
                point(link, final)
    for old in out_dir.glob(".old-step-*"):
        final = out_dir / old.name.removeprefix(".old-")
        if not final.exists():
            old.rename(final)
    for path in (*out_dir.glob(".tmp-step-*"), *out_dir.glob(".old-step-*")):
        shutil.rmtree(path, ignore_errors=True)
    for name in (CONFIG, "result.json", "metrics.jsonl", "samples.jsonl"):
        for path in out_dir.glob(f".{name}.[0-9]*"):  # of `write_atomic`
            path.unlink(missing_ok=True)


def point(link: Path, target: Path) -> None:
    """Points `link` to its sibling `target`: a link, or a text file (see `follow`)."""
    new = link.with_name(f".tmp-{link.name}")
    new.unlink(missing_ok=True)
    if link.is_dir() and not link.is_symlink():  # in a copy of the run that followed its links
        shutil.rmtree(link)
    try:
        new.symlink_to(target.name)
        new.replace(link)
    except OSError:  # the file system has no links
        write_atomic(link, f"{target.name}\n".encode())


def prune(out_dir: Path, keep: int) -> None:
    """Removes all checkpoints but the newest `keep`, `best` and `last`; 0 keeps all.

    Those newer than `last`, from before the run went back, are removed first. Ignores errors.
    """
    best, last = (follow(out_dir / link).resolve() for link in ("best", "last"))
    checkpoints = list_checkpoints(out_dir)
    checkpoints.sort(key=lambda path: step_of(path) <= step_of(last))  # keeps the order otherwise
    with contextlib.suppress(OSError):
        for path in checkpoints[:-keep] if keep else []:
            if path.resolve() not in (best, last):
                # renamed first, so that no half-removed directory has a checkpoint's name
                path.rename(path.with_name(f".tmp-{path.name}"))
        remove_leftovers(out_dir)


# Finding


def list_checkpoints(out_dir: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    found = [path for path in out_dir.glob("step-*") if path.is_dir() and step_of(path) >= 0]
    return sorted(found, key=step_of)


def step_dir(out_dir: Path, step: int) -> Path:
    """The directory of a step's checkpoint."""
    return out_dir / f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint's directory; -1 if it has another name."""
    match = re.fullmatch(r"step-(\d{6,18})", checkpoint.name)
    return int(match[1]) if match else -1


def find(run: Path | str, prefer: str = "best", to_resume: bool = False) -> Path:
    """The checkpoint named by `run`: itself, or for an out directory its link `prefer`.

    If that is missing or damaged, uses `last` or the newest intact checkpoint, with a warning for
    each damaged one. Checks the model's files, and the optimizer's if `to_resume`. Raises
    ValueError if none is intact.
    """
    run = follow(run)
    if not run.is_dir():
        raise ValueError(f"{str(run)!r} is not a directory: name a run or a checkpoint")
    candidates = [run]
    is_checkpoint = (run / STATE).exists() or step_of(run.resolve()) >= 0
    if not is_checkpoint or list_checkpoints(run):
        links = [follow(run / prefer), follow(run / "last")]
        candidates = [*links, *reversed(list_checkpoints(run))]
    names = FILES if to_resume else (MODEL, CONFIG, TOKENIZER)
    damaged = []
    for candidate in dict.fromkeys(path.resolve() for path in candidates):
        if not candidate.is_dir():  # there is no such link, or the run has just removed it
            continue
        damage = find_damage(candidate, names)
        if damage is None:
            for line in damaged:
                logger.warning(f"{line}; using {candidate.name} instead")
            return candidate
        damaged.append(f"checkpoint {candidate.name} is damaged: {damage}")
    if damaged:
        raise ValueError(f"{'; '.join(damaged)}: name another checkpoint, or restore these files")
    raise ValueError(f"{run} has no checkpoint yet: train into it first, or name another run")


def find_damage(checkpoint: Path, names: tuple[str, ...] = FILES) -> str | None:
    """The damage to the files `names` of a checkpoint in words; None if they are intact."""
    try:
        state = read_json(checkpoint / STATE)
        if state.pop("crc32", None) != seal(state):
            return f"the checksum of {STATE} is wrong"
        for name in names:
            if crc32(checkpoint / name) != state["files"][name]["crc32"]:
                return f"the checksum of {name} is wrong"
    except (OSError, ValueError) as error:
        return str(error)
    except (KeyError, TypeError):
        return f"{STATE} does not describe {name}"
    return None


# Loading


def restore(checkpoint: Path, model: GPT, optimizers: list[torch.optim.Optimizer]) -> None:
    """Loads weights and optimizer state into a new model and new optimizers, sharded or not.

    Raises ValueError if the files do not belong to such a model, or the state of torch's fused
    optimizers has other shapes or types: their kernels would read and write out of bounds.
    """
    parameters = dict(model.named_parameters())
    weights = read_tensors(checkpoint / MODEL)
    moments = read_tensors(checkpoint / OPTIMIZER)
    check_tensors(checkpoint / MODEL, weights, model)
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    for full_name, value in moments.items():
        name, _, key = full_name.rpartition(".")
        p = parameters.get(name)
        if p not in owner:
            raise ValueError(f"{checkpoint / OPTIMIZER} has an unknown {full_name[:80]!r}")
        expected = (torch.Size([]), torch.float32) if key == "step" else (p.shape, p.dtype)
        if owner[p].defaults.get("fused") and (value.shape, value.dtype) != expected:
            found = f"{tuple(value.shape)} {value.dtype}"
            raise ValueError(f"{checkpoint / OPTIMIZER}: {full_name} is {found}: it is damaged")
        # step counters go to p's device as well
        value = shard_like(value, p) if value.shape == p.shape else value.to(p.device)
        owner[p].state[p][key] = value.clone()  # load_file may return views of a mapped file
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(shard_like(weights.pop(name), p))


def load_configs(checkpoint: Path) -> tuple[GPTConfig, TrainConfig]:
    """The model and training settings of a checkpoint or an out directory."""
    config = read_json(checkpoint / CONFIG)
    known = TrainConfig.__dataclass_fields__  # others are a recipe's own, or of another version
    with one_line_errors(f"{checkpoint / CONFIG} is not a run's configuration", "name a run"):
        train = {name: value for name, value in config["train"].items() if name in known}
        return GPTConfig(**config["model"]), TrainConfig(**train)


def read_state(checkpoint: Path) -> State:
    """The state in a checkpoint. Raises ValueError if a value has the wrong type."""
    stored = read_json(checkpoint / STATE)
    known = State.__dataclass_fields__.keys() & stored.keys()
    with one_line_errors(f"{checkpoint / STATE} is damaged", "use another checkpoint"):
        return State(**{name: stored[name] for name in known})


def check_tensors(path: Path, tensors: dict[str, torch.Tensor], model: GPT) -> None:
    """Raises ValueError if names, shapes or dtypes are not a model's, or values are not finite."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for name in sorted(tensors.keys() ^ shapes.keys()):
        difference = "lacks" if name in shapes else "has an unknown"
        raise ValueError(f"{path} {difference} {name[:80]!r}: it does not belong to this model")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype not in DTYPES:
            found = f"{tuple(tensor.shape)} {tensor.dtype} instead of {tuple(shape)}"
            raise ValueError(f"{path}: {name} is {found}: it does not belong to this model")
        if not torch.stack(tensor.aminmax()).isfinite().all():  # faster than on all values
            raise ValueError(f"{path}: {name} is not finite everywhere: use an earlier checkpoint")


# Files


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    with one_line_errors(f"{path} cannot be read", "it is missing or damaged"):
        return load_file(path)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.touch()
    mode = path.stat().st_mode  # by the umask; safetensors makes private files
    try:
        save_file(tensors, path, metadata={"format": "pt"})
        with contextlib.suppress(OSError):  # on a file system without modes
            path.chmod(mode)
    except SafetensorError as error:  # such as a full disk
        raise OSError(f"{path.name}: {error}") from None


def crc32(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def seal(state: dict) -> int:
    """CRC-32 of a state file's content."""
    return zlib.crc32(json.dumps(state, sort_keys=True).encode())
