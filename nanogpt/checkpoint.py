"""Checkpoints: atomic, without a pickle, and one format whatever the number of processes.

    out/<run>/step-000500/model.safetensors        the weights by name, as the model has them
                          optimizer.safetensors    "<parameter>.<state>", such as wte.weight.exp_avg
                          config.json              everything that determines the run
                          tokenizer.json           the data's tokenizer
                          trainer_state.json       step, tokens, best loss; size and CRC-32 of every file; written last
    out/<run>/last, best                           links to two of them

A checkpoint is written into a temporary directory, synced, and renamed: at every moment what has its final name is
whole. Loading one reads safetensors and JSON, and so executes nothing.
"""

import json
import os
import re
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanogpt.config import TrainConfig
from nanogpt.model import GPT, GPTConfig

MODEL, OPTIMIZER, STATE, CONFIG = "model.safetensors", "optimizer.safetensors", "trainer_state.json", "config.json"


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor. A sharded one is put together by all processes: all must call this."""
    from torch.distributed.tensor import DTensor  # half a second, which sampling does not have to wait for

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor, on the CPU."""
    return whole(tensor.detach()).cpu().contiguous()


def collect(model: GPT, optimizers: list[torch.optim.Optimizer]) -> tuple[dict, dict]:
    """Full weights and optimizer state by name. To be called on all processes."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():  # an evaluation leaves FSDP's outermost parameters whole: optimizers know the shards
        if isinstance(module, FSDPModule):
            module.reshard()
    weights = {name: gather(p) for name, p in model.named_parameters()}
    moments = {}
    for optimizer in optimizers:
        for name, p in model.named_parameters():
            for key, value in optimizer.state.get(p, {}).items():
                moments[f"{name}.{key}"] = gather(value)
    return weights, moments


def restore(checkpoint: Path, model: GPT, optimizers: list[torch.optim.Optimizer]) -> None:
    """Loads weights and optimizer state into a model and optimizers as they were made, sharded or not."""
    weights = read_tensors(checkpoint / MODEL)
    moments = read_tensors(checkpoint / OPTIMIZER)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(like(weights.pop(name), p))
    owner = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    for full_name, value in moments.items():
        name, _, key = full_name.rpartition(".")
        p = named[name]
        # a copy of its own: what was read may still be the file, mapped into memory; counters go to p's device as well
        owner[p].state[p][key] = (like(value, p) if value.shape == p.shape else value.to(p.device)).clone()


def like(tensor: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """`tensor` on the device of p, and sharded as p is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(p, DTensor):
        return distribute_tensor(tensor.to(p.device), p.device_mesh, p.placements)
    return tensor.to(p.device)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error})") from None


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def crc32(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def save(
    out_dir: Path, state: dict, weights: dict, moments: dict, config: dict, tokenizer, keep: int, best: bool
) -> Path:
    """Writes the checkpoint of step `state["step"]`, points `last` (and `best`) at it, prunes old ones.

    Raises OSError if the disk does not take it; what was there before stays as it was.
    """
    final = out_dir / f"step-{state['step']:06d}"
    temporary = out_dir / f".tmp-{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file(weights, temporary / MODEL, metadata={"format": "pt"})
        save_file(moments, temporary / OPTIMIZER)
        write_json(temporary / CONFIG, config)
        tokenizer.save(temporary)
        files = sorted(temporary.iterdir())
        with ThreadPoolExecutor() as pool:  # the disk writes while the checksums are computed
            synced = [pool.submit(sync, file) for file in files]
            checksums = list(pool.map(crc32, files))
            for future in synced:
                future.result()
        manifest = {f.name: {"bytes": f.stat().st_size, "crc32": c} for f, c in zip(files, checksums, strict=True)}
        write_json(temporary / STATE, state | {"files": manifest})
        sync(temporary / STATE)
        sync(temporary)
        if final.exists():  # resumed from before this step: the same step again, or a damaged one, makes room
            old = out_dir / f".old-{final.name}"
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
            temporary.rename(final)
            shutil.rmtree(old)
        else:
            temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    point(out_dir / "last", final)
    if best:
        point(out_dir / "best", final)
    sync(out_dir)
    prune(out_dir, keep)
    return final


def point(link: Path, target: Path) -> None:
    """Makes `link` a symbolic link to its sibling `target`, in one move."""
    temporary = link.with_name(f".tmp-{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(link)


def steps(out_dir: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    found = [d for d in out_dir.glob("step-*") if re.fullmatch(r"step-\d+", d.name)]
    return sorted(found, key=lambda d: int(d.name[5:]))


def prune(out_dir: Path, keep: int) -> None:
    linked = {(out_dir / link).resolve() for link in ("best", "last")}
    for old in steps(out_dir)[:-keep] if keep else []:
        if old.resolve() not in linked:
            shutil.rmtree(old)


def check(checkpoint: Path, checksums: bool = True) -> str | None:
    """What is wrong with a checkpoint, in a few words; None if it is whole."""
    if not any(checkpoint.iterdir()):
        return "it is empty"
    if not (checkpoint / STATE).is_file():
        return f"{STATE} is missing"
    try:
        files = read_json(checkpoint / STATE)["files"]
        for name in (MODEL, OPTIMIZER, CONFIG, "tokenizer.json"):
            path, expected = checkpoint / name, files[name]
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
            if checksums and crc32(path) != expected["crc32"]:
                return f"{name} is damaged: its checksum is wrong"
    except (ValueError, KeyError, TypeError) as error:
        return f"{STATE} is damaged ({error})"
    return None


def find(run: Path | str, prefer: tuple[str, ...] = ("best", "last"), say=print) -> Path:
    """The checkpoint that `run` means: itself, or in an out directory the first of `prefer` that is whole.

    Where that one is damaged, the newest whole one is taken instead and `say` tells so. Raises ValueError if there
    is none at all.
    """
    run = Path(run)
    if not run.is_dir():
        raise ValueError(f"{str(run)!r} is no directory: name an out directory, or a checkpoint in one")
    if (run / MODEL).exists() or (run / STATE).exists() or re.fullmatch(r"step-\d+", run.resolve().name):
        wrong = check(run)
        if wrong is None:
            return run.resolve()
        others = [other for other in reversed(steps(run.resolve().parent)) if check(other) is None]
        if not others:
            raise ValueError(f"checkpoint {run} is not whole: {wrong}")
        say(f"checkpoint {run} is not whole: {wrong}; going on with {others[0]}, the last whole one")
        return others[0]
    candidates = [(run / link).resolve() for link in prefer if (run / link).is_dir()]
    candidates += [step for step in reversed(steps(run)) if step.resolve() not in candidates]
    for candidate in candidates:
        wrong = check(candidate)
        if wrong is None:
            return candidate
        say(f"checkpoint {candidate.name} is not whole: {wrong}; trying the next")
    raise ValueError(f"{run} holds no whole checkpoint: train into it first, or name another run")


def load_configs(checkpoint: Path) -> tuple[GPTConfig, TrainConfig]:
    """The model and training settings that a checkpoint was made with."""
    config = read_json(checkpoint / CONFIG)
    try:
        return GPTConfig(**config["model"]), TrainConfig(**config["train"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{checkpoint / CONFIG} is not a run's configuration ({error})") from None


def load_model(checkpoint: Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> GPT:
    """The model of a checkpoint, ready to evaluate or to sample from."""
    config, _ = load_configs(checkpoint)
    model = GPT(config)
    model.load_state_dict(read_tensors(checkpoint / MODEL))
    return model.to(device=device, dtype=dtype).eval()
