"""What a run prints: its settings at the start, its progress, and at the end the result and the next commands."""

import shlex
import sys

import torch
from accelerate.utils import DistributedType
from tqdm import tqdm

from nanogpt import checkpoint
from nanogpt.config import TrainConfig
from nanogpt.cpu import pack
from nanogpt.generate import write
from nanogpt.hub.export import push
from nanogpt.view import plot


def introduce(run) -> None:
    """Prints device, model, data, steps and output."""
    m, c, env = run.gpt.config, run.config, run.settings["environment"]
    epochs = c.max_iters * run.tokens_per_step / len(run.train_data.tokens)
    many = f"{env['processes']} processes" if env["processes"] > 1 else "1 process"
    heads = f"{m.n_head} heads" + (f" ({m.kv_heads} for keys and values)" if m.kv_heads != m.n_head else "")
    run.say(
        f"device  {env['device']}, {many} with {env['threads']} threads, {env['precision']}, "
        f"{'compiled' if run.compiled else 'not compiled'}\n"
        f"model   {run.gpt.get_num_params():,} parameters: {m.n_layer} layers, {heads}, {m.n_embd} channels; "
        f"{m.norm}, {m.position} positions, {m.mlp}\n"
        f"data    {c.data}: {len(run.train_data.tokens):,} tokens to train on, {len(run.val_data.tokens):,} to "
        f"validate, vocabulary {m.vocab_size:,}\n"
        f"steps   {c.max_iters:,} of {run.tokens_per_step:,} tokens ({c.gradient_accumulation_steps} x "
        f"{c.batch_size} sequences of {m.block_size}), {epochs:.2f} epochs, optimizer {c.optimizer}\n"
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


def progress_bar(run) -> tqdm:
    """A progress bar, shown on a terminal only."""
    shown = run.main_process and sys.stderr.isatty() and not run.quiet
    bar = {"total": run.config.max_iters, "initial": run.state["step"], "unit": "step", "dynamic_ncols": True}
    return tqdm(**bar, leave=False, disable=not shown)


def show_progress(bar: tqdm, values: dict) -> None:
    """Shows a line of metrics beside the bar."""
    loss = f"loss {values['train_loss']:.3f}" if "train_loss" in values else "no finite gradient"
    mfu = f", MFU {values['mfu']:.1%}" if "mfu" in values else ""
    bar.set_postfix_str(f"{loss}, {values['tokens_per_second']:,} tokens/s{mfu}", refresh=False)


def conclude(run) -> None:
    """Prints the result, a sample and the next commands; pushes to the Hub if the settings ask for it."""
    state, config = run.state, run.config
    best = f"best validation loss {state['best_val_loss']:.4f} at step {state['best_step']}"
    speed = f"{state['tokens'] / max(state['train_seconds'], 1e-9):,.0f} tokens/s"
    run.say(f"\n{state['step']:,} steps in {state['train_seconds']:.1f} s of training, {speed}; {best}\n")
    if sys.stdout.isatty():
        run.say(plot.text(run.out_dir) + "\n")
    try:
        run.say(sample(run) + "\n")
    except (ValueError, OSError, torch.OutOfMemoryError) as error:  # or another process changed the checkpoints
        run.say(f"warning: no sample: {error}\n")
    out_dir = shlex.quote(str(run.out_dir))
    if config.push_to_hub:
        try:
            push(run.out_dir, config.push_to_hub, say=run.say)
        except (ValueError, OSError) as error:  # the checkpoint is saved all the same
            run.say(f"warning: not pushed: {error}; later: nanogpt push {out_dir} {config.push_to_hub}")
    # a prompt that the tokenizer knows: the beginning of the data's first line
    prompt = run.tokenizer.decode(run.train_data.tokens[:20]).partition("\n")[0] or " "
    longer = resume_command(run, f"--max_iters={2 * state['step']}")
    run.say(
        f"next:  nanogpt sample {out_dir} --prompt {shlex.quote(prompt)}\n"
        f"       nanogpt eval {out_dir}\n"
        f"       {longer}"
    )


def sample(run, tokens: int = 300) -> str:
    """A text sampled from the run's best checkpoint, as loaded from disk."""
    found = checkpoint.find(run.out_dir, say=run.say)
    sharded = run.accelerator.distributed_type == DistributedType.FSDP  # then it may be too large for one device
    model = pack(checkpoint.load_model(found, "cpu" if sharded else run.device, make_model=run.make_model))
    return "".join(write(model, run.tokenizer, run.train_data.tokens[:1], tokens, run.config.seed))


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
