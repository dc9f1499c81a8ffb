"""Atomic checkpoints without pickle, in one format for any number of processes.

    out/<run>/step-000500/model.safetensors        the weights by name, as the model has them
                          optimizer.safetensors    "<parameter>.<state>", such as wte.weight.exp_avg
                          config.json              all settings and versions
                          tokenizer.json           the data's tokenizer
                          trainer_state.json       State; size and CRC-32 of every file and of its own content
    out/<run>/last, best                           links to two of them, or text files with their names

A checkpoint is written once, to a temporary directory, synced, and renamed: everything with a final name is complete,
and is never edited. Loading reads safetensors and JSON only, and executes nothing.
"""

import contextlib
import dataclasses
import json
import re
import shlex
import shutil
import typing
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanogpt import rundir
from nanogpt.config import TrainConfig
from nanogpt.data.files import follow, read_json, require_regular
from nanogpt.model import GPT, GPTConfig
from nanogpt.optim import state_shapes
from nanogpt.rundir import sync, temporary, write, write_json

MODEL, OPTIMIZER, STATE, CONFIG = (
    "model.safetensors",
    "optimizer.safetensors",
    "trainer_state.json",
    "config.json",
)
TOKENIZER = "tokenizer.json"
FILES = (MODEL, OPTIMIZER, CONFIG, TOKENIZER)  # besides STATE
NUMBERS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # dtypes that can be loaded


@dataclasses.dataclass
class State:
    """How far a run is, and how it got there: all that a checkpoint stores besides tensors and settings."""

    step: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    skipped_steps: int = 0
    evaluated_step: int | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    loss_scale: float | None = (
        None  # of fp16's gradient scaler; runs of earlier versions have neither of the two
    )
    loss_scale_steps: int | None = None  # steps in a row that did not overflow


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor. A sharded one is gathered from all processes, which must all call this."""
    from torch.distributed.tensor import (
        DTensor,
    )  # takes half a second to import, and sampling does not need it

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def collect(
    model: GPT, optimizers: list[torch.optim.Optimizer], keep: bool = True
) -> tuple[dict, dict]:
    """Full weights and optimizer state by name, on the CPU. Must be called on all processes.

    They may share the model's memory. Processes without `keep` only take part in gathering and return empty dicts.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():  # an evaluation leaves FSDP's outermost parameters unsharded
        if isinstance(module, FSDPModule):
            module.reshard()
    weights, moments = {}, {}

    def take(into: dict, name: str, tensor: torch.Tensor | float) -> None:
        tensor = full_tensor(torch.as_tensor(tensor).detach())
        if keep:
            into[name] = tensor.cpu().contiguous()

    for name, p in model.named_parameters():
        take(weights, name, p)
        for optimizer in optimizers:
            for key, value in optimizer.state.get(p, {}).items():
                take(moments, f"{name}.{key}", value)
    return weights, moments


def restore(checkpoint: Path, model: GPT, optimizers: list[torch.optim.Optimizer]) -> None:
    """Loads weights and optimizer state into a new model and new optimizers, sharded or not.

    Raises ValueError if the files do not belong to such a model and such optimizers.
    """
    named = dict(model.named_parameters())
    weights = read_tensors(checkpoint / MODEL)
    moments = read_tensors(checkpoint / OPTIMIZER)
    expect(checkpoint / MODEL, weights, {name: p.shape for name, p in named.items()})
    owner = {
        p: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }
    expected, foreign = (
        dict[str, torch.Size](),
        set[str](),
    )  # the state of foreign optimizers is restored unchecked
    for name, p in named.items():
        shapes = state_shapes(owner[p], p) if p in owner else {}  # a frozen parameter has no state
        if shapes is None:
            foreign.add(name)
        elif any(
            f"{name}.{key}" in moments for key in shapes
        ):  # there is none if every step was skipped
            expected |= {f"{name}.{key}": shape for key, shape in shapes.items()}
    known = {
        name: value for name, value in moments.items() if name.rpartition(".")[0] not in foreign
    }
    expect(checkpoint / OPTIMIZER, known, expected)
    with torch.no_grad():
        for name, p in named.items():
            p.copy_(like(weights.pop(name), p))
    for full_name, value in moments.items():
        name, _, key = full_name.rpartition(".")
        p = named[name]
        if full_name in known:
            value = value.to(p.dtype)
        # cloned, because the value may be a memory-mapped file; step counters go to p's device as well
        owner[p].state[p][key] = (
            like(value, p) if value.shape == p.shape else value.to(p.device)
        ).clone()


