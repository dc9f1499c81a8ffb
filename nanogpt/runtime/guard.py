"""What protects weights and run: gradients that are not finite, micro-batches that do not fit into memory."""

import dataclasses
import gc
from contextlib import nullcontext

import torch
from accelerate.utils import DistributedType

from nanogpt.config import TrainConfig, out_of_memory, user_errors
from nanogpt.model import GPT, GPTConfig
from nanogpt.runtime.device import free_memory

MEMORY = "out of memory"
SCALER_STEPS = 16  # fp16: so many steps in a row may overflow while the scaler halves its first scale, 2^16, to 1


def contagious(loss: torch.Tensor) -> torch.Tensor:
    """`loss`, with a gradient that is not finite where the loss is not: all processes see it in the one they share."""
    return loss * torch.where(loss.isfinite(), 1.0, torch.nan)


def bad_steps_allowed(config: TrainConfig, scaler) -> int:
    """How many steps in a row may lack a finite gradient before the run ends."""
    return config.max_bad_steps + (SCALER_STEPS if scaler is not None else 0)


def diagnosis(bad: int, step: int, lr: float, last_norm: float, config: TrainConfig) -> str:
    """What is known about a run without finite gradients, and where to look."""
    return (
        f"no finite gradient in the last {bad} steps up to step {step}, at learning rate {lr:.2e}; the last finite "
        f"gradient norm was {last_norm:.3g}. None of these steps was applied. Look at grad_norm and train_loss in "
        f"{config.out_dir}/metrics.jsonl; go on from the last checkpoint by --resume=auto with a lower "
        "--learning_rate or --precision=fp32"
    )


def check_room(model: GPTConfig, config: TrainConfig, on_cpu: bool) -> None:
    """Raises ValueError where a run needs more memory than is free, by a lower bound, before any of it is taken.

    Every process makes the weights in ordinary memory. On a CPU training takes place there as well, and the system
    would end a process that takes too much; a GPU says that its memory is full, and `rehearse` heeds it.
    """
    with torch.device("meta"):
        one = GPT(dataclasses.replace(model, n_layer=1))
    parameters = sum(p.numel() for p in one.parameters()) + (model.n_layer - 1) * sum(
        p.numel() for p in one.h.parameters()
    )
    training = on_cpu and config.max_iters > 0 and not (config.dry_run or config.find_batch_size)
    room, needed = free_memory(), parameters * (12 if training else 4)  # with gradients and optimizer, or weights alone
    if needed > room:
        raise ValueError(
            f"the model has {parameters:,} parameters, which take at least {needed / 1e9:,.1f} GB; "
            f"{room / 1e9:,.1f} GB of memory are free: choose a smaller n_layer, n_embd, n_inner or block_size"
        )
    tokens = config.batch_size * model.block_size
    needed += tokens * (4 * model.padded_vocab_size + 4 * model.n_layer * model.n_embd)  # logits, each block's input
    if training and needed > room:
        raise ValueError(
            f"batch_size={config.batch_size} sequences of {model.block_size} tokens take at least {needed / 1e9:,.1f} "
            f"GB; {room / 1e9:,.1f} GB of memory are free: choose a smaller batch_size or block_size"
        )


def rehearse(run) -> None:
    """Before the first step, a forward and backward pass that changes nothing: it compiles, and finds what fits.

    A micro-batch that does not fit is halved, on all processes alike, until it does; where compiling fails, the run
    goes on without. Where a single sequence is too much, one line says what to do.
    """
    while problem := attempt(run):
        gc.collect()  # the failed pass' tensors
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
        if problem == MEMORY:
            with user_errors():
                smaller = split(run.config)
            run.change_batches(smaller)
        else:
            run.say(f"warning: torch.compile failed, going on without it: {problem}")
            run.gpt._compiled_call_impl = None  # what nn.Module.compile() sets
            run.compiled = False


def attempt(run) -> str | None:
    """What goes wrong with a micro-batch on any process: MEMORY, or what the compiler says; None if nothing does."""
    problem = None
    # without communication, so that a process that fails leaves no other waiting; FSDP cannot do without
    sharded = run.accelerator.distributed_type == DistributedType.FSDP
    moments = []
    try:
        with nullcontext() if sharded else run.accelerator.no_sync(run.model):
            if run.state["step"] == 0:  # the optimizer's state, as large as AdamW's, comes with the first step
                moments = [torch.empty_like(p) for p in run.gpt.parameters() for _ in range(2)]
            run.model(*run.micro_batch(0)).backward()
    except Exception as error:  # whatever the compiler trips over, the model also runs without it
        problem = MEMORY if out_of_memory(error) else str(error).splitlines()[0]
        if problem != MEMORY and not run.compiled:
            raise
    del moments
    run.gpt.zero_grad()
    memory, other = run.peers.largest(problem == MEMORY, problem not in (None, MEMORY))
    return MEMORY if memory else problem or ("it failed on another process" if other else None)


def split(config: TrainConfig) -> TrainConfig:
    """The same step in smaller micro-batches: half as large, or where the size is odd, by its smallest divisor."""
    size = config.batch_size
    if size == 1:
        raise ValueError(
            "a single sequence does not fit into memory: take a smaller --block_size or model, "
            "--gradient_checkpointing=True, or more GPUs with accelerate_configs/fsdp2.yaml"
        )
    parts = next(n for n in range(2, size + 1) if size % n == 0)
    accumulation = config.gradient_accumulation_steps * parts
    return dataclasses.replace(config, batch_size=size // parts, gradient_accumulation_steps=accumulation)
