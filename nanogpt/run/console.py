"""What a run prints: its settings at the start, its progress, and at the end the result and the next commands."""

import dataclasses
import json
import os
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from tqdm import tqdm

from nanogpt import checkpoint
from nanogpt.config import TrainConfig
from nanogpt.data.files import plain
from nanogpt.data.tokenizer import END, START
from nanogpt.hub.export import push
from nanogpt.ops.cpu import pack
from nanogpt.run import metrics, plot
from nanogpt.run.stop import Stop
from nanogpt.sample import write

RESULT = "result.json"
EVERY = 10.0  # seconds between lines of progress where there is no terminal
SAMPLE_TOKENS = 300  # of the sample at the end


def introduce(run) -> None:
    """Prints device, model, data, steps and output."""
    m, c, env = run.gpt.config, run.config, run.settings["environment"]
    epochs = c.max_iters * run.tokens_per_step / len(run.train_data.tokens)
    amount = f"{epochs:.2f} epochs" if not c.train_minutes else f"for {c.train_minutes:g} minutes of training"
    steps = "" if c.train_minutes else f"{c.max_iters:,} "
    many = f"{env['processes']} processes" if env["processes"] > 1 else "1 process"
    heads = f"{m.n_head} heads" + (f" ({m.kv_heads} for keys and values)" if m.kv_heads != m.n_head else "")
    run.say(
        f"device  {env['device']}, {many} with {env['threads']} threads, {env['precision']}, "
        f"{'compiled' if run.compiled else 'not compiled'}\n"
        f"model   {run.gpt.get_num_params():,} parameters: {m.n_layer} layers, {heads}, {m.n_embd} channels; "
        f"{m.norm}, {m.position} positions, {m.mlp}\n"
        f"data    {c.data}: {len(run.train_data.tokens):,} tokens to train on, {len(run.val_data.tokens):,} to "
        f"validate, vocabulary {m.vocab_size:,}\n"
        f"steps   {steps}of {run.tokens_per_step:,} tokens ({c.gradient_accumulation_steps} x "
        f"{c.batch_size} sequences of {m.block_size}), {amount}, optimizer {c.optimizer}\n"
        f"output  {run.out_dir}" + (f", resuming from step {run.start_step:,}" if run.start_step else "")
    )


def shared_batches(asked: TrainConfig, config: TrainConfig) -> str:
    """A remark where the processes share a step in other micro-batches than were asked for; else empty."""
    if asked == config:
        return ""
    same = (
        config.batch_size * config.gradient_accumulation_steps == asked.batch_size * asked.gradient_accumulation_steps
    )
    return (
        f"note: for several processes, now --batch_size={config.batch_size} --gradient_accumulation_steps="
        f"{config.gradient_accumulation_steps}: a step has {'the same' if same else 'more'} sequences"
    )


class Progress:
    """How far a run is: a bar on a terminal; anywhere else a line every ten seconds."""

    def __init__(self, run):
        self.run, shown = run, run.main_process and not run.quiet
        total = None if run.config.train_minutes else run.config.max_iters
        bar = {"total": total, "initial": run.state["step"], "unit": "step", "dynamic_ncols": True, "leave": False}
        self.bar = tqdm(**bar, disable=not (shown and sys.stderr.isatty()))
        self.in_lines = shown and self.bar.disable
        self.restart()

    def restart(self) -> None:
        """What follows is timed anew, without the evaluation before it."""
        self.since, self.step = time.monotonic(), self.run.state["step"]

    def update(self) -> None:
        """A step is done."""
        with suppress(OSError):  # the terminal may have been closed
            self.bar.update()
        if self.in_lines and time.monotonic() - self.since >= EVERY:
            self.run.say(self.line())
            self.restart()

    def line(self) -> str:
        """Step, loss since the last line of metrics, speed, time left."""
        run, state = self.run, self.run.state
        steps, seconds = state["step"] - self.step, time.monotonic() - self.since
        good = state["step"] - run.logged["step"] - int(run.tally.skipped)
        loss = f"loss {run.tally.loss.item() / good:.4f}" if good else "no finite gradient"
        left = (run.config.max_iters - state["step"]) * seconds / steps
        if run.config.train_minutes:
            left = 60 * run.config.train_minutes - state["train_seconds"] - (time.perf_counter() - run.clock.started)
        speed = f"{steps * run.tokens_per_step / seconds:,.0f} tokens/s"
        return f"step {state['step']:>6,}  {loss}, {speed}, {tqdm.format_interval(max(left, 0))} left"

    def show(self, values: dict) -> None:
        """Shows a line of metrics beside the bar."""
        loss = f"loss {values['train_loss']:.3f}" if "train_loss" in values else "no finite gradient"
        mfu = f", MFU {values['mfu']:.1%}" if "mfu" in values else ""
        self.bar.set_postfix_str(f"{loss}, {values['tokens_per_second']:,} tokens/s{mfu}", refresh=False)

    def close(self) -> None:
        with suppress(OSError):
            self.bar.close()


def first_line(text: str) -> str:
    """The first line of a sample that says something, below its evaluation; of a conversation all lines."""
    if text.startswith(START):
        text = " ".join(text.replace(START, "").replace(END, "").split())
    line = next((line.strip() for line in text.splitlines() if line.strip()), "(blank)")
    return f"{'sample':<13}{line:.100}"


