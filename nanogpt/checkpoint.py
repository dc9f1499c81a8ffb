"""Atomic checkpoints without pickle, in one format for any number of processes.

    out/<run>/step-000500/model.safetensors        the weights by name, as the model has them
                          optimizer.safetensors    "<parameter>.<state>", such as wte.weight.exp_avg
                          config.json              all settings and versions
                          tokenizer.json           the data's tokenizer
                          trainer_state.json       step, tokens, best loss; size and CRC-32 of every file and of its
                                                   own content; written last
    out/<run>/last, best                           links to two of them, or text files with their names

A checkpoint is written to a temporary directory, synced, and renamed, so everything with a final name is complete.
Loading reads safetensors and JSON only, and executes nothing.
"""

import dataclasses
import json
import re
import shlex
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanogpt.config import TrainConfig
from nanogpt.data.files import follow, read_json, require_regular
from nanogpt.model import GPT, GPTConfig
from nanogpt.optim import state_shapes
from nanogpt.run import rundir
from nanogpt.run.rundir import number, point, prune, steps, sync, write_json

MODEL, OPTIMIZER, STATE, CONFIG = "model.safetensors", "optimizer.safetensors", "trainer_state.json", "config.json"
NUMBERS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # dtypes that can be loaded
# the counters of a run, and their values at step 0
COUNTED = {"step": int, "tokens": int, "train_seconds": float, "skipped_steps": int}
COUNTED |= {"evaluated_step": int | None, "best_val_loss": float | None, "best_step": int | None}
START = {"step": 0, "tokens": 0, "train_seconds": 0.0, "skipped_steps": 0}
START |= {"evaluated_step": None, "best_val_loss": None, "best_step": None}
# fp16's gradient scaler; earlier versions saved neither
SCALER = {"loss_scale": float | None, "loss_scale_steps": int | None}
COUNTED |= SCALER
START |= dict.fromkeys(SCALER)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor. A sharded one is gathered from all processes, which must all call this."""
    from torch.distributed.tensor import DTensor  # takes half a second to import, and sampling does not need it

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def size(model: GPT, optimizers: list[torch.optim.Optimizer]) -> int:
    """Approximate size of a checkpoint in bytes."""
    tensors = list(model.parameters())
    tensors += [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if torch.is_tensor(tensor))


def collect(
    model: GPT, optimizers: list[torch.optim.Optimizer], copy: bool = False, keep: bool = True
) -> tuple[dict, dict]:
    """Full weights and optimizer state by name, on the CPU. Must be called on all processes.

    With `copy` they do not change as training continues; otherwise they may share the model's memory. Processes without
    `keep` only take part in gathering and return empty dicts. Raises MemoryError if a copy does not fit into memory,
    after all processes have taken part.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():  # an evaluation leaves FSDP's outermost parameters unsharded
        if isinstance(module, FSDPModule):
            module.reshard()
    weights, moments, full = {}, {}, []

    def take(into: dict, name: str, tensor: torch.Tensor | float) -> None:
        tensor = full_tensor(torch.as_tensor(tensor).detach())
        if keep:
            try:
                into[name] = to_host(tensor, copy)
            except RuntimeError as error:
                full.append(error)

    for name, p in model.named_parameters():
        take(weights, name, p)
        for optimizer in optimizers:
            for key, value in optimizer.state.get(p, {}).items():
                take(moments, f"{name}.{key}", value)
    if model.wte.weight.is_cuda:
        torch.cuda.synchronize()  # until all copies have arrived
    if full:
        raise MemoryError(f"no memory for a copy of weights and optimizer state: {full[0]}")
    return weights, moments


def to_host(tensor: torch.Tensor, copy: bool) -> torch.Tensor:
    """`tensor` on the CPU; with `copy` in memory of its own, which CUDA has filled at the next synchronization."""
    if copy and tensor.device.type == "cuda":  # into pinned memory, which torch keeps for the next copy
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return pinned.copy_(tensor, non_blocking=True)
    on_host = tensor.cpu().contiguous()
    return on_host.clone() if copy and on_host.data_ptr() == tensor.data_ptr() else on_host


def restore(checkpoint: Path, model: GPT, optimizers: list[torch.optim.Optimizer]) -> None:
    """Loads weights and optimizer state into a new model and new optimizers, sharded or not.

    Raises ValueError if the files do not belong to such a model and such optimizers.
    """
    named = dict(model.named_parameters())
    weights = read_tensors(checkpoint / MODEL)
    moments = read_tensors(checkpoint / OPTIMIZER)
    expect(checkpoint / MODEL, weights, {name: p.shape for name, p in named.items()})
    owner = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    expected, foreign = dict[str, torch.Size](), set[str]()  # the state of foreign optimizers is restored unchecked
    for name, p in named.items():
        shapes = state_shapes(owner[p], p) if p in owner else {}  # a frozen parameter has no state
        if shapes is None:
            foreign.add(name)
        elif any(f"{name}.{key}" in moments for key in shapes):  # there is none if every step was skipped
            expected |= {f"{name}.{key}": shape for key, shape in shapes.items()}
    known = {name: value for name, value in moments.items() if name.rpartition(".")[0] not in foreign}
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
        owner[p].state[p][key] = (like(value, p) if value.shape == p.shape else value.to(p.device)).clone()


