"""Protects weights and run from non-finite gradients and from micro-batches that do not fit into memory."""

import dataclasses
import gc
from collections.abc import Callable
from pathlib import Path

import torch

from nanogpt.config import TrainConfig
from nanogpt.model import GPT, GPTConfig
from nanogpt.run import rundir
from nanogpt.run.agree import Peers
from nanogpt.run.device import free_memory
from nanogpt.run.errors import out_of_memory

MEMORY = "out of memory"
SCALER_STEPS = 16  # fp16: this many steps may overflow while the scaler halves its initial scale of 2^16 to 1


def contagious(loss: torch.Tensor) -> torch.Tensor:
    """Returns `loss`; if it is not finite, neither is its gradient, so all processes see it in the shared gradient."""
    return loss * torch.where(loss.isfinite(), 1.0, torch.nan)


def bad_steps_allowed(config: TrainConfig, scaler) -> int:
    """How many steps in a row may have a non-finite gradient before the run stops."""
    return config.max_bad_steps + (SCALER_STEPS if scaler is not None else 0)


def scale_of(scaler) -> dict:
    """What a checkpoint holds of fp16's gradient scaler: its scale, and how many steps in a row did not overflow."""
    if scaler is None:
        return {}
    state = scaler.state_dict()
    return {"loss_scale": state["scale"], "loss_scale_steps": state["_growth_tracker"]}


def restore_scale(scaler, state: dict) -> None:
    """Restores the scaler from what a checkpoint holds; without fp16, then or now, there is nothing to restore."""
    if scaler is not None and state["loss_scale"] is not None:
        saved = {"scale": state["loss_scale"], "_growth_tracker": state["loss_scale_steps"]}
        scaler.load_state_dict(scaler.state_dict() | saved)


class Tally:
    """Sums over the steps since the last line of metrics, on the device, so that no step waits for it."""

    def __init__(self, device: torch.device):
        self.loss, self.skipped, self.bad_in_a_row, self.good_norm = torch.zeros(4, device=device)

    def add(self, loss: torch.Tensor, grad_norm: torch.Tensor, not_finite: torch.Tensor) -> None:
        """Counts a step; it was skipped if its gradient was not finite (`not_finite` is 1.0)."""
        self.loss += torch.where(not_finite > 0, 0.0, loss)
        self.skipped += not_finite
        self.bad_in_a_row = (self.bad_in_a_row + 1) * not_finite
        self.good_norm = torch.where(not_finite > 0, self.good_norm, grad_norm)

    def reset(self) -> None:
        self.loss.zero_()
        self.skipped.zero_()


def diagnosis(tally: Tally, step: int, lr: float, config: TrainConfig) -> str:
    """The message for a run whose gradients are not finite."""
    saved = rundir.steps(Path(config.out_dir))
    again = "resume from the last checkpoint by --resume=auto" if saved else "no step was saved: start again"
    return (
        f"no finite gradient in the last {int(tally.bad_in_a_row)} steps up to step {step}, at learning rate {lr:.2e}; "
        f"the last finite gradient norm was {float(tally.good_norm):.3g}. None of these steps was applied. Look at "
        f"grad_norm and train_loss in {config.out_dir}/metrics.jsonl; {again} with a lower --learning_rate or "
        "--precision=fp32"
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
    room, needed = free_memory(), parameters * (12 if training else 4)  # with gradients and optimizer, or weights alone
    if needed > room:
        raise ValueError(
            f"the model has {parameters:,} parameters, which take at least {needed / 1e9:,.1f} GB; "
            f"{room / 1e9:,.1f} GB of memory are free: choose a smaller n_layer, n_embd, n_inner or block_size"
        )
    tokens, block_inputs = config.batch_size * model_config.block_size, model_config.n_layer * model_config.n_embd
    needed += 4 * tokens * (model_config.padded_vocab_size + block_inputs)  # logits, each block's input
    if training and needed > room:
        raise ValueError(
            f"batch_size={config.batch_size} sequences of {model_config.block_size} tokens take at least "
            f"{needed / 1e9:,.1f} GB; {room / 1e9:,.1f} GB of memory are free: choose a smaller batch_size "
            "or block_size"
        )


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


def release_memory(device: torch.device) -> None:
    """Frees the tensors of a failed attempt."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


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
    return dataclasses.replace(config, batch_size=size // parts, gradient_accumulation_steps=accumulation)
