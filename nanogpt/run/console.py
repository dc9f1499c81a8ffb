"""Prints a run's settings and progress, and at the end the result and next commands."""

import dataclasses
import logging
import shlex
import time
from contextlib import suppress
from datetime import timedelta

import torch

from nanogpt import checkpoint
from nanogpt.config import TrainConfig
from nanogpt.data.files import plain, plural, waiting
from nanogpt.data.tokenizer import END, START
from nanogpt.run import metrics
from nanogpt.run.errors import visible
from nanogpt.run.resume import resume_command
from nanogpt.run.stop import Stop
from nanogpt.sample import sample_text
from nanogpt.train import Parts, State, logger, sample_start, tokens_per_step

RESULT = "result.json"
SAMPLE_TOKENS = 300  # of the sample at the end
EVERY = 5.0  # seconds between lines of progress


class Printer(logging.Handler):
    """Prints messages; ignores a closed stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        text = ("warning: " if record.levelno == logging.WARNING else "") + record.getMessage()
        with suppress(OSError):
            print(visible(text), flush=True)


def show_messages(shown: bool) -> None:
    """Prints what runs say from now on, or nothing."""
    if not logger.handlers:
        logger.addHandler(Printer())
        logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.disabled = not shown


def introduce(config: TrainConfig, parts: Parts, state: State) -> None:
    """Prints device, model, data, steps and output."""
    m, c, env = parts.gpt.config, config, parts.settings["environment"]
    train_tokens, a_step = len(parts.train_data), tokens_per_step(config, m)
    processes = f"{env['processes']} process{'es' if env['processes'] > 1 else ''}"
    compiled = "compiled" if parts.compiled else "not compiled"
    steps, amount = f"{c.max_iters:,} ", f"{c.max_iters * a_step / train_tokens:.2f} epochs"
    if c.train_minutes:
        steps, amount = "", f"for {c.train_minutes:g} minutes of training"
    resuming = f", resuming from step {state.step:,}" if state.step else ""
    trained = sum(p.numel() for p in parts.gpt.parameters() if p.requires_grad)
    adapters = f", {trained:,} of them in adapters, which are trained" if c.lora_rank else ""
    logger.info(
        f"device  {env['device']}, {processes} with {plural(env['threads'], 'thread')}, "
        f"{env['precision']}, {compiled}\n"
        f"model   {parts.gpt.get_num_params():,} parameters{adapters}: "
        f"{plural(m.n_layer, 'layer')}, {plural(m.n_head, 'head')}, {m.n_embd} channels; "
        f"{m.norm}, {m.position} positions, {m.mlp}\n"
        f"data    {c.data}: {train_tokens:,} tokens to train on, {len(parts.val_data):,} "
        f"to validate, vocabulary {m.vocab_size:,}\n"
        f"steps   {steps}of {a_step:,} tokens ({c.gradient_accumulation_steps} x "
        f"{c.batch_size} sequences of {m.block_size}), {amount}, optimizer {c.optimizer}\n"
        f"output  {parts.out_dir}{resuming}"
    )


class Progress:
    """Prints a line about the training every few seconds."""

    def __init__(self, config: TrainConfig, state: State):
        self.max_iters = 0 if config.train_minutes else config.max_iters
        self.restart(state)

    def restart(self, state: State) -> None:
        """Restarts the timer, so that an evaluation is not counted."""
        self.since, self.step = time.monotonic(), state.step

    def show(self, values: dict, state: State) -> None:
        """Prints a line of metrics if the last is some seconds ago."""
        seconds = time.monotonic() - self.since
        if seconds < EVERY:
            return
        text = (
            f"loss {values['train_loss']:.4f}" if "train_loss" in values else "no finite gradient"
        )
        text += f", {values['tokens_per_second']:,} tokens/s"
        if "mfu" in values:
            text += f", MFU {values['mfu']:.1%}"
        if self.max_iters:
            left = (self.max_iters - state.step) * seconds / (state.step - self.step)
            text += f", {timedelta(seconds=round(left))} left"
        logger.info(f"step {state.step:>6,}  {text}")
        self.restart(state)

    def sample(self, text: str) -> None:
        """Shows the first non-blank line of a sample; all lines of a conversation."""
        if text.startswith(START):
            text = " ".join(text.replace(START, "").replace(END, "").split())
        line = next((line.strip() for line in text.splitlines() if line.strip()), "(blank)")
        logger.info(f"{'sample':<13}{line:.100}")

    def waiting(self, what: str):
        """Context manager for slow, silent work: prints `what` after a while."""
        return waiting(what, logger.info)


def write_result(config: TrainConfig, parts: Parts, state: State, stop: Stop | None) -> None:
    """Writes the run's outcome to result.json; a failed write is only a warning."""
    changed = {}
    for current, recipe in zip((parts.gpt.config, config), parts.recipe, strict=True):
        for field in dataclasses.fields(current):
            value = getattr(current, field.name)
            if value != getattr(recipe, field.name, None):
                changed[field.name] = value
    if parts.recipe[0].vocab_size is None:
        changed.pop("vocab_size", None)  # the data's
    lines = metrics.read(parts.out_dir / metrics.METRICS)
    bits = [line.get("val_bpb") for line in lines if line["step"] == state.best_step]
    reasons = {0: "time limit", 1: "failed"}
    result = {
        "out_dir": str(parts.out_dir),
        "reason": reasons.get(stop.code, "interrupted") if stop else "finished",
        "message": stop.message if stop else None,
        "settings": changed,
        "val_loss": state.best_val_loss,
        "val_bpb": next(filter(None, bits), None),
        "best_step": state.best_step,
        "step": state.step,
        "tokens": state.tokens,
        "train_seconds": round(state.train_seconds, 3),
        "tokens_per_second": round(state.tokens / max(state.train_seconds, 1e-9)),
        "memory": max((line["memory"] for line in lines if "memory" in line), default=None),
        "skipped_steps": state.skipped_steps,
        "parameters": parts.gpt.get_num_params(),
        "version": parts.settings["environment"]["nanogpt"],
    }
    try:
        checkpoint.write_json(parts.out_dir / RESULT, plain(result))
    except OSError as error:
        logger.warning(f"{RESULT} could not be written: {error}")


