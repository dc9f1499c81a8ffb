"""Protects weights and run from non-finite gradients and from micro-batches that do not fit into memory."""

import dataclasses
import gc
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
BAD_STEPS = 5  # steps in a row without a finite gradient that end a run
SCALER_STEPS = (
    16  # fp16: this many more may overflow while the scaler halves its initial scale of 2^16 to 1
)


def bad_steps_allowed(scaler) -> int:
    """How many steps in a row may have a non-finite gradient before the run stops."""
    return BAD_STEPS + (SCALER_STEPS if scaler is not None else 0)


def diagnosis(tally: Tally, step: int, lr: float, config: TrainConfig) -> str:
    """The message for a run whose gradients are not finite."""
    saved = list_checkpoints(Path(config.out_dir))
    again = (
        "resume from the last checkpoint by --resume=auto"
        if saved
        else "no step was saved: start again"
    )
    return (
        f"no finite gradient in the last {int(tally.bad_in_a_row)} steps up to step {step}, at learning rate {lr:.2e}; "
        f"the last finite gradient norm was {float(tally.good_norm):.3g}. None of these steps was applied. Look at "
        f"grad_norm and train_loss in {config.out_dir}/metrics.jsonl; {again} with a lower --learning_rate or "
        "--precision=fp32"
    )


def rehearse(config: TrainConfig, parts: Parts, state: State) -> TrainConfig:
    """Tries a forward and backward pass that changes nothing: it compiles the model and finds out what fits.

    A micro-batch that does not fit into memory is halved, on all processes alike, until it does. If compiling fails,
    the run continues without it. Returns the settings with the micro-batches that fit.
    """
    parts.gpt.train()
    while problem := problem_with(
        lambda c=config: try_micro_batch(c, parts, state), parts.peers, parts.compiled
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
    """A forward and backward pass that uses as much memory as the first step; gradients are cleared."""
    # no communication, so that a failing process leaves no other waiting; FSDP requires it
    try:
        with nullcontext() if parts.sharded else parts.accelerator.no_sync(parts.model):
            if (
                state.step == 0
            ):  # the optimizer's state, as large as AdamW's, comes with the first step
                moments = [torch.empty_like(p) for p in parts.gpt.parameters() for _ in range(2)]  # noqa: F841
            cuts = (
                [False, True] if state.step < config.short_block_iters else [False]
            )  # later steps have to fit, too
            for whole in cuts:
                with parts.autocast():
                    loss = parts.model(*micro_batch(config, parts, state, 0, whole))
                loss.backward()
    finally:
        parts.gpt.zero_grad()


def change_batches(old: TrainConfig, new: TrainConfig, parts: Parts) -> None:
    """Switches to smaller micro-batches; the step itself does not change."""
    logger.warning(
        f"out of memory with batch_size={old.batch_size}: now --batch_size={new.batch_size} "
        f"--gradient_accumulation_steps={new.gradient_accumulation_steps}; a step has the same sequences"
    )
    if parts.compiled:
        torch.compiler.reset()  # otherwise it compiles again for sizes that vary
    processes = parts.accelerator.num_processes
    parts.accelerator.gradient_accumulation_steps = new.gradient_accumulation_steps // processes
    parts.settings["train"] = dataclasses.asdict(new)
    if parts.accelerator.is_main_process:
        rundir.write_json(parts.out_dir / CONFIG, parts.settings)


def problem_with(attempt: Callable[[], None], peers: Peers, compiled: bool) -> str | None:
    """Calls `attempt()`. Returns MEMORY or the compiler's message if it fails on any process, else None."""
    problem = None
    try:
        attempt()
    except Exception as error:  # whatever the compiler trips over, the model also runs without it
        problem = MEMORY if out_of_memory(error) else str(error).splitlines()[0]
        if problem != MEMORY and not compiled:
            raise
    memory, other = peers.largest(problem == MEMORY, problem not in (None, MEMORY))
    return MEMORY if memory else problem or ("it failed on another process" if other else None)


def split(config: TrainConfig) -> TrainConfig:
    """The same step in smaller micro-batches: half the size, or if it is odd, divided by its smallest divisor."""
    size = config.batch_size
    if size == 1:
        raise ValueError(
            "a single sequence does not fit into memory: take a smaller --block_size or model, "
            "--gradient_checkpointing=True, or more GPUs with accelerate_configs/fsdp2.yaml"
        )
    parts = next(n for n in range(2, size + 1) if size % n == 0)
    accumulation = config.gradient_accumulation_steps * parts
    return dataclasses.replace(
        config, batch_size=size // parts, gradient_accumulation_steps=accumulation
    )


def check_room(model_config: GPTConfig, config: TrainConfig, training: bool) -> None:
    """Raises ValueError where a run needs more memory than is free, by a lower bound, before any of it is taken.

    Every process makes the weights in ordinary memory. `training` adds what training on a CPU takes there, where the
    system kills a process that takes too much. A GPU raises an error when its memory is full, which `rehearse` handles.
    """
    with torch.device("meta"):
        one = GPT(dataclasses.replace(model_config, n_layer=1))
    parameters = sum(p.numel() for p in one.parameters()) + (model_config.n_layer - 1) * sum(
        p.numel() for p in one.h.parameters()
    )
    room, needed = (
        free_memory(),
        parameters * (12 if training else 4),
    )  # with gradients and optimizer, or weights alone
    if needed > room:
        raise ValueError(
            f"the model has {parameters:,} parameters, which take at least {needed / 1e9:,.1f} GB; "
            f"{room / 1e9:,.1f} GB of memory are free: choose a smaller n_layer, n_embd, n_inner or block_size"
        )
    tokens, block_inputs = (
        config.batch_size * model_config.block_size,
        model_config.n_layer * model_config.n_embd,
    )
    needed += (
        4 * tokens * (model_config.padded_vocab_size + block_inputs)
    )  # logits, each block's input
    if training and needed > room:
        raise ValueError(
            f"batch_size={config.batch_size} sequences of {model_config.block_size} tokens take at least "
            f"{needed / 1e9:,.1f} GB; {room / 1e9:,.1f} GB of memory are free: choose a smaller batch_size "
            "or block_size"
        )
