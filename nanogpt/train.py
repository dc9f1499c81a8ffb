"""Training: one loop for a CPU, a GPU or many of them. Read `train`, then `step`.

A recipe calls `main(MODEL, TRAIN, prepare=…)`. What a step computes depends only on the settings
and the step number: its batches, its dropout and its learning rate are pure functions of them (with
`train_minutes` the rate follows the clock). A run that is interrupted and resumed is therefore
identical to one that never stopped (on a GPU with `deterministic`). The number of processes changes
only how sums are rounded (and, on GPUs, which masks compiled dropout draws):
`gradient_accumulation_steps` counts the micro-batches of all of them.
`recipes/minimal.py` is the same training without the safeguards; `Parts`, at the end, is what a run
consists of.
"""

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator

from nanogpt import checkpoint, optim
from nanogpt.checkpoint import State
from nanogpt.config import TrainConfig
from nanogpt.data.tokens import Batch, TokenDataset, hash64, to_device
from nanogpt.evaluate import evaluate
from nanogpt.model import GPT, GPTConfig
from nanogpt.optim import lr_at, set_learning_rate, update

logger = logging.getLogger("nanogpt")  # nanogpt/run/console.py prints it on the main process


def main(
    model_config: GPTConfig,
    config: TrainConfig,
    prepare: Callable[[Path], object] | None = None,
    note: str = "",
    argv: list[str] | None = None,
    *,
    make_model: Callable[[GPTConfig], GPT] = GPT,
    make_optimizers: Callable[..., list[torch.optim.Optimizer]] = optim.make_optimizers,
) -> list[Path]:
    """Runs a recipe: its settings, overridden by the command line `argv` (default: `sys.argv[1:]`).

    `prepare(directory)` makes the recipe's own data; the main process calls it if there is none.
    `note` is printed at the start. `make_model` is `GPT` or a subclass with an idea of your own,
    which is recorded in config.json: --trust_recipe loads it. `make_optimizers` has the signature
    of `nanogpt.optim.make_optimizers`. Returns the out directories, none after a dry run. A user's
    mistake is one line on stderr and SystemExit(2). A run that stops early raises SystemExit, too:
    0 at the time limit, 1 after an error, 128 + N after signal N.
    """
    from nanogpt.run.errors import refuse_windows

    refuse_windows()  # before modules are imported that need another system
    from nanogpt.run.main import main  # parses the command line, builds `Parts`, calls `train`

    own = {"make_model": make_model, "make_optimizers": make_optimizers}
    return main(model_config, config, prepare, note, argv, **own)


def train(config: TrainConfig, parts: "Parts", state: State) -> None:
    """The loop: evaluate and save if due, take a step, log; until max_iters, or until `Stop`."""
    parts.gpt.train()
    parts.timed_since = time.perf_counter()
    while True:
        if evaluation_is_due(config, state):
            evaluate_and_save(config, parts, state)
        if done(config, state):
            return
        step(config, parts, state)
        if log_is_due(config, state.step):
            log(config, parts, state)
        # raises Stop: a signal, the time limit, failing saves, bad gradients
        parts.interrupts.check_step(config, parts, state)


