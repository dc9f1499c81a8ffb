"""Checkpoints: atomic, without a pickle, and one format whatever the number of processes.

    out/<run>/step-000500/model.safetensors        the weights by name, as the model has them
                          optimizer.safetensors    "<parameter>.<state>", such as wte.weight.exp_avg
                          config.json              everything that determines the run
                          tokenizer.json           the data's tokenizer
                          trainer_state.json       step, tokens, best loss; size and CRC-32 of every file (and of
                                                   what it says itself); written last
    out/<run>/last, best                           links to two of them

A checkpoint is written into a temporary directory, synced, and renamed: at every moment what has its final name is
whole. Loading one reads safetensors and JSON, and so executes nothing.
"""

import dataclasses
import json
import re
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanogpt import rundir
from nanogpt.config import TrainConfig
from nanogpt.data.files import read_json, require_regular
from nanogpt.model import GPT, GPTConfig
from nanogpt.optim import Muon
from nanogpt.rundir import number, point, prune, steps, sync, write_json

MODEL, OPTIMIZER, STATE, CONFIG = "model.safetensors", "optimizer.safetensors", "trainer_state.json", "config.json"
NUMBERS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # types of tensors that can be loaded
# of each parameter; what another optimizer saved is restored as it was found
STATES = {torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"), Muon: ("momentum_buffer",)}
# what a run counts, and where it begins
COUNTED = {"step": int, "tokens": int, "train_seconds": float, "skipped_steps": int}
COUNTED |= {"evaluated_step": int | None, "best_val_loss": float | None, "best_step": int | None}
START = {"step": 0, "tokens": 0, "train_seconds": 0.0, "skipped_steps": 0}
START |= {"evaluated_step": None, "best_val_loss": None, "best_step": None}
# fp16's gradient scaler; earlier versions saved neither
SCALER = {"loss_scale": float | None, "loss_scale_steps": int | None}
COUNTED |= SCALER
START |= dict.fromkeys(SCALER)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor. A sharded one is put together by all processes: all must call this."""
    from torch.distributed.tensor import DTensor  # half a second, which sampling does not have to wait for

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def size(model: GPT, optimizers: list[torch.optim.Optimizer]) -> int:
    """Bytes that a checkpoint has, nearly."""
    tensors = list(model.parameters())
    tensors += [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if torch.is_tensor(tensor))


def collect(
    model: GPT, optimizers: list[torch.optim.Optimizer], copy: bool = False, keep: bool = True
) -> tuple[dict, dict]:
    """Full weights and optimizer state by name, on the CPU. To be called on all processes.

    With `copy` they stay as they are when training goes on; without, they may be the model's own memory. Processes
    that do not `keep` them get empty ones: a sharded model takes all processes to put together. Raises MemoryError
    where there is no room for a copy, after all processes have done their part.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():  # an evaluation leaves FSDP's outermost parameters whole: optimizers know the shards
        if isinstance(module, FSDPModule):
            module.reshard()
    weights, moments, full = {}, {}, []

    def take(into: dict, name: str, tensor: torch.Tensor | float) -> None:
        tensor = whole(torch.as_tensor(tensor).detach())
        if keep:
            try:
                on_host = tensor.cpu().contiguous()
                into[name] = on_host.clone() if copy and on_host.data_ptr() == tensor.data_ptr() else on_host
            except RuntimeError as error:
                full.append(error)

    for name, p in model.named_parameters():
        take(weights, name, p)
        for optimizer in optimizers:
            for key, value in optimizer.state.get(p, {}).items():
                take(moments, f"{name}.{key}", value)
    if full:
        raise MemoryError(f"no memory for a copy of weights and optimizer state: {full[0]}")
    return weights, moments


def restore(checkpoint: Path, model: GPT, optimizers: list[torch.optim.Optimizer]) -> None:
    """Loads weights and optimizer state into a model and optimizers as they were made, sharded or not.

    Raises ValueError where the files are not those of such a model and such optimizers.
    """
    named = dict(model.named_parameters())
    weights = read_tensors(checkpoint / MODEL)
    moments = read_tensors(checkpoint / OPTIMIZER)
    expect(checkpoint / MODEL, weights, {name: p.shape for name, p in named.items()})
    owner = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    expected = {}
    for name, p in named.items():
        keys = {f"{name}.{key}": torch.Size() if key == "step" else p.shape for key in STATES.get(type(owner[p]), ())}
        if keys.keys() & moments.keys():  # none at all: every step so far was skipped
            expected |= keys
    foreign = {name for name, p in named.items() if type(owner[p]) not in STATES}
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
        # a copy of its own: what was read may still be the file, mapped into memory; counters go to p's device as well
        owner[p].state[p][key] = (like(value, p) if value.shape == p.shape else value.to(p.device)).clone()


def expect(path: Path, tensors: dict[str, torch.Tensor], shapes: dict[str, torch.Size]) -> None:
    """Raises ValueError where names or shapes differ, before anything is changed."""
    if strange := sorted(tensors.keys() ^ shapes.keys()):
        what = "lacks" if strange[0] in shapes else "has an unknown"
        raise ValueError(f"{path} {what} {strange[0][:80]!r}: it is not this model's")
    for name, shape in shapes.items():
        if tensors[name].shape != shape or tensors[name].dtype not in NUMBERS:
            found = f"{tuple(tensors[name].shape)} {tensors[name].dtype}"
            raise ValueError(f"{path}: {name} is {found} instead of {tuple(shape)}: it is not this model's")
    if bad := not_finite(tensors):
        raise ValueError(f"{path}: {bad} has values that are not finite; {earlier(path.parent)}")


def not_finite(tensors: dict[str, torch.Tensor]) -> str | None:
    """The name of a tensor with infinities or NaNs."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)


def earlier(checkpoint: Path) -> str:
    """Which checkpoint to go back to from one that is whole, but of no use."""
    for other in reversed(steps(checkpoint.parent)):
        older = number(other) < number(checkpoint)
        if older and check(other) is None and not not_finite(read_tensors(other / MODEL)):
            return f"go back to {other} (--resume={other})"
    return "no earlier checkpoint is left"


def like(tensor: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """`tensor` on the device of p, and sharded as p is."""
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
    except SafetensorError as error:  # a full disk among others
        raise OSError(f"{path.name}: {error}") from None


def read_state(checkpoint: Path) -> dict:
    """What the run had counted when it was saved. Raises ValueError if a value is missing or of the wrong type."""
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
    """CRC-32 of a state file's content, which no other file could hold."""
    return zlib.crc32(json.dumps(state, sort_keys=True).encode())


def save(
    out_dir: Path, state: dict, weights: dict, moments: dict, config: dict, tokenizer, keep: int, best: bool
) -> Path:
    """Writes the checkpoint of step `state["step"]`, points `last` (and `best`) at it, prunes old ones.

    Raises OSError if the disk does not take it, ValueError if out_dir is not this run's (see `rundir.claim`); what was
    there before stays as it was.
    """
    rundir.claim(out_dir)  # which does not make it: where it vanished, perhaps a disk that will come back did
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
        if final.exists():  # resumed from before this step: the same step again, or a damaged one, makes room
            final.rename(rundir.temporary(final, "old"))  # killed here: finish_renaming
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if best:  # before `last`: a run killed in between starts before this step, and finds the best once more
        point(out_dir / "best", final)
    point(out_dir / "last", final)
    if not (out_dir / CONFIG).exists():  # out_dir was emptied
        write_json(out_dir / CONFIG, config)
    sync(out_dir)
    prune(out_dir, keep)
    return final


def sync_all(files: list[Path]) -> list[int]:
    """The checksums of files, which are on the disk when it returns."""
    jobs = [(sync, file) for file in files] + [(crc32, file) for file in files]
    try:
        with ThreadPoolExecutor() as pool:  # the disk writes while the checksums are computed
            done = list(pool.map(lambda job: job[0](job[1]), jobs))
    except RuntimeError:  # the system has no thread left
        done = [work(file) for work, file in jobs]
    return done[len(files) :]


def add_evaluation(out_dir: Path, state: dict, keep: int, best: bool) -> None:
    """Writes the evaluation of step `state["step"]` into its checkpoint, and points `best` at it if it is the best.

    `best` first: a run killed in between evaluates the step again, and finds the best once more.
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
    """Where a save was killed while it put a checkpoint in the place of another, gives the better one the name."""
    prefix = rundir.temporary(out_dir / "step-", "old").name
    for old in out_dir.glob(f"{prefix}*"):
        final = out_dir / f"step-{old.name.removeprefix(prefix)}"
        new = rundir.temporary(final)
        sound = [path for path in (new, old) if path.is_dir() and check(path) is None]
        if sound and not final.exists():
            sound[0].rename(final)


def check(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None if it is whole.

    The names of files are ours, never those that the checkpoint brings: it cannot point anywhere else.
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
    """The checkpoint that `run` means: itself, or in an out directory the first of `prefer` that is whole.

    Where that one is damaged, the newest whole one is taken instead and `say` tells so. With `hold`, a run that trains
    meanwhile does not remove it before this process ends (`rundir.hold`). Raises ValueError if there is none at all.
    """
    run = Path(run)
    if not run.is_dir():
        raise ValueError(f"{str(run)!r} is no directory: name an out directory, or a checkpoint in one")
    if (run / MODEL).exists() or (run / STATE).exists() or re.fullmatch(r"step-\d+", run.resolve().name):
        wrong = check_held(run, hold)
        if wrong is None:
            return run.resolve()
        other = next((o for o in reversed(steps(run.resolve().parent)) if check_held(o, hold) is None), None)
        if other is None:
            raise ValueError(f"checkpoint {run} is not whole: {wrong}")
        say(f"checkpoint {run} is not whole: {wrong}; going on with {other}, the last whole one")
        return other
    tried: list[Path] = []
    while candidates := [path for path in choices(run, prefer) if path not in tried]:  # a run may write new ones
        for candidate in candidates:
            wrong = check_held(candidate, hold)
            if wrong is None:
                return candidate
            if candidate.is_dir():  # else the run that writes there has removed it
                say(f"checkpoint {candidate.name} is not whole: {wrong}; trying the next")
        tried += candidates
    raise ValueError(f"{run} holds no whole checkpoint: train into it first, or name another run")


def check_held(checkpoint: Path, hold: bool) -> str | None:
    """What is wrong with a checkpoint. With `hold` no run removes it before this process ends, if it is whole."""
    if hold:
        rundir.hold(checkpoint)
    wrong = check(checkpoint)
    if wrong:
        rundir.let_go(checkpoint)
    return wrong


def choices(run: Path, prefer: tuple[str, ...]) -> list[Path]:
    """The checkpoints of an out directory in the order in which they are tried: linked by `prefer`, then the newest."""
    linked = [(run / link).resolve() for link in prefer if (run / link).is_dir()]
    return list(dict.fromkeys(linked + [step.resolve() for step in reversed(steps(run))]))


def load_configs(checkpoint: Path) -> tuple[GPTConfig, TrainConfig]:
    """The model and training settings that a checkpoint (or an out directory) was made with."""
    config = read_json(checkpoint / CONFIG)
    try:
        # settings of a recipe's own, or of another version, are passed over: nothing here depends on them
        train = {name: value for name, value in config["train"].items() if name in TrainConfig.__dataclass_fields__}
        return GPTConfig(**config["model"]), TrainConfig(**train)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{checkpoint / CONFIG} is not a run's configuration ({error})") from None


def load_model(
    checkpoint: Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None, make_model=GPT, **changes
) -> GPT:
    """The model of a checkpoint, ready to evaluate or to sample from.

    `make_model` builds it from its configuration, if it is a subclass. `changes` are fields of GPTConfig that leave the
    weights alone, such as dropout.
    """
    config = dataclasses.replace(load_configs(checkpoint)[0], **changes)
    weights = read_tensors(checkpoint / MODEL)
    if config.n_layer > len(weights):  # before anything of that size is made
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