def expect(path: Path, tensors: dict[str, torch.Tensor], shapes: dict[str, torch.Size]) -> None:
    """Raises ValueError if names, shapes or dtypes differ, or values are not finite."""
    if strange := sorted(tensors.keys() ^ shapes.keys()):
        what = "lacks" if strange[0] in shapes else "has an unknown"
        raise ValueError(f"{path} {what} {strange[0][:80]!r}: it does not belong to this model")
    for name, shape in shapes.items():
        if tensors[name].shape != shape or tensors[name].dtype not in NUMBERS:
            found = f"{tuple(tensors[name].shape)} {tensors[name].dtype}"
            raise ValueError(
                f"{path}: {name} is {found} instead of {tuple(shape)}: it does not belong to this model"
            )
    if bad := not_finite(tensors):
        raise ValueError(f"{path}: {bad} has values that are not finite; {earlier(path.parent)}")


def not_finite(tensors: dict[str, torch.Tensor]) -> str | None:
    """The name of a tensor with infinities or NaNs."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)


def earlier(checkpoint: Path) -> str:
    """Advice on which checkpoint to resume from instead of one with values that are not finite."""
    for other in reversed(steps(checkpoint.parent)):
        older = number(other) < number(checkpoint)
        if older and check(other) is None and not not_finite(read_tensors(other / MODEL)):
            return f"go back to {other} ({shlex.quote(f'--resume={other}')})"
    return "no earlier checkpoint is left"


def like(tensor: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """`tensor` on the device of p, sharded like p."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(p, DTensor):
        return distribute_tensor(tensor.to(p.device), p.device_mesh, p.placements)
    return tensor.to(p.device)


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


def read_state(checkpoint: Path) -> State:
    """The state in a checkpoint. Raises ValueError if a value is missing or has the wrong type."""
    found = {"loss_scale": None, "loss_scale_steps": None} | read_json(checkpoint / STATE)
    for name, kind in typing.get_type_hints(State).items():
        value = found.get(name, "")
        right = isinstance(value, kind) and not isinstance(value, bool)
        most = float("inf") if name == "loss_scale" else 2**53
        if not right or (value is not None and not 0 <= value < most and name != "best_val_loss"):
            raise ValueError(
                f"{checkpoint / STATE} is damaged: {name} is {str(found.get(name))[:40]!r}"
            )
    return State(**{name: found[name] for name in State.__dataclass_fields__})