def result(run, stop: Stop | None) -> dict:
    """How a run ended, for programs: what was set otherwise than in the recipe, what it reached, what it took."""
    state, lines, changed = run.state, metrics.read(run.out_dir / metrics.METRICS), {}
    for config, recipe in zip((run.gpt.config, run.config), run.recipe, strict=True):
        there = {field.name: getattr(recipe, field.name, None) for field in dataclasses.fields(config)}
        changed |= {name: value for name, value in vars(config).items() if value != there[name]}
    if run.recipe[0].vocab_size is None:
        changed.pop("vocab_size", None)  # the data's
    best = [line["val_bpb"] for line in lines if line["step"] == state["best_step"] and "val_bpb" in line]
    reasons = {0: "time limit", 1: "failed"}
    return {
        "out_dir": str(run.out_dir),
        "reason": reasons.get(stop.code, "interrupted") if stop else "finished",
        "message": stop.message if stop else None,
        "settings": changed,
        "val_loss": state["best_val_loss"],
        "val_bpb": best[-1] if best else None,
        "best_step": state["best_step"],
        "step": state["step"],
        "tokens": state["tokens"],
        "train_seconds": round(state["train_seconds"], 3),
        "tokens_per_second": round(state["tokens"] / max(state["train_seconds"], 1e-9)),
        "memory": max((line["memory"] for line in lines if "memory" in line), default=None),
        "skipped_steps": state["skipped_steps"],
        "parameters": run.gpt.get_num_params(),
        "version": run.settings["environment"]["nanogpt"],
    }


def write_result(run, stop: Stop | None) -> None:
    """Writes result.json; a disk that does not take it is a warning."""
    try:
        checkpoint.write_json(run.out_dir / RESULT, plain(result(run, stop)))
    except OSError as error:
        run.say(f"warning: {RESULT} could not be written: {error}")


def print_result(out_dir: Path) -> None:
    """Prints result.json as one line, on the main process; nothing where the run has not ended."""
    path = out_dir / RESULT
    if os.environ.get("RANK", "0") == "0" and path.is_file():
        print(json.dumps(checkpoint.read_json(path)), flush=True)


def conclude(run) -> None:
    """Prints the result, a sample and the next commands; pushes to the Hub if the settings ask for it."""
    state, config = run.state, run.config
    best = f"best validation loss {state['best_val_loss']:.4f} at step {state['best_step']}"
    speed = f"{state['tokens'] / max(state['train_seconds'], 1e-9):,.0f} tokens/s"
    run.say(f"\n{state['step']:,} steps in {state['train_seconds']:.1f} s of training, {speed}; {best}\n")
    if sys.stdout.isatty():
        run.say(plot.text(run.out_dir) + "\n")
    try:
        run.say(sample(run, SAMPLE_TOKENS) + "\n")
    except (ValueError, OSError, torch.OutOfMemoryError) as error:  # or another process changed the checkpoints
        run.say(f"warning: no sample: {error}\n")
    out_dir = shlex.quote(str(run.out_dir))
    if config.push_to_hub:
        try:
            push(run.out_dir, config.push_to_hub, say=run.say)
        except (ValueError, OSError) as error:  # the checkpoint is saved all the same
            run.say(f"warning: not pushed: {error}; later: nanogpt push {out_dir} {config.push_to_hub}")
    prompt = first_prompt(run.tokenizer.decode(run.train_data.tokens[:20]))
    use = f"sample {out_dir} --prompt{'=' if prompt[0] == '-' else ' '}{shlex.quote(prompt)}"
    if "chat" in run.train_data.meta:
        use = f"chat {out_dir}"
    longer = f"--max_iters={2 * state['step']}"
    if config.train_minutes:
        longer = f"--train_minutes={2 * config.train_minutes:g}"
    run.say(f"next:  nanogpt {use}\n       nanogpt eval {out_dir}\n       {resume_command(run, longer)}")


def first_prompt(text: str) -> str:
    """A prompt that the tokenizer knows and a terminal shows as it is: the beginning of the first line of the data."""
    line = text.strip().partition("\n")[0]
    return "".join(filter(str.isprintable, line)).strip("\ufffd ") or " "


def sample(run, tokens: int) -> str:
    """A text sampled from the run's best checkpoint, as loaded from disk."""
    found = checkpoint.find(run.out_dir, say=run.say)
    device = "cpu" if run.sharded else run.device  # a sharded one may be too large for one device
    model = pack(checkpoint.load_model(found, device, make_model=run.make_model))
    return write(model, run.tokenizer, run.train_data.beginning, tokens, run.config.seed)


def resume_command(run, *changes: str) -> str:
    """The command that resumes this run; `changes` are flags with their values that replace those given."""
    if any(word.partition("=")[0] == "--seeds" for word in sys.argv):
        changes = ("--seeds=1", f"--seed={run.config.seed}", f"--out_dir={run.out_dir}", *changes)
    changes = ("--resume=auto", *changes)
    replaced = {change.partition("=")[0] for change in changes}
    words, given = [], iter(sys.argv)
    for word in given:
        name, equals, _ = word.partition("=")
        if name not in replaced:
            words.append(word)
        elif not equals:
            next(given, None)  # its value
    same = " (as before)" if run.peers.many else ""
    return f"accelerate launch{same} {shlex.join([*words, *changes])}"
