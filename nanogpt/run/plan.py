"""Measures a run before it starts: parameters, tokens, memory, time.

    python recipes/shakespeare.py --dry_run
    nanogpt plan recipes/shakespeare.py --n_layer=8

It takes a few steps, whose results are thrown away.
"""

import json
import statistics
import time
from dataclasses import replace
from datetime import timedelta

from nanogpt.config import TrainConfig
from nanogpt.run.guard import rehearse
from nanogpt.train import Parts, State, memory_in_use, step, synchronize, tokens_per_step

STEPS = 4  # that are timed, after one to warm up


def show(config: TrainConfig, parts: Parts, state: State, as_json: bool) -> None:
    """Prints the plan of a run."""
    seconds = seconds_per_step(config, parts, state)
    steps = config.max_iters
    if config.train_minutes and steps:
        steps = max(1, round(60 * config.train_minutes / seconds))
    a_step = tokens_per_step(config, parts.gpt.config)
    parameters, train_tokens = parts.gpt.get_num_params(), parts.train_data.token_count
    plan = {
        "parameters": parameters,
        "tokens_per_step": a_step,
        "steps": steps,
        "tokens": steps * a_step,
        "epochs": steps * a_step / train_tokens,
        "tokens_per_parameter": steps * a_step / parameters,
        "memory": memory_in_use(parts.device),  # in bytes
        "seconds_per_step": seconds,
        "train_seconds": steps * seconds,
    }
    text = (
        f"parameters  {parameters:,}\n"
        f"a step      {a_step:,} tokens in {seconds:.3f} s: {a_step / seconds:,.0f} tokens/s\n"
        f"the run     {steps:,} steps, {plan['tokens']:,} tokens: {plan['epochs']:.2f} epochs, "
        f"{plan['tokens_per_parameter']:.1f} tokens for each parameter\n"
        f"memory      {plan['memory'] / 1e9:.2f} GB in each process\n"
        f"time        {timedelta(seconds=round(plan['train_seconds']))}, without evaluations"
    )
    parts.accelerator.print(json.dumps(plan) if as_json else text)


def seconds_per_step(config: TrainConfig, parts: Parts, state: State) -> float:
    """The median seconds of a step of whole windows; times two of its micro-batches at most."""
    config = rehearse(config, parts, state)
    processes = parts.accelerator.num_processes
    share = config.gradient_accumulation_steps // processes
    timed = min(share, 2)
    config = replace(config, gradient_accumulation_steps=timed * processes, short_block_iters=0)
    seconds = []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        step(config, parts, state)
        synchronize(parts.device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]) * share / timed