def crc32(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def seal(state: dict) -> int:
    """CRC-32 of a state file's content."""
    return zlib.crc32(json.dumps(state, sort_keys=True).encode())


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
    """Writes the checkpoint of step `state.step`, points `last` (and `best`) at it, prunes old ones.

    Raises OSError if it cannot be written, ValueError if out_dir is not this run's (see `rundir.claim`); existing
    checkpoints stay as they were.
    """
    rundir.claim(out_dir)  # does not create out_dir: if it vanished, its disk may come back
    final = out_dir / f"step-{state.step:06d}"
    new = temporary(final)
    rundir.remove_leftovers(out_dir)
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
        if final.exists():  # the run was resumed from before this step
            final.rename(
                temporary(final, "old")
            )  # after a kill here, finish_renaming completes the save
        final.with_name(f"{final.name}.eval.json").unlink(
            missing_ok=True
        )  # was measured with other weights
        new.rename(final)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if (
        best
    ):  # before `last`: a run killed in between resumes before this step and finds the best again
        point(out_dir / "best", final)
    point(out_dir / "last", final)
    if not (out_dir / CONFIG).exists():  # out_dir was emptied
        write_json(out_dir / CONFIG, config)
    sync(out_dir)
    prune(out_dir, keep)
    return final


def finish_renaming(out_dir: Path) -> None:
    """Completes a save that was killed while it replaced a checkpoint: the newest intact one gets the name."""
    prefix = temporary(out_dir / "step-", "old").name
    for old in out_dir.glob(f"{prefix}*"):
        final = out_dir / f"step-{old.name.removeprefix(prefix)}"
        sound = [path for path in (temporary(final), old) if path.is_dir() and check(path) is None]
        if sound and not final.exists():
            sound[0].rename(final)


def point(link: Path, target: Path) -> None:
    """Makes `link` name its sibling `target`, atomically: a symbolic link, or if that fails a text file (`follow`)."""
    new = temporary(link)
    new.unlink(missing_ok=True)
    try:
        new.symlink_to(target.name)
    except OSError:  # the file system has no links, or Windows does not allow them
        write(link, target.name + "\n", new)
    else:
        new.replace(link)


def steps(out_dir: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    found = [
        d for d in out_dir.glob("step-*") if re.fullmatch(r"step-\d{6,18}", d.name) and d.is_dir()
    ]
    return sorted(found, key=number)


def number(checkpoint: Path) -> int:
    """The step in the name of a checkpoint's directory; 0 if it has another name."""
    found = re.fullmatch(r"step-(\d+)", checkpoint.name)
    return int(found[1]) if found else 0


def prune(out_dir: Path, keep: int) -> None:
    """Removes all checkpoints but the newest `keep`, `best` and `last`. Errors are ignored.

    Checkpoints newer than `last`, from before the run was resumed at an earlier one, are removed first.
    """
    with contextlib.suppress(OSError):
        best, last = (follow(out_dir / link).resolve() for link in ("best", "last"))
        found = sorted(
            steps(out_dir), key=lambda step: number(step) <= number(last)
        )  # stable: oldest first in both
        for old in found[:-keep] if keep else []:
            if old.resolve() not in (best, last):
                # renamed first, so that no half-removed directory has a checkpoint's name
                old.rename(temporary(old))
        rundir.remove_leftovers(out_dir)


def check(checkpoint: Path, names: tuple[str, ...] = FILES) -> str | None:
    """What is wrong with the files `names` of a checkpoint; None if they are intact.

    Opens only files with known names, never names from the checkpoint, so it cannot point elsewhere.
    """
    try:
        if not any(checkpoint.iterdir()):
            return "it is empty"
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
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{STATE} is damaged ({error})"
    return None


def find(
    run: Path | str, prefer: tuple[str, ...] = ("best", "last"), say=print, to_resume: bool = False
) -> Path:
    """The checkpoint that `run` names: itself, or the first intact one of `prefer` in an out directory.

    Falls back to the newest intact checkpoint and reports it through `say`. Reads and checks the model's files, with
    `to_resume` the optimizer's as well. Raises ValueError if there is none.
    """
    run = follow(run)
    if not run.is_dir():
        raise ValueError(
            f"{str(run)!r} is not a directory: name an out directory, or a checkpoint in one"
        )
    called_so = re.fullmatch(r"step-\d+", run.resolve().name) and not steps(
        run
    )  # an out directory may be, too
    itself = (run / MODEL).exists() or (run / STATE).exists() or called_so
    names = FILES if to_resume else (MODEL, CONFIG, TOKENIZER)
    tried: list[Path] = []
    error = f"{run} has no intact checkpoint: train into it first, or name another run"
    while untried := [path for path in choices(run, prefer, itself) if path not in tried]:
        candidate = untried[0]
        tried.append(candidate)
        wrong = check(candidate, names)
        if wrong is None:
            return candidate
        if itself and len(tried) == 1:
            error = f"checkpoint {run} is damaged: {wrong}"
        if candidate.is_dir() and len(untried) > 1:  # otherwise the run has removed it
            say(f"checkpoint {candidate.name} is damaged: {wrong}; trying the next")
    raise ValueError(error)


def choices(run: Path, prefer: tuple[str, ...], itself: bool) -> list[Path]:
    """The checkpoints to try, in this order: the named one, or those linked by `prefer`; then the newest first."""
    named = (
        [run]
        if itself
        else [path for path in (follow(run / link) for link in prefer) if path.is_dir()]
    )
    others = reversed(steps(run.resolve().parent if itself else run))
    return list(dict.fromkeys(path.resolve() for path in (*named, *others)))


def load_configs(checkpoint: Path) -> tuple[GPTConfig, TrainConfig]:
    """The model and training settings of a checkpoint or an out directory."""
    config = read_json(checkpoint / CONFIG)
    try:
        # unknown settings, of a recipe or of another version, are ignored
        train = {
            name: value
            for name, value in config["train"].items()
            if name in TrainConfig.__dataclass_fields__
        }
        return GPTConfig(**config["model"]), TrainConfig(**train)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{checkpoint / CONFIG} is not a run's configuration ({error})") from None


def load_model(
    checkpoint: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    make_model=GPT,
    **changes,
) -> GPT:
    """The model of a checkpoint, in eval mode.

    `make_model` builds it from its configuration, if it is a subclass. `changes` are fields of GPTConfig that do not
    affect the weights, such as dropout.
    """
    config = dataclasses.replace(load_configs(checkpoint)[0], **changes)
    weights = read_tensors(checkpoint / MODEL)
    if config.n_layer > len(weights):  # before anything of that size is allocated
        raise ValueError(
            f"{checkpoint / MODEL} has {len(weights)} tensors, too few for n_layer={config.n_layer}"
        )
    try:
        with torch.device("meta"):  # shapes without memory
            shapes = {name: p.shape for name, p in make_model(config).named_parameters()}
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{checkpoint / CONFIG} is not a run's configuration ({error})") from None
    expect(checkpoint / MODEL, weights, shapes)
    model = make_model(config)
    model.load_state_dict(weights)
    return model.to(device=device, dtype=dtype).eval()