def expect(path: Path, tensors: dict[str, torch.Tensor], shapes: dict[str, torch.Size]) -> None:
    """Raises ValueError if names, shapes or dtypes differ, or values are not finite."""
    if strange := sorted(tensors.keys() ^ shapes.keys()):
        what = "lacks" if strange[0] in shapes else "has an unknown"
        raise ValueError(f"{path} {what} {strange[0][:80]!r}: it does not belong to this model")
    for name, shape in shapes.items():
        if tensors[name].shape != shape or tensors[name].dtype not in NUMBERS:
            found = f"{tuple(tensors[name].shape)} {tensors[name].dtype}"
            raise ValueError(f"{path}: {name} is {found} instead of {tuple(shape)}: it does not belong to this model")
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


def read_state(checkpoint: Path) -> dict:
    """The run's counters in a checkpoint. Raises ValueError if one is missing or has the wrong type."""
    state = dict.fromkeys(SCALER) | read_json(checkpoint / STATE)
    for name, kind in COUNTED.items():
        value = state.get(name, "")
        right = isinstance(value, kind) and not isinstance(value, bool)
        most = float("inf") if name == "loss_scale" else 2**53
        if not right or (value is not None and not 0 <= value < most and name != "best_val_loss"):
            raise ValueError(f"{checkpoint / STATE} is damaged: {name} is {str(state.get(name))[:40]!r}")
    return {name: state[name] for name in COUNTED}


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
    out_dir: Path, state: dict, weights: dict, moments: dict, config: dict, tokenizer, keep: int, best: bool
) -> Path:
    """Writes the checkpoint of step `state["step"]`, points `last` (and `best`) at it, prunes old ones.

    Raises OSError if it cannot be written, ValueError if out_dir is not this run's (see `rundir.claim`); existing
    checkpoints stay as they were.
    """
    rundir.claim(out_dir)  # does not create out_dir: if it vanished, its disk may come back
    final = out_dir / f"step-{state['step']:06d}"
    temporary = rundir.temporary(final)
    rundir.sweep(out_dir)
    temporary.mkdir()
    try:
        write_tensors(temporary / MODEL, weights)
        write_tensors(temporary / OPTIMIZER, moments)
        write_json(temporary / CONFIG, config)
        tokenizer.save(temporary)
        files = sorted(temporary.iterdir())
        checksums = sync_all(files)
        manifest = {f.name: {"bytes": f.stat().st_size, "crc32": c} for f, c in zip(files, checksums, strict=True)}
        content = state | {"files": manifest}
        write_json(temporary / STATE, content | {"crc32": seal(content)})
        sync(temporary)
        if final.exists():  # the run was resumed from before this step
            final.rename(rundir.temporary(final, "old"))  # after a kill here, finish_renaming completes the save
        final.with_name(f"{final.name}.eval.json").unlink(missing_ok=True)  # was measured with other weights
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if best:  # before `last`: a run killed in between resumes before this step and finds the best again
        point(out_dir / "best", final)
    point(out_dir / "last", final)
    if not (out_dir / CONFIG).exists():  # out_dir was emptied
        write_json(out_dir / CONFIG, config)
    sync(out_dir)
    prune(out_dir, keep)
    return final


def sync_all(files: list[Path]) -> list[int]:
    """Flushes files to disk and returns their checksums."""
    jobs = [(sync, file) for file in files] + [(crc32, file) for file in files]
    try:
        with ThreadPoolExecutor() as pool:  # the disk writes while the checksums are computed
            done = list(pool.map(lambda job: job[0](job[1]), jobs))
    except RuntimeError:  # no thread can be started
        done = [work(file) for work, file in jobs]
    return done[len(files) :]


def add_evaluation(out_dir: Path, state: dict, keep: int, best: bool) -> None:
    """Writes the evaluation of step `state["step"]` into its checkpoint, and points `best` at it if it is the best.

    `best` is moved first: a run killed in between evaluates the step again and finds the best again.
    """
    final = out_dir / f"step-{state['step']:06d}"
    content = read_json(final / STATE)
    content |= {name: state[name] for name in ("evaluated_step", "best_val_loss", "best_step")}
    del content["crc32"]
    if best:
        point(out_dir / "best", final)
        sync(out_dir)
    write_json(final / STATE, content | {"crc32": seal(content)})
    sync(final)
    prune(out_dir, keep)