def step(config: TrainConfig, parts: "Parts", state: State) -> None:
    """One optimizer step: this process's share of the micro-batches, the gradient, the update."""
    accelerator = parts.accelerator
    lr = lr_at(state.step, config, state.train_seconds)
    set_learning_rate(parts.optimizers, lr)

    micro_batches = config.gradient_accumulation_steps // accelerator.num_processes
    accelerator.gradient_accumulation_steps = micro_batches
    mean_count = mean_targets(config, parts, state)
    step_loss = torch.zeros((), device=parts.device)
    for i in range(micro_batches):
        index = i * accelerator.num_processes + accelerator.process_index
        x, y = micro_batch(config, parts, state, index)  # (B, T) each
        with accelerator.accumulate(parts.model):  # DDP averages gradients after the last one
            with parts.autocast():
                loss = nan_if_not_finite(parts.model(x, y))
            if mean_count is not None:  # each target of the step counts the same
                loss = loss * (y != -1).sum() / mean_count
            accelerator.backward(loss)
        step_loss += loss.detach() / micro_batches

    grad_norm = accelerator.clip_grad_norm_(parts.model.parameters(), config.grad_clip or torch.inf)
    grad_norm = optim.full_tensor(grad_norm)
    not_finite = (~grad_norm.isfinite()).float()  # stays on the device: nothing waits for it
    update(parts.optimizers, not_finite)  # nothing changes if the gradient is not finite
    if accelerator.scaler is not None:  # fp16: clip_grad_norm_ has unscaled the gradients
        accelerator.scaler.update()

    parts.tally.add(step_loss, grad_norm, not_finite, lr)
    state.step += 1
    state.tokens += tokens_per_step(config, parts.gpt.config)


def micro_batch(config: TrainConfig, parts: "Parts", state: State, index: int) -> Batch:
    """Micro-batch `index` of the current step, (B, T) twice, on the device; seeds its dropout."""
    number = state.step * config.gradient_accumulation_steps + index
    x, y = parts.train_data.batch(config.seed, number * config.batch_size, config.batch_size)
    if state.step < config.short_block_iters:  # the same tokens, with less context
        x, y = (tokens.view(-1, config.short_block_size) for tokens in (x, y))
    seed = hash64(np.array([config.seed], np.uint64)) ^ np.uint64(number)
    set_seed(int(hash64(seed)[0]), parts.device)
    return to_device((x, y), parts.device)


def set_seed(seed: int, device: torch.device) -> None:
    """Seeds the CPU and `device`; torch.manual_seed takes 0.2 ms to seed all kinds of devices."""
    torch.default_generator.manual_seed(seed)
    if device.type in ("cuda", "mps", "xpu"):
        getattr(torch, device.type).manual_seed(seed)


def mean_targets(config: TrainConfig, parts: "Parts", state: State) -> float | None:
    """The mean number of targets in the step's micro-batches; None if all have the same."""
    n = config.gradient_accumulation_steps
    if n == 1 or "chat" not in parts.train_data.meta:
        return None
    first = state.step * n * config.batch_size
    _, y = parts.train_data.batch(config.seed, first, n * config.batch_size)
    return (y != -1).sum().item() / n


def nan_if_not_finite(loss: torch.Tensor) -> torch.Tensor:
    """The loss, or NaN if it is not finite: the mean gradient is then NaN on all processes."""
    return loss * torch.where(loss.isfinite(), 1.0, torch.nan)


def log(config: TrainConfig, parts: "Parts", state: State) -> None:
    """Writes a line of metrics for the steps since the last. Waits for the device."""
    stop_clock(config, parts, state)
    tally, accelerator = parts.tally, parts.accelerator
    steps, skipped = state.step - tally.step, int(tally.skipped)
    state.skipped_steps += skipped
    seconds = state.train_seconds - tally.train_seconds
    rate = round(steps * tokens_per_step(config, parts.gpt.config) / seconds)
    values = {"tokens_per_second": rate}
    if parts.peak_flops:
        T = config.short_block_size if state.step <= config.short_block_iters else None
        flops = rate * parts.gpt.flops_per_token(T)
        values["mfu"] = flops / parts.peak_flops / accelerator.num_processes
    if steps > skipped:
        values["train_loss"] = accelerator.reduce(tally.loss, "mean").item() / (steps - skipped)
    if tally.grad_norm.isfinite():
        values["grad_norm"] = tally.grad_norm.item()
    values["lr"] = tally.lr
    values["memory"] = memory_in_use(parts.device)
    parts.metrics.log(**position(state), **values, skipped_steps=state.skipped_steps)
    parts.progress.show(values, state)
    tally.restart(state)
    parts.timed_since = time.perf_counter()


