"""Protects a run from non-finite gradients and from micro-batches that do not fit into memory."""

import dataclasses
import gc
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from nanogpt import rundir
from nanogpt.checkpoint import CONFIG, State, list_checkpoints
from nanogpt.config import TrainConfig
from nanogpt.model import GPT, GPTConfig
from nanogpt.run.agree import Peers
from nanogpt.run.device import free_memory, undo_compile
from nanogpt.run.errors import out_of_memory, user_errors
from nanogpt.train import Parts, Tally, logger, micro_batch

MEMORY = "out of memory"
DYNAMO = re.compile(r"(backend=.* raised:)?\s*")  # lines without a cause
APART = 30  # seconds between the failures of processes that lack memory for the same micro-batch
BAD_STEPS = 5  # steps in a row without a finite gradient that end a run
SCALER_STEPS = 16  # fp16: as many more, while the scaler halves its initial scale of 2^16 to 1


def bad_steps_allowed(scaler) -> int:
    """How many steps in a row may have a non-finite gradient before the run stops."""
    return BAD_STEPS + (SCALER_STEPS if scaler is not None else 0)


def diagnosis(tally: Tally, step: int, config: TrainConfig) -> str:
    """The message for a run whose gradients are not finite."""
    saved = list_checkpoints(Path(config.out_dir))
    again = "resume from the last checkpoint by --resume=auto" if saved else "start again"
    return (
        f"no finite gradient in the last {int(tally.bad_in_a_row)} steps up to step {step}, at "
        f"learning rate {tally.lr:.2e}; the last finite gradient norm was {tally.good_norm:.3g}. "
        f"None of these steps was applied. Look at grad_norm in {config.out_dir}/metrics.jsonl; "
        f"{again} with a lower --learning_rate or --precision=fp32"
    )


def check_room(model_config: GPTConfig, config: TrainConfig, trains_on_cpu: bool) -> None:
    """Raises ValueError if a run needs more memory than is free, by a lower bound, in any case.

    Every process makes the weights in ordinary memory. When that is full, the system kills a
    process without a word; a GPU raises an error, which `rehearse` handles.
    """
    with torch.device("meta"):
        one = GPT(dataclasses.replace(model_config, n_layer=1))
    block = sum(p.numel() for p in one.h.parameters())
    parameters = sum(p.numel() for p in one.parameters()) + (model_config.n_layer - 1) * block
    needed = 4 * parameters
    if trains_on_cpu:  # gradients and optimizer; logits and each block's input
        tokens = config.batch_size * model_config.block_size
        channels = model_config.padded_vocab_size + model_config.n_layer * model_config.n_embd
        needed += 8 * parameters + 4 * tokens * channels
    room = free_memory()
    if needed > room:
        raise ValueError(
            f"{parameters:,} parameters with batch_size={config.batch_size} take at least "
            f"{needed / 1e9:,.1f} GB, and {room / 1e9:,.1f} GB of memory are free: choose a "
            "smaller n_layer, n_embd, n_inner, block_size or batch_size"
        )


def rehearse(config: TrainConfig, parts: Parts, state: State) -> TrainConfig:
    """Tries a forward and backward pass that changes nothing: it compiles, and finds what fits.

    A micro-batch that does not fit into memory is halved, on all processes alike, until it does. If
    compiling fails, the run continues without it. Returns the settings that fit.
    """
    parts.gpt.train()
    while problem := problem_with(
        lambda c=config: try_micro_batch(c, parts, state),
        parts.peers,
        parts.compiled,
        parts.sharded,
    ):
        gc.collect()  # frees the tensors of the failed attempt
        if parts.device.type == "cuda":
            torch.cuda.empty_cache()
        if problem == MEMORY:
            with user_errors():
                smaller = split(config)
            change_batches(config, smaller, parts)
            config = smaller
        else:
            logger.warning(f"torch.compile failed, continuing without it: {problem}")
            undo_compile(parts.gpt)
            parts.compiled = False
    if parts.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(parts.device)  # of what did not fit
    return config


def try_micro_batch(config: TrainConfig, parts: Parts, state: State) -> None:
    """A forward and backward pass with the memory of the first step; gradients are cleared."""
    # without communication a failing process leaves no other waiting; FSDP cannot do without
    no_sync = nullcontext() if parts.sharded else parts.accelerator.no_sync(parts.model)
    try:
        with no_sync:
            if state.step == 0:  # the optimizer's state, at most AdamW's, comes with the first step
                moments = [torch.empty_like(p) for p in parts.gpt.parameters() for _ in range(2)]  # noqa: F841
            # later steps of whole windows have to fit, too
            for whole in [False, True] if state.step < config.short_block_iters else [False]:
                with parts.autocast():
                    loss = parts.model(*micro_batch(config, parts, state, 0, whole))
                loss.backward()
    finally:
        parts.gpt.zero_grad()


def problem_with(
    attempt: Callable[[], None], peers: Peers, compiled: bool, sharded: bool = False
) -> str | None:
    """Calls `attempt`. If it fails on any process, returns MEMORY or what the compiler says.

    If a sharded model lacks memory on some processes only, the others wait for them amid the
    attempt: those that lack it end the run.
    """
    problem = None
    try:
        attempt()
    except Exception as error:  # whatever the compiler trips over, the model also runs without it
        problem = MEMORY if out_of_memory(error) else cause(error)
        if problem != MEMORY and not compiled:
            raise
    patience = APART if sharded and problem == MEMORY else None
    try:
        found = peers.largest(problem == MEMORY, problem not in (None, MEMORY), patience=patience)
    except RuntimeError:
        if patience is None:
            raise
        peers.leave(f"{problem} here, but not on all processes: choose a smaller --batch_size")
    memory, other = found
    if memory:
        return MEMORY
    return problem or ("it failed on another process" if other else None)


def cause(error: Exception) -> str:
    """The line of an error that says what happened: a compiler's comes after dynamo's."""
    lines = str(error).splitlines() or [type(error).__name__]
    return next((line for line in lines if not DYNAMO.fullmatch(line)), lines[0])


def change_batches(old: TrainConfig, new: TrainConfig, parts: Parts) -> None:
    """Switches to smaller micro-batches; the step itself does not change."""
    logger.warning(
        f"out of memory with batch_size={old.batch_size}: now --batch_size={new.batch_size} "
        f"--gradient_accumulation_steps={new.gradient_accumulation_steps}; "
        "a step has the same sequences"
    )
    if parts.compiled:
        torch.compiler.reset()  # frees the graphs of the old size: dynamo keeps only a few
    processes = parts.accelerator.num_processes
    parts.accelerator.gradient_accumulation_steps = new.gradient_accumulation_steps // processes
    parts.settings["train"] = dataclasses.asdict(new)
    if parts.accelerator.is_main_process:
        rundir.write_json(parts.out_dir / CONFIG, parts.settings)


def split(config: TrainConfig) -> TrainConfig:
    """The same step in smaller micro-batches: half the size, or the nearest part of an odd one."""
    size = config.batch_size
    if size == 1:
        raise ValueError(
            "a single sequence does not fit into memory: take a smaller --block_size or model, "
            "--gradient_checkpointing=True, or more GPUs with accelerate_configs/fsdp2.yaml"
        )
    parts = next(n for n in range(2, size + 1) if size % n == 0)
    return dataclasses.replace(
        config,
        batch_size=size // parts,
        gradient_accumulation_steps=config.gradient_accumulation_steps * parts,
    )