def conclude(config: TrainConfig, parts: Parts, state: State) -> None:
    """Prints the result and a sample."""
    speed = f"{state.tokens / max(state.train_seconds, 1e-9):,.0f} tokens/s"
    logger.info(
        f"\n{state.step:,} steps in {state.train_seconds:.1f} s of training, {speed}; "
        f"best validation loss {state.best_val_loss:.4f} at step {state.best_step}\n"
    )
    try:
        logger.info(sample(config, parts, SAMPLE_TOKENS).strip("\n") + "\n")
    except (ValueError, OSError, torch.OutOfMemoryError) as error:  # the run is saved all the same
        logger.warning(f"no sample: {error}\n")


def suggest(config: TrainConfig, parts: Parts, state: State) -> None:
    """Prints the next commands."""
    out_dir = shlex.quote(str(parts.out_dir))
    first_line = parts.tokenizer.decode(parts.train_data.tokens[:20]).strip().partition("\n")[0]
    prompt = "".join(filter(str.isprintable, first_line)).strip("\ufffd -") or " "
    use = f"sample {out_dir} --prompt {shlex.quote(prompt)}"
    if "chat" in parts.train_data.meta:
        use = f"chat {out_dir}"
    longer = f"--max_iters={2 * state.step}"
    if config.train_minutes:
        longer = f"--train_minutes={2 * config.train_minutes:g}"
    again = resume_command(config, parts.peers.many, longer)
    logger.info(f"next:  nanogpt {use}\n       nanogpt eval {out_dir}\n       {again}")


def sample(config: TrainConfig, parts: Parts, tokens: int) -> str:
    """A text sampled from the run's best checkpoint, as loaded from disk."""
    found = checkpoint.find(parts.out_dir)
    device = "cpu" if parts.sharded else parts.device  # it may be too large for one device
    model = checkpoint.load_model(found, device, make_model=parts.make_model)
    return sample_text(model, parts.tokenizer, sample_start(parts), tokens, config.seed)