def finish_renaming(out_dir: Path) -> None:
    """Completes a save that was killed while it replaced a checkpoint: the newest intact one gets the name."""
    prefix = rundir.temporary(out_dir / "step-", "old").name
    for old in out_dir.glob(f"{prefix}*"):
        final = out_dir / f"step-{old.name.removeprefix(prefix)}"
        new = rundir.temporary(final)
        sound = [path for path in (new, old) if path.is_dir() and check(path) is None]
        if sound and not final.exists():
            sound[0].rename(final)


def check(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is intact.

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
        files = state["files"]
        for name in (MODEL, OPTIMIZER, CONFIG, "tokenizer.json"):
            path, expected = checkpoint / name, files[name]
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


def find(run: Path | str, prefer: tuple[str, ...] = ("best", "last"), say=print, hold: bool = True) -> Path:
    """The checkpoint that `run` names: itself, or the first intact one of `prefer` in an out directory.

    Falls back to the newest intact checkpoint and reports it through `say`. With `hold`, a run in training does not
    remove it before this process ends (`rundir.hold`). Raises ValueError if there is none.
    """
    run = follow(run)
    if not run.is_dir():
        raise ValueError(f"{str(run)!r} is not a directory: name an out directory, or a checkpoint in one")
    called_so = re.fullmatch(r"step-\d+", run.resolve().name) and not steps(run)  # an out directory may be, too
    if (run / MODEL).exists() or (run / STATE).exists() or called_so:
        wrong = check_held(run, hold)
        if wrong is None:
            return run.resolve()
        other = next((o for o in reversed(steps(run.resolve().parent)) if check_held(o, hold) is None), None)
        if other is None:
            raise ValueError(f"checkpoint {run} is damaged: {wrong}")
        say(f"checkpoint {run} is damaged: {wrong}; using {other}, the newest intact one")
        return other
    tried: list[Path] = []
    while candidates := [path for path in choices(run, prefer) if path not in tried]:  # a run may write new ones
        for candidate in candidates:
            wrong = check_held(candidate, hold)
            if wrong is None:
                return candidate
            if candidate.is_dir():  # otherwise the run has removed it
                say(f"checkpoint {candidate.name} is damaged: {wrong}; trying the next")
        tried += candidates
    raise ValueError(f"{run} has no intact checkpoint: train into it first, or name another run")


def check_held(checkpoint: Path, hold: bool) -> str | None:
    """`check`; with `hold`, no run removes an intact checkpoint before this process ends."""
    if hold:
        rundir.hold(checkpoint)
    wrong = check(checkpoint)
    if wrong:
        rundir.unhold(checkpoint)
    return wrong


def choices(run: Path, prefer: tuple[str, ...]) -> list[Path]:
    """The checkpoints of an out directory in the order to try: those linked by `prefer`, then the newest first."""
    named = [follow(run / link) for link in prefer]
    linked = [path.resolve() for path in named if path.is_dir()]
    return list(dict.fromkeys(linked + [step.resolve() for step in reversed(steps(run))]))


def load_configs(checkpoint: Path) -> tuple[GPTConfig, TrainConfig]:
    """The model and training settings of a checkpoint or an out directory."""
    config = read_json(checkpoint / CONFIG)
    try:
        # unknown settings, of a recipe or of another version, are ignored
        train = {name: value for name, value in config["train"].items() if name in TrainConfig.__dataclass_fields__}
        return GPTConfig(**config["model"]), TrainConfig(**train)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{checkpoint / CONFIG} is not a run's configuration ({error})") from None


def load_model(
    checkpoint: Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None, make_model=GPT, **changes
) -> GPT:
    """The model of a checkpoint, in eval mode.

    `make_model` builds it from its configuration, if it is a subclass. `changes` are fields of GPTConfig that do not
    affect the weights, such as dropout.
    """
    config = dataclasses.replace(load_configs(checkpoint)[0], **changes)
    weights = read_tensors(checkpoint / MODEL)
    if config.n_layer > len(weights):  # before anything of that size is allocated
        raise ValueError(f"{checkpoint / MODEL} has {len(weights)} tensors, too few for n_layer={config.n_layer}")
    try:
        with torch.device("meta"):  # shapes without memory
            shapes = {name: p.shape for name, p in make_model(config).named_parameters()}
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{checkpoint / CONFIG} is not a run's configuration ({error})") from None
    expect(checkpoint / MODEL, weights, shapes)
    model = make_model(config)
    model.load_state_dict(weights)
    return model.to(device=device, dtype=dtype).eval()
