"""Atomic checkpoints without pickle, in one format for any number of processes.

    out/<run>/step-000500/model.safetensors        the weights by name, as the model has them
                          optimizer.safetensors    "<parameter>.<state>", such as wte.weight.exp_avg
                          config.json              all settings and versions
                          tokenizer.json           the data's tokenizer
                          trainer_state.json       State; size and CRC-32 of every file
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
import typing
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanogpt import lora, rundir
from nanogpt.config import TrainConfig
from nanogpt.data.files import follow, read_json, require_regular
from nanogpt.model import GPT, GPTConfig
from nanogpt.optim import state_shapes
from nanogpt.rundir import sync, temporary, write, write_json

logger = logging.getLogger("nanogpt")

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
STATE = "trainer_state.json"
FILES = (MODEL, OPTIMIZER, CONFIG, TOKENIZER)  # those that STATE describes
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # that can be loaded


@dataclasses.dataclass
class State:
    """A run's progress: everything that a checkpoint stores besides tensors and settings."""

    step: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    skipped_steps: int = 0
    evaluated_step: int | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    # fp16's gradient scaler; missing in runs of earlier versions
    loss_scale: float | None = None
    loss_scale_steps: int | None = None  # steps in a row that did not overflow


# Saving


def collect(
    model: GPT, optimizers: list[torch.optim.Optimizer], keep: bool = True
) -> tuple[dict, dict]:
    """Full weights and optimizer state by name, on the CPU. Must be called on all processes.

    They may share the model's memory. Without `keep` a process only helps to gather shards, and
    gets two empty dicts. A process that lacks memory for a copy raises its error at the end, after
    helping the others.
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
            return tensor.cpu().contiguous() if keep and failed is None else None
        except (MemoryError, RuntimeError) as error:
            failed = error
            return None

    weights, moments = {}, {}
    for name, p in model.named_parameters():
        weights[name] = gather(p)
        for optimizer in optimizers:
            for key, value in optimizer.state.get(p, {}).items():
                moments[f"{name}.{key}"] = gather(value)
    if failed is not None:
        raise failed
    return (weights, moments) if keep else ({}, {})


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor. A sharded one is gathered from all processes, which must all call this."""
    from torch.distributed.tensor import DTensor  # half a second to import; sampling does without

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def save(
    out_dir: Path,
    state: State,
    weights: dict,
    moments: dict,
    config: dict,
    tokenizer,
    keep: int,
    best: bool,
) -> Path:
    """Writes the checkpoint of step `state.step`, links `last` (and `best`) to it, prunes old ones.

    Raises OSError if it cannot be written, ValueError if out_dir is not this run's (see
    `rundir.claim`); existing checkpoints stay as they were.
    """
    rundir.claim(out_dir)  # does not create out_dir: its disk may only be unmounted
    rundir.remove_leftovers(out_dir)
    final = out_dir / f"step-{state.step:06d}"
    new = temporary(final)
    new.mkdir()
    try:
        write_tensors(new / MODEL, weights)
        write_tensors(new / OPTIMIZER, moments)
        write_json(new / CONFIG, config)
        tokenizer.save(new)
        manifest = {}
        for file in sorted(new.iterdir()):
            manifest[file.name] = {"bytes": file.stat().st_size, "crc32": crc32(file)}
            sync(file)
        content = dataclasses.asdict(state) | {"files": manifest}
        write_json(new / STATE, content | {"crc32": seal(content)})
        sync(new)
        # the evaluation beside it belongs to the old weights, if the run was resumed from before
        final.with_name(f"{final.name}.eval.json").unlink(missing_ok=True)
        replaced = final.exists() and final.rename(temporary(final, "old"))
        try:
            new.rename(final)  # after a kill before it, finish_renaming completes the save
        except OSError:
            if replaced:
                replaced.rename(final)
            raise
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    # `best` first: a run killed in between resumes before this step and finds the best again
    for link in ("best", "last") if best else ("last",):
        point(out_dir / link, final)
    if not (out_dir / CONFIG).exists():  # out_dir was emptied
        write_json(out_dir / CONFIG, config)
    sync(out_dir)
    prune(out_dir, keep)
    return final


def finish_renaming(out_dir: Path) -> None:
    """Completes a save that was killed while replacing a checkpoint: keeps the newer intact one."""
    prefix = temporary(out_dir / "step-", "old").name
    for old in out_dir.glob(f"{prefix}*"):
        final = out_dir / f"step-{old.name.removeprefix(prefix)}"
        for candidate in (temporary(final), old):
            if not final.exists() and candidate.is_dir() and find_damage(candidate) is None:
                candidate.rename(final)


def point(link: Path, target: Path) -> None:
    """Points `link` to its sibling `target`, atomically: a link or a text file (see `follow`)."""
    new = temporary(link)
    new.unlink(missing_ok=True)
    try:
        new.symlink_to(target.name)
        new.replace(link)
    except OSError:  # the file system has no links
        write(link, target.name + "\n")


