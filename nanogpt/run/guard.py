"""Protects a run from models and micro-batches that do not fit into memory."""

from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import torch
from accelerate.utils import release_memory

from nanogpt.checkpoint import CONFIG, State
from nanogpt.config import TrainConfig
from nanogpt.data.files import write_json
from nanogpt.hub.weights import on_meta
from nanogpt.model import GPT, GPTConfig
from nanogpt.run.device import CGROUP
from nanogpt.run.errors import fail, out_of_memory
from nanogpt.train import Parts, logger, micro_batch

FITS, NOT_COMPILED, LACKS_MEMORY = range(3)  # outcomes of trying a first step


def check_room(config: GPTConfig) -> None:
    """Raises ValueError if a model's blocks exceed free memory: the system would kill the run."""
    one = on_meta(replace(config, n_layer=1))
    block = sum(p.numel() for p in one.h.parameters())
    needed = 16 * block * config.n_layer  # with gradients and AdamW's state
    room = psutil.virtual_memory().available
    with suppress(OSError, ValueError, KeyError):  # no cgroup v2, or "max", which is not a number
        limit = int(Path(CGROUP, "memory.max").read_text())  # of the container
        used = int(Path(CGROUP, "memory.current").read_text())
        stat = dict(line.split() for line in Path(CGROUP, "memory.stat").read_text().splitlines())
        cache = int(stat["active_file"]) + int(stat["inactive_file"])  # given back when needed
        room = min(room, limit - used + cache)
    if needed > room:
        raise ValueError(
            f"{config.n_layer} layers of {config.n_embd} channels take at least "
            f"{needed / 1e9:,.1f} GB, but {room / 1e9:,.1f} GB of memory are free: "
            "lower --n_layer or --n_embd"
        )


def check_masks(config: GPTConfig, device: torch.device) -> None:
    """Raises ValueError if the second forward pass of a checkpointed block would have other masks.

    torch.utils.checkpoint restores the random numbers of CPUs and CUDA, but not those of MPS.
    """
    if device.type == "mps" and config.gradient_checkpointing and config.dropout:
        raise ValueError(
            "on MPS gradient_checkpointing needs --dropout=0: else gradients are wrong"
        )


def rehearse(config: TrainConfig, parts: Parts, state: State) -> TrainConfig:
    """Tries a forward and backward pass that changes nothing: it compiles, and finds what fits.

    A micro-batch that does not fit into memory is halved, on all processes alike, until it does.
    Returns the settings that fit.
    """
    parts.gpt.train()
    while outcome := try_passes(config, parts, state):
        release_memory()  # of the failed attempt
        if outcome == NOT_COMPILED:
            continue
        if parts.compiled:
            torch.compiler.reset()  # frees the graphs of the old size: dynamo keeps only a few
        size = config.batch_size
        if size == 1:
            fail(
                "a single sequence does not fit into memory: take a smaller --block_size or model, "
                "--gradient_checkpointing=True, or more GPUs with accelerate_configs/fsdp2.yaml"
            )
        divisor = next(n for n in range(2, size + 1) if size % n == 0)
        total = config.gradient_accumulation_steps * divisor
        config = replace(config, batch_size=size // divisor, gradient_accumulation_steps=total)
        now = f"now --batch_size={config.batch_size} --gradient_accumulation_steps={total}"
        logger.warning(f"out of memory with batch_size={size}: {now}, which is the same step")
    parts.settings["train"] = asdict(config)
    if parts.accelerator.is_main_process:  # what fits, and whether it is compiled
        try:
            write_json(parts.out_dir / CONFIG, parts.settings)
        except OSError as error:  # a full disk, which the next checkpoint notices as well
            logger.warning(f"{CONFIG} could not be written: {error}")
    if parts.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(parts.device)  # of what did not fit
    return config


def try_passes(config: TrainConfig, parts: Parts, state: State) -> int:
    """Tries the passes of a first step, and clears gradients; returns the worst outcome of all.

    After a failed compilation, which is a warning unless it was asked for, nothing is compiled.
    """
    outcome = FITS
    # without communication a failing process leaves no other waiting; FSDP cannot do without
    no_sync = nullcontext() if parts.sharded else parts.accelerator.no_sync(parts.model)
    what = "checking that a micro-batch fits in memory"
    if parts.compiled:
        what = "compiling, up to a minute the first time"
    try:
        with no_sync, parts.progress.waiting(what):
            if state.step == 0:  # the optimizer's state, at most AdamW's, comes with the first step
                trained = [p for p in parts.gpt.parameters() if p.requires_grad]
                moments = [torch.empty_like(p) for p in trained for _ in range(2)]  # noqa: F841
            tried = [config]
            if state.step < config.short_block_iters:  # later steps of whole windows must fit, too
                tried.append(replace(config, short_block_iters=0))
            for settings in tried:
                with parts.autocast():
                    loss = parts.model(*micro_batch(settings, parts, state, 0))
                loss.backward()
    except Exception as error:
        outcome = LACKS_MEMORY if out_of_memory(error) else NOT_COMPILED
        if outcome == NOT_COMPILED and not parts.compiled:
            raise
        if parts.sharded:
            reset_shards(parts.gpt, error)
        if outcome == NOT_COMPILED:
            lines = str(error).splitlines()  # a compiler's message comes after dynamo's
            reason = next((text for text in lines if text and "raised:" not in text), "")
            stopped = parts.interrupts.number  # Ctrl-C ended the compiler as well
            if config.compile != "auto" and not stopped:
                fail(f"torch.compile failed; --compile=false trains without it: {reason}")
            if not stopped:
                logger.warning(f"training without torch.compile, which failed: {reason}")
            torch.compiler.set_stance("force_eager")
            parts.compiled = parts.settings["environment"]["compiled"] = False
    finally:
        parts.gpt.zero_grad()
    return parts.peers.all_max(outcome)[0]


def reset_shards(gpt: GPT, error: Exception) -> None:
    """Makes FSDP forget passes that failed, if this version of torch can; else ends the run.

    The layers that a failed backward pass had reached would silently get no more gradients.
    """
    if not hasattr(gpt, "reset_iter_state"):
        fail(f"{error}: choose a smaller --batch_size or --compile=false; torch cannot try again")
    gpt.zero_grad()
    with suppress(AttributeError):  # raised if no pass had begun
        gpt.reset_iter_state()
