"""Prints a run's settings and progress, and at the end the result and next commands."""

import logging
import os
import shlex
from contextlib import suppress
from datetime import timedelta
from functools import partial

import numpy as np

from nanogpt import checkpoint
from nanogpt.config import TrainConfig
from nanogpt.data.tokens import answers
from nanogpt.hub.load import load_model
from nanogpt.run.errors import plain, visible, waiting
from nanogpt.run.metrics import RESULT
from nanogpt.run.stop import Stop
from nanogpt.text.generate import default_prompt, sample_text
from nanogpt.train import Parts, State, done, logger, position, tokens_per_step

SAMPLE_TOKENS = 300  # of the sample at the end
EVERY = 5.0  # seconds of training between lines of progress


class Printer(logging.Handler):
    """Prints messages; ignores a closed stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        text = ("warning: " if record.levelno == logging.WARNING else "") + record.getMessage()
        with suppress(OSError):
            print(visible(text), flush=True)


def show_messages(quiet: bool) -> None:
    """From now on prints what runs say, `quiet` only warnings; on the main process only."""
    if not logger.handlers:
        logger.addHandler(Printer())
        logger.propagate = False
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.disabled = os.environ.get("RANK", "0") != "0"


def introduce(config: TrainConfig, parts: Parts, state: State) -> None:
    """Prints device, model, data, steps and output."""
    c, env = config, parts.settings["environment"]
    trained = sum(p.numel() for p in parts.gpt.parameters() if p.requires_grad)
    adapters = f", {trained:,} of them in adapters, which are trained" if c.lora_rank else ""
    train_tokens, a_step = parts.train_data.token_count, tokens_per_step(c, parts.gpt.config)
    amount = f"{c.max_iters:,}, {c.max_iters * a_step / train_tokens:.2f} epochs"
    if c.train_minutes:
        amount = f"for {c.train_minutes:g} minutes"
    hint = " (Ctrl-C saves)"
    if done(c, state):
        more = "--train_minutes" if c.train_minutes else "--max_iters"
        hint = f" (complete: a larger {more} continues it)" if state.step and c.max_iters else ""
    resuming = f", resuming from step {state.step:,}" if state.step else ""
    logger.info(
        f"device  {env['device']}, {env['precision']}, processes: {env['processes']}, "
        f"threads: {env['threads']}{', compiled' if parts.compiled else ''}\n"
        f"model   {parts.gpt.get_num_params():,} parameters{adapters}\n"
        f"data    {c.data}: {train_tokens:,} tokens to train on, {parts.val_data.token_count:,} "
        f"to validate, vocabulary {parts.gpt.config.vocab_size:,}\n"
        f"steps   {amount}, each of {a_step:,} tokens ({c.gradient_accumulation_steps} x "
        f"{c.batch_size} sequences of {parts.gpt.config.block_size})\n"
        f"output  {parts.out_dir}{resuming}{hint}"
    )


class Progress:
    """Prints a line about the training every few seconds, and a sample after evaluations."""

    def __init__(self, config: TrainConfig, state: State):
        self.max_iters = 0 if config.train_minutes else config.max_iters
        self.step, self.train_seconds = state.step, state.train_seconds  # at the last line
        self.waiting = partial(waiting, say=logger.info)

    def show(self, values: dict, state: State) -> None:
        """Prints a line of metrics if the last is some seconds of training ago."""
        seconds = state.train_seconds - self.train_seconds
        if seconds < EVERY:
            return
        loss, rate = values.get("train_loss", float("nan")), values["tokens_per_second"]
        text = f"step {state.step:>6,}  loss {loss:.4f}, {rate:,} tokens/s"
        if "mfu" in values:
            text += f", MFU {values['mfu']:.1%}"
        if self.max_iters:
            left = (self.max_iters - state.step) * seconds / (state.step - self.step)
            text += f", {timedelta(seconds=round(left))} left"
        logger.info(text)
        self.step, self.train_seconds = state.step, state.train_seconds

    def sample(self, config: TrainConfig, parts: Parts, state: State) -> None:
        """Samples from the model, writes the text to samples.jsonl, and prints its beginning."""
        start = sample_start(parts)
        text = sample_text(parts.gpt, parts.tokenizer, start, config.sample_tokens, config.seed)
        parts.metrics.sample(text, **position(state))
        logger.info(f"{'sample':<13}{' '.join(text.split()) or '(blank)':.100}")


def sample_start(parts: Parts) -> list[int]:
    """The tokens that samples continue: the first conversation up to its answer, or a prompt."""
    chat = parts.train_data.meta.get("chat")
    if chat is None:
        return default_prompt(parts.tokenizer)[1]
    block = np.array(parts.train_data.tokens[: chat["block"]])  # begins with a conversation
    return block[: answers(block[None], chat["answer"], chat["end"]).argmax()].tolist()


def write_result(parts: Parts, state: State, stop: Stop | None) -> None:
    """Writes the run's outcome to result.json; a failed write is only a warning."""
    reasons = {0: "time limit", 1: "failed"}
    result = {
        "out_dir": str(parts.out_dir),
        "reason": reasons.get(stop.code, "interrupted") if stop else "finished",
        "message": stop.reason if stop else None,
        "val_loss": state.best_val_loss,
        "best_step": state.best_step,
        **position(state),
        "tokens_per_second": round(state.tokens / max(state.train_seconds, 1e-9)),
        "skipped_steps": state.skipped_steps,
        "parameters": parts.gpt.get_num_params(),
        "version": parts.settings["environment"]["nanogpt"],
    }
    try:
        checkpoint.write_json(parts.out_dir / RESULT, plain(result))
    except OSError as error:
        logger.warning(f"{RESULT} could not be written: {error}")


def conclude(config: TrainConfig, parts: Parts, state: State) -> None:
    """Prints the result, a sample and the next commands."""
    outcome = "no validation loss is finite"
    if state.best_val_loss is not None:
        outcome = f"best validation loss {state.best_val_loss:.4f} at step {state.best_step}"
    logger.info(f"\n{state.step:,} steps in {state.train_seconds:.1f} s of training; {outcome}\n")
    try:  # the best checkpoint, as it is on the disk
        device = "cpu" if parts.sharded else parts.device  # it may be too large for one device
        model, _ = load_model(parts.out_dir, device, make_model=parts.make_model)
        text = sample_text(model, parts.tokenizer, sample_start(parts), SAMPLE_TOKENS, config.seed)
        logger.info(text.strip("\n") + "\n")
    except (ValueError, OSError, RuntimeError, MemoryError) as error:  # the run is saved anyway
        logger.warning(f"no sample: {error}\n")
    run = as_run(parts)
    use = "chat" if "chat" in parts.train_data.meta else "sample"
    logger.info(f"next:  nanogpt {use} {run}\n       nanogpt eval {run}")


def as_run(parts: Parts) -> str:
    """The run as an argument of commands, which need the file of a class of the user's own."""
    run = shlex.quote(str(parts.out_dir))
    file = parts.settings.get("class", {}).get("file", "")
    return f"{run} --trust_recipe {shlex.quote(file)}" if file.endswith(".py") else run