def evaluate_and_save(config: TrainConfig, parts: "Parts", state: State) -> None:
    """Evaluates, saves the step with its result if the settings ask for it, and writes a sample.

    The last evaluation covers the whole split. If the evaluation fails, the step is still saved.
    """
    stop_clock(config, parts, state)
    # the model to fine-tune is saved, too: training may make it worse
    worth_saving = config.max_iters > 0 and (state.step > 0 or config.init_from != "scratch")
    try:
        result = validate(config, parts, state)
    except Exception:
        # or Stop, on a signal; one process alone cannot gather shards
        if worth_saving and not parts.sharded:
            save(config, parts, state)
        raise
    state.evaluated_step, loss = state.step, result["val_loss"]
    best_before = state.best_val_loss, state.best_step
    # a diverged model is never the best: the best one before it must not be pruned
    is_best = math.isfinite(loss) and (state.best_val_loss is None or loss < state.best_val_loss)
    if is_best and (worth_saving or config.max_iters == 0):
        state.best_val_loss, state.best_step = loss, state.step
    parts.metrics.log(**position(state), **result)
    logger.info(
        f"step {state.step:>6,}  validation loss {loss:.4f} "
        f"({result['val_bpb']:.3f} bits per byte) after {state.train_seconds:.1f} s of training"
    )
    if worth_saving and (is_best or done(config, state) or config.always_save_checkpoint):
        save(config, parts, state)
        if is_best and parts.interrupts.save_failed():
            state.best_val_loss, state.best_step = best_before  # only a saved step can be the best
    if config.sample_tokens and not parts.sharded and math.isfinite(loss):
        parts.progress.sample(config, parts, state)
    parts.timed_since = time.perf_counter()


def validate(config: TrainConfig, parts: "Parts", state: State) -> dict:
    """Evaluates together with the other processes; returns what `evaluate` does."""
    with parts.progress.waiting("evaluating"), parts.autocast():
        return evaluate(
            parts.gpt,
            parts.val_data,
            config.batch_size,
            parts.accelerator,
            eval_iters=0 if done(config, state) else config.eval_iters,
            seed=config.seed + state.step,
            check=parts.interrupts.check,
        )


def save(config: TrainConfig, parts: "Parts", state: State) -> None:
    """Saves a checkpoint of the current step; a failure is a warning.

    Must be called on all processes. The main one writes, and the others wait for it when they next
    share something.
    """
    accelerator = parts.accelerator
    main_process = accelerator.is_main_process
    with parts.interrupts.saving(state.step):
        # all processes gather shards; only the main one keeps them
        weights, moments = checkpoint.collect(parts.gpt, parts.optimizers, receive=main_process)
        if not main_process:
            return
        # with the steps skipped since the last line of metrics
        stored = replace(state, skipped_steps=state.skipped_steps + int(parts.tally.skipped))
        if accelerator.scaler is not None:  # of fp16
            scale = accelerator.scaler.state_dict()
            stored.loss_scale = scale["scale"]
            stored.loss_scale_steps = scale["_growth_tracker"]
        parts.metrics.sync()
        keep = config.keep_checkpoints
        checkpoint.save(
            parts.out_dir, stored, weights, moments, parts.settings, parts.tokenizer, keep
        )


# When


def done(config: TrainConfig, state: State) -> bool:
    """Whether the run has taken all its steps, or its minutes; the same on all processes.

    The minutes advance only in `stop_clock`: at a line of metrics, or an evaluation.
    """
    if config.train_minutes and config.max_iters:
        return state.train_seconds >= 60 * config.train_minutes
    return state.step >= config.max_iters


def evaluation_is_due(config: TrainConfig, state: State) -> bool:
    if state.evaluated_step == state.step and config.max_iters > 0:  # resumed after an evaluation
        return False
    return done(config, state) or state.step % config.eval_interval == 0