def restore_best(out_dir: Path, state: State, write: bool) -> None:
    """After a run went back to an earlier checkpoint: `best` names the best step of its state.

    If that checkpoint was removed, the best loss is reset, and the next evaluation is the best.
    Only a process that may `write` changes the link.
    """
    linked = follow(out_dir / "best").resolve()
    if not linked.is_dir() or step_of(linked) == state.best_step:
        return
    best = out_dir / f"step-{state.best_step or 0:06d}"
    if not best.is_dir():
        state.best_val_loss = state.best_step = None
    elif write:
        point(out_dir / "best", best)


def prune(out_dir: Path, keep: int) -> None:
    """Removes all checkpoints but the newest `keep`, `best` and `last`; 0 keeps all.

    Those newer than `last`, from before the run went back, are removed first. Ignores errors.
    """
    with contextlib.suppress(OSError):
        best, last = (follow(out_dir / link).resolve() for link in ("best", "last"))
        checkpoints = list_checkpoints(out_dir)
        abandoned = [path for path in checkpoints if step_of(path) > step_of(last)]
        current = [path for path in checkpoints if step_of(path) <= step_of(last)]
        for old in (abandoned + current)[:-keep] if keep else []:
            if old.resolve() not in (best, last):
                # renamed first, so that no half-removed directory has a checkpoint's name
                old.rename(temporary(old))
        rundir.remove_leftovers(out_dir)


# Finding


