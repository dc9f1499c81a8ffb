"""Estimates a run before it starts: parameters, memory, tokens, time.

    python recipes/shakespeare.py --dry_run
    nanogpt plan recipes/shakespeare.py --n_layer=8

Memory is not estimated by a formula: a step runs on torch's fake tensors, which have shapes but no
data, while its allocations are counted.
"""

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from datetime import timedelta

import torch

from nanogpt.config import TrainConfig
from nanogpt.data.files import plain, plural
from nanogpt.model import GPT, GPTConfig
from nanogpt.ops import ops_for
from nanogpt.optim import local, make_optimizers
from nanogpt.run.agree import Peers
from nanogpt.run.device import free_memory, gpu_gib
from nanogpt.run.guard import rehearse
from nanogpt.train import Parts, State, step, synchronize, tokens_per_step

# memory of glibc's heap and oneDNN on a CPU, in addition to the tensors (LOG.md: 4 to 20 %)
CPU_OVERHEAD, CPU_SCRATCH = 0.12, 30e6


def memory(
    config: GPTConfig, train: TrainConfig, precision: str, processes: int = 1, shards: int = 1
) -> dict[str, int]:
    """Peak memory of a step in one process, in bytes by purpose; on a CPU with the allocator's.

    It is simulated, for a model of any size. The step is not compiled; a compiled one takes less.
    Each of `shards` processes that FSDP shards the model over holds its part of it.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    muon_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    device = "cuda" if torch.cuda.is_available() and gpu_gib(train.device) else "cpu"
    with FakeTensorMode(), torch.device(device):
        tokens = train.batch_size * config.block_size
        model = GPT(config, ops=ops_for(torch.device(device), config, tokens))
        optimizers = make_optimizers(model, train, muon_dtype)
        idx = torch.zeros(train.batch_size, config.block_size, dtype=torch.long)
        tracker = MemTracker()
        tracker.track_external(model, *optimizers, idx)
        with tracker:
            for _ in range(2):  # the first step makes the optimizers' state
                for _ in range(min(2, train.gradient_accumulation_steps // processes)):
                    with torch.autocast(device, dtype, enabled=dtype is not None):
                        loss = model(idx, idx)
                    loss.backward()
                    tracker.reset_mod_stats()  # it keeps figures of each module, for one pass
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
        snapshot = next(iter(tracker.get_tracker_snapshot("peak").values()))
        peak = {getattr(kind, "name", kind): size for kind, size in snapshot.items()}
    lasting = peak["PARAM"] + peak["GRAD"] + peak["OPT"]
    parts = {"model and optimizer": math.ceil(lasting / shards)}
    parts["activations"] = peak["Total"] - lasting
    if not gpu_gib(train.device):
        parts["allocator"] = int(CPU_OVERHEAD * sum(parts.values()) + CPU_SCRATCH)
    return parts


def available(device: str = "auto") -> int:
    """Memory that a run could use now, in bytes: the GPU's if it would use one."""
    gib = gpu_gib(device)
    if gib and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return int(gib * 2**30) or free_memory()


def show(config: TrainConfig, parts: Parts, state: State, as_json: bool) -> None:
    """Prints the plan of a run; times a few of its steps, whose results are thrown away."""
    gpt, environment = parts.gpt, parts.settings["environment"]
    processes = environment["processes"]
    shards = processes if parts.sharded else 1
    needed = memory(gpt.config, config, environment["precision"], processes, shards)
    taken = sum(local(p).numel() * p.element_size() for p in gpt.parameters())  # by this run
    plan = {
        "parameters": gpt.get_num_params(),
        "memory": sum(needed.values()),
        "memory_by_purpose": needed,
        "free_memory": available(config.device) + taken,
        "tokens_per_step": tokens_per_step(config, gpt.config),
        "train_tokens": len(parts.train_data),
    }
    # a step has to fit on all processes, which take it together
    plan["fits"] = not parts.peers.largest(plan["memory"] >= plan["free_memory"])[0]
    by_time = config.train_minutes > 0 and config.max_iters > 0
    steps = None if by_time else config.max_iters
    if plan["fits"]:
        seconds = seconds_per_step(config, parts, state)
        if by_time:
            steps = max(1, round(60 * config.train_minutes / seconds))
        plan["seconds_per_step"] = seconds
        plan["train_seconds"] = seconds * steps
    plan["steps"] = steps
    plan["tokens"] = None if steps is None else steps * plan["tokens_per_step"]
    parts.accelerator.print(json.dumps(plain(plan)) if as_json else describe(plan, environment))


def describe(plan: dict, environment: dict) -> str:
    """A plan as text."""
    threads = f"{environment['processes']} x {plural(environment['threads'], 'thread')}"
    memory = ", ".join(f"{name} {n / 1e6:,.1f}" for name, n in plan["memory_by_purpose"].items())
    verdict = "fits in" if plan["fits"] else "DOES NOT FIT in"
    rows = [
        ("device", f"{environment['device']}, {threads}, {environment['precision']}"),
        ("parameters", f"{plan['parameters']:,}"),
        ("memory", f"{plan['memory'] / 1e6:,.1f} MB at the peak of an uncompiled step: {memory}"),
        ("", f"{verdict} the {plan['free_memory'] / 1e6:,.1f} MB of free memory"),
    ]
    if plan["tokens"] is not None:
        epochs = plan["tokens"] / plan["train_tokens"]
        each = plan["tokens"] / plan["parameters"]
        rows += [
            (
                "tokens",
                f"{plan['tokens']:,}: {plan['steps']:,} steps of {plan['tokens_per_step']:,}",
            ),
            ("", f"{epochs:.2f} epochs of {plan['train_tokens']:,}, {each:.1f} per parameter"),
        ]
    if "train_seconds" in plan:
        training = timedelta(seconds=round(plan["train_seconds"]))
        milliseconds = 1e3 * plan["seconds_per_step"]
        rows.append(("time", f"{training}: {milliseconds:,.1f} ms a step, without evaluations"))
    return "\n".join(f"{name:<14}{text}" for name, text in rows)


def seconds_per_step(config: TrainConfig, parts: Parts, state: State) -> float:
    """Seconds of a step of whole windows: times one and two micro-batches, and extrapolates."""
    config = dataclasses.replace(rehearse(config, parts, state), short_block_iters=0)
    processes = parts.accelerator.num_processes
    share = config.gradient_accumulation_steps // processes
    seconds = []
    for n in range(1, min(share, 2) + 1):
        timed = dataclasses.replace(config, gradient_accumulation_steps=n * processes)
        parts.accelerator.gradient_accumulation_steps = n

        def take_step(timed=timed) -> None:
            step(timed, parts, state)
            synchronize(parts.device)

        seconds.append(median_seconds(take_step, parts.peers))
    return seconds[0] + (share - 1) * max(seconds[-1] - seconds[0], 0)


def median_seconds(step: Callable[[], None], peers: Peers, at_most: float = 3.0) -> float:
    """Median of the seconds that `step()` takes, in `at_most` seconds after two calls to warm up.

    It is called three times at least, unless it takes so long that a warm-up makes no difference.
    All processes call it equally often, for a step waits for all of them.
    """
    times: list[float] = []
    enough = False
    while not enough:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
        limit = 4 * at_most if len(times) < 5 else at_most
        enough = bool(peers.largest(sum(times) >= limit or len(times) == 200)[0])
    return statistics.median(times[2:] or times[-1:])