def log_is_due(config: TrainConfig, step: int) -> bool:
    return step % config.log_interval == 0 or step == config.max_iters


# What the loop works with


class Tally:
    """Sums over the steps since the last line of metrics, on the device: no step waits for it."""

    def __init__(self, device: torch.device, state: State):
        self.loss, self.skipped, self.bad_in_a_row = torch.zeros(3, device=device)
        self.grad_norm = torch.zeros((), device=device)  # of the last step
        self.lr = 0.0  # of the last step
        self.step, self.train_seconds = state.step, state.train_seconds  # at the last line

    def add(
        self, loss: torch.Tensor, grad_norm: torch.Tensor, not_finite: torch.Tensor, lr: float
    ) -> None:
        """Counts a step; it was skipped if its gradient was not finite (`not_finite` is 1.0)."""
        self.loss += torch.where(not_finite > 0, 0.0, loss)
        self.skipped += not_finite
        self.bad_in_a_row = (self.bad_in_a_row + 1) * not_finite
        self.grad_norm, self.lr = grad_norm, lr

    def restart(self, state: State) -> None:
        self.loss.zero_()
        self.skipped.zero_()
        self.step, self.train_seconds = state.step, state.train_seconds


@dataclass
class Parts:
    """The parts of a run, built once by `prepare` in nanogpt/run/prepare.py."""

    accelerator: Accelerator
    device: torch.device
    gpt: GPT
    model: torch.nn.Module  # gpt as Accelerate wraps it, which training calls
    optimizers: list[torch.optim.Optimizer]
    train_data: TokenDataset
    val_data: TokenDataset
    tokenizer: Any
    out_dir: Path
    settings: dict  # the content of config.json
    # objects of nanogpt/run/, which the core does not import
    metrics: Any  # metrics.Metrics: metrics.jsonl and trackers
    progress: Any  # console.Progress
    peers: Any  # agree.Peers: decisions that all processes share
    interrupts: Any  # stop.Interrupts: reasons to stop, failing saves
    # what the loop measures
    tally: Tally
    timed_since: float | None = None  # when the clock was started; none: it is stopped
    sharded: bool = False  # by FSDP2
    compiled: bool = False
    peak_flops: float | None = None  # of the device, if known
    make_model: Callable[[GPTConfig], GPT] = GPT

    def autocast(self):
        """Mixed precision around a sharded model; Accelerate has wrapped any other model in it."""
        return self.accelerator.autocast() if self.sharded else nullcontext()


def position(state: State) -> dict:
    """How far the run is: the same fields in every line of metrics."""
    seconds = round(state.train_seconds, 3)
    return {"step": state.step, "tokens": state.tokens, "train_seconds": seconds}


def tokens_per_step(config: TrainConfig, model_config: GPTConfig) -> int:
    return config.gradient_accumulation_steps * config.batch_size * model_config.block_size


def stop_clock(config: TrainConfig, parts: Parts, state: State) -> None:
    """Adds the time of the steps to the state: evaluating and saving do not count as training.

    With train_minutes all processes use the slowest one's time.
    """
    synchronize(parts.device)
    if parts.timed_since is not None:
        state.train_seconds += time.perf_counter() - parts.timed_since
    parts.timed_since = None
    if config.train_minutes:
        state.train_seconds = parts.peers.all_max(round(1e6 * state.train_seconds))[0] / 1e6


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished its work."""
    if device.type == "mps":
        torch.mps.synchronize()  # in torch 2.6 torch.accelerator's does not wait
    elif device.type in ("cuda", "xpu"):
        torch.accelerator.synchronize()


def memory_in_use(device: torch.device) -> int:
    """Bytes in use: the peak of tensors on CUDA; on MPS and the CPU, what is allocated now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return psutil.Process().memory_info().rss


if __name__ == "__main__":
    raise SystemExit("error: this is not a recipe; try python recipes/shakespeare.py")