def list_checkpoints(out_dir: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    names = re.compile(r"step-\d{6,18}")
    found = [
        path for path in out_dir.glob("step-*") if names.fullmatch(path.name) and path.is_dir()
    ]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint's directory; 0 if it has another name."""
    found = re.fullmatch(r"step-(\d+)", checkpoint.name)
    return int(found[1]) if found else 0


def find(
    run: Path | str, prefer: tuple[str, ...] = ("best", "last"), to_resume: bool = False
) -> Path:
    """The checkpoint that `run` names: itself, or of an out directory the first intact `prefer`.

    Falls back to the newest intact checkpoint, with a warning. Reads and checks the model's files,
    with `to_resume` the optimizer's as well. Raises ValueError if there is none.
    """
    run = follow(run)
    if not run.is_dir():
        raise ValueError(
            f"{str(run)!r} is not a directory: name an out directory, or a checkpoint in one"
        )
    # an out directory may be called step-7, too
    named_so = re.fullmatch(r"step-\d+", run.resolve().name) and not list_checkpoints(run)
    if named_so or (run / STATE).exists():
        out_dir, first = run.resolve().parent, [run]
    else:
        out_dir, first = run, [run / link for link in prefer]
    names = FILES if to_resume else (MODEL, CONFIG, TOKENIZER)
    tried: list[Path] = []
    damaged: list[str] = []
    while candidate := next_candidate(first, out_dir, tried):
        tried.append(candidate)
        damage = find_damage(candidate, names)
        if damage is None:
            for line in damaged:
                logger.warning(f"{line}; using {candidate.name} instead")
            return candidate
        if candidate.is_dir():  # otherwise the run has removed it
            damaged.append(f"checkpoint {candidate.name} is damaged: {damage}")
    if out_dir != run and damaged:
        raise ValueError(damaged[0])
    raise ValueError(f"{run} has no intact checkpoint: train into it first, or name another run")


def next_candidate(first: list[Path], out_dir: Path, tried: list[Path]) -> Path | None:
    """The first checkpoint that was not tried: one of `first`, else the newest.

    Lists them each time, because a run may save and remove checkpoints meanwhile.
    """
    for path in (*map(follow, first), *reversed(list_checkpoints(out_dir))):
        if path.is_dir() and path.resolve() not in tried:
            return path.resolve()
    return None


def find_damage(checkpoint: Path, names: tuple[str, ...] = FILES) -> str | None:
    """Describes the damage to the files `names` of a checkpoint; None if they are intact.

    Opens only files with known names, never names from the checkpoint.
    """
    try:
        if not (checkpoint / STATE).is_file():
            return f"{STATE} is missing"
        state = read_json(checkpoint / STATE)
        if state.pop("crc32", None) != seal(state):
            return f"{STATE} is damaged: its checksum is wrong"
        for name in names:
            path, expected = checkpoint / name, state["files"][name]
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
            if crc32(path) != expected["crc32"]:
                return f"{name} is damaged: its checksum is wrong"
    except OSError as error:
        return f"it cannot be read ({error})"
    except (ValueError, KeyError, TypeError) as error:
        return f"{STATE} is damaged ({error})"
    return None


# Loading


def restore(checkpoint: Path, model: GPT, optimizers: list[torch.optim.Optimizer]) -> None:
    """Loads weights and optimizer state into a new model and new optimizers, sharded or not.

    Raises ValueError if the files do not belong to such a model and such optimizers.
    """
    parameters = dict(model.named_parameters())
    weights = read_tensors(checkpoint / MODEL)
    moments = read_tensors(checkpoint / OPTIMIZER)
    check_tensors(checkpoint / MODEL, weights, {name: p.shape for name, p in parameters.items()})
    groups = [(o, group) for o in optimizers for group in o.param_groups]
    owner = {p: optimizer for optimizer, group in groups for p in group["params"]}

    expected: dict[str, torch.Size] = {}
    unchecked: set[str] = set()  # parameters of optimizers that may keep anything
    for name, p in parameters.items():
        shapes = state_shapes(owner[p], p) if p in owner else {}  # none of a frozen parameter
        if shapes is None:
            unchecked.add(name)
        elif any(f"{name}.{key}" in moments for key in shapes):  # none if all steps were skipped
            expected.update({f"{name}.{key}": shape for key, shape in shapes.items()})
    checked = {key: m for key, m in moments.items() if key.rpartition(".")[0] not in unchecked}
    check_tensors(checkpoint / OPTIMIZER, checked, expected)

    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(like(weights.pop(name), p))
    for full_name, value in moments.items():
        name, _, key = full_name.rpartition(".")
        p = parameters[name]
        if full_name in checked:
            value = value.to(p.dtype)
        # step counters go to p's device as well
        value = like(value, p) if value.shape == p.shape else value.to(p.device)
        owner[p].state[p][key] = value.clone()  # it may be a memory-mapped file


def load_model(
    checkpoint: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    make_model=GPT,
    **changes,
) -> GPT:
    """The model of a checkpoint, in eval mode.

    `make_model` builds it from its configuration, if it is a subclass. `changes` are fields of
    GPTConfig that do not affect the weights, such as dropout.
    """
    config = dataclasses.replace(load_configs(checkpoint)[0], **changes)
    try:
        weights = lora.merge(read_tensors(checkpoint / MODEL))
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{checkpoint / MODEL} has adapters that do not fit: {error}") from None
    with torch.device("meta"):  # shapes without memory
        shapes = {name: p.shape for name, p in make_model(config).named_parameters()}
    check_tensors(checkpoint / MODEL, weights, shapes)
    model = make_model(config)
    model.load_state_dict(weights)
    return model.to(device=device, dtype=dtype).eval()


def load_configs(checkpoint: Path) -> tuple[GPTConfig, TrainConfig]:
    """The model and training settings of a checkpoint or an out directory."""
    config = read_json(checkpoint / CONFIG)
    known = TrainConfig.__dataclass_fields__
    try:
        # settings of a recipe's own, or of another version, are ignored
        train = {name: value for name, value in config["train"].items() if name in known}
        return GPTConfig(**config["model"]), TrainConfig(**train)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{checkpoint / CONFIG} is not a run's configuration ({error})") from None


def read_state(checkpoint: Path) -> State:
    """The state in a checkpoint. Raises ValueError if a value is missing or has the wrong type."""
    stored = {"loss_scale": None, "loss_scale_steps": None} | read_json(checkpoint / STATE)
    found = {}
    for name, kind in typing.get_type_hints(State).items():
        value = stored.get(name, "")
        right = isinstance(value, kind) and not isinstance(value, bool)
        if right and value is not None and name != "best_val_loss":
            right = 0 <= value < (float("inf") if name == "loss_scale" else 2**53)
        if not right:
            raise ValueError(f"{checkpoint / STATE} is damaged: {name} is {str(value)[:40]!r}")
        found[name] = value
    return State(**found)


def check_tensors(
    path: Path, tensors: dict[str, torch.Tensor], shapes: dict[str, torch.Size]
) -> None:
    """Raises ValueError if names, shapes or dtypes differ, or values are not finite."""
    for name in sorted(tensors.keys() ^ shapes.keys()):
        difference = "lacks" if name in shapes else "has an unknown"
        raise ValueError(f"{path} {difference} {name[:80]!r}: it does not belong to this model")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype not in DTYPES:
            raise ValueError(
                f"{path}: {name} is {tuple(tensor.shape)} {tensor.dtype} instead of "
                f"{tuple(shape)}: it does not belong to this model"
            )
        if not tensor.isfinite().all():
            raise ValueError(
                f"{path}: {name} has values that are not finite: go back to an earlier checkpoint, "
                "--resume=DIRECTORY"
            )


def like(tensor: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """`tensor` on the device of p, sharded like p."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(p, DTensor):
        return distribute_tensor(tensor.to(p.device), p.device_mesh, p.placements)
    return tensor.to(p.device)


# Files


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        require_regular(path)
        return load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
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
