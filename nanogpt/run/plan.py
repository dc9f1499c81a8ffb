"""Estimates a run before it starts: parameters, memory, arithmetic, tokens, time.

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
from functools import partial

import torch

from nanogpt.config import Actions, TrainConfig
from nanogpt.data.files import plain, plural
from nanogpt.model import GPT, GPTConfig
from nanogpt.ops import ops_for
from nanogpt.optim import local, make_optimizers
from nanogpt.run.agree import Peers
from nanogpt.run.device import free_memory, gpu_gib, wants_cpu
from nanogpt.run.guard import rehearse
from nanogpt.train import Parts, State, memory_in_use, step, synchronize, tokens_per_step

# the tokens per parameter that make best use of a given amount of compute (Hoffmann et al. 2022)
CHINCHILLA = 20
# memory of glibc's heap and oneDNN on a CPU, in addition to the tensors (LOG.md: 4 to 20 %)
CPU_OVERHEAD, CPU_SCRATCH = 0.12, 30e6


def parameters(config: GPTConfig) -> dict[str, int]:
    """Number of parameters by part of the model, without the padding of the vocabulary."""
    with torch.device("meta"):
        model = GPT(config)
    matrices = [(name, p.numel()) for name, p in model.named_parameters() if p.ndim == 2]
    embedding = config.vocab_size * config.n_embd
    parts = {
        "token embedding": embedding,
        "position embedding": 0 if model.wpe is None else model.wpe.weight.numel(),
        "attention": sum(n for name, n in matrices if ".attn." in name),
        "MLP": sum(n for name, n in matrices if ".mlp." in name),
        "output projection": 0 if model.lm_head is None else embedding,
    }
    parts["norms and biases"] = model.get_num_params() - sum(parts.values())
    return parts


def memory(
    config: GPTConfig,
    train: TrainConfig,
    precision: str,
    processes: int = 1,
    device: str | None = None,
    shards: int = 1,
) -> dict[str, int]:
    """Peak memory of a step in one process, in bytes by purpose; on a CPU with the allocator's.

    It is simulated, for a model of any size, on `device`: by default cuda if the run would use it,
    else cpu. The step is not compiled; a compiled one takes less. Each of `shards` processes that
    FSDP shards the model over holds its part of the weights, their gradients and optimizer state.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    muon_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if device is None:
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
    parts = {"weights": peak["PARAM"], "gradients": peak["GRAD"], "optimizer": peak["OPT"]}
    activations = peak["Total"] - sum(parts.values())
    parts = {name: math.ceil(size / shards) for name, size in parts.items()}
    parts["activations"] = activations
    if device == "cpu" and (wants_cpu(train.device) or not gpu_gib()):
        parts["allocator"] = int(CPU_OVERHEAD * sum(parts.values()) + CPU_SCRATCH)
    return parts


def available(device: str = "auto") -> int:
    """Memory that a run could use now, in bytes: the GPU's if it would use one."""
    gib = gpu_gib(device)
    if gib and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return int(gib * 2**30) or free_memory()


def estimate(
    config: GPTConfig,
    train: TrainConfig,
    precision: str,
    train_tokens: int,
    processes: int = 1,
    taken: int = 0,
    shards: int = 1,
) -> dict:
    """The plan without times. `taken` bytes of the run's memory are in use already.

    With train_minutes the number of steps is None: it depends on the time of a step.
    """
    with torch.device("meta"):
        model = GPT(config)
    needed = memory(config, train, precision, processes, shards=shards)
    room = available(train.device) + taken
    if "allocator" in needed:  # on a CPU; this process has loaded what a run loads
        needed["Python and torch"] = max(memory_in_use(torch.device("cpu")) - taken, 0)
        room += needed["Python and torch"]
    return {
        "parameters": model.get_num_params(),
        "parameters_by_part": parameters(config),
        "memory": sum(needed.values()),
        "memory_by_purpose": needed,
        "free_memory": room,
        "fits": sum(needed.values()) < room,
        "tokens_per_step": tokens_per_step(train, config),
        "steps": None if train.train_minutes and train.max_iters else train.max_iters,
        "train_tokens": train_tokens,
        "flops_per_token": model.flops_per_token(),
    }


def describe(plan: dict) -> str:
    """A plan as text."""
    parts = ", ".join(f"{name} {n:,}" for name, n in plan["parameters_by_part"].items() if n)
    purposes = dict(plan["memory_by_purpose"])
    # at the peak of a step its gradients replace its activations one by one
    purposes["activations and gradients"] = purposes.pop("activations") + purposes.pop("gradients")
    memory = ", ".join(f"{name} {n / 1e6:,.1f}" for name, n in purposes.items() if n)
    verdict = "fits in" if plan["fits"] else "DOES NOT FIT in"
    rows = [
        ("parameters", f"{plan['parameters']:,}: {parts}"),
        ("memory", f"{plan['memory'] / 1e6:,.1f} MB at the peak of an uncompiled step: {memory}"),
        ("", f"{verdict} the {plan['free_memory'] / 1e6:,.1f} MB of free memory"),
    ]
    if plan["steps"] is not None:
        tokens = plan["steps"] * plan["tokens_per_step"]
        each = tokens / plan["parameters"]
        rows += [
            ("tokens", f"{tokens:,}: {plan['steps']:,} steps of {plan['tokens_per_step']:,}"),
            ("", f"{tokens / plan['train_tokens']:.2f} epochs of {plan['train_tokens']:,}"),
            ("", f"{each:.1f} per parameter (compute-optimal: about {CHINCHILLA})"),
            ("arithmetic", f"{tokens * plan['flops_per_token'] / 1e12:,.2f} TFLOP"),
        ]
    if "seconds_per_step" in plan:
        training, evaluating = timedelta_of(plan["train_seconds"]), plan["evaluation_seconds"]
        rows.append(("time", f"{training}: {1e3 * plan['seconds_per_step']:,.1f} ms a step"))
        rows.append(("", f"plus about {timedelta_of(evaluating)} for evaluations, and saving"))
    if "cost" in plan:
        rows.append(("cost", f"{plan['cost']:,.2f} dollars"))
    return "\n".join(f"{name:<14}{text}" for name, text in rows)


def show(config: TrainConfig, parts: Parts, state: State, actions: Actions) -> None:
    """Prints the plan of a run; times a few of its steps, whose results are thrown away.

    actions.price adds the cost; actions.json prints one line of JSON.
    """
    env, print_line = parts.settings["environment"], parts.accelerator.print
    tensors = [*parts.gpt.parameters()]
    for optimizer in parts.optimizers:
        for values in optimizer.state.values():
            tensors += [value for value in values.values() if torch.is_tensor(value)]
    taken = sum(local(tensor).numel() * tensor.element_size() for tensor in tensors)
    tokens, processes = len(parts.train_data.tokens), env["processes"]
    shards = processes if parts.sharded else 1
    plan = estimate(parts.gpt.config, config, env["precision"], tokens, processes, taken, shards)
    # a step has to fit on all processes, which take it together
    plan["fits"] = not parts.peers.largest(not plan["fits"])[0]
    if plan["fits"]:
        seconds = seconds_per_step(config, parts, state)
        plan["seconds_per_step"] = seconds
        if plan["steps"] is None:
            plan["steps"] = max(1, round(60 * config.train_minutes / seconds))
        plan["train_seconds"] = seconds * plan["steps"]
        evaluated = evaluated_tokens(config, parts, plan["steps"])
        # a forward pass is a third of a step
        plan["evaluation_seconds"] = evaluated / plan["tokens_per_step"] * seconds / 3
        if actions.price:
            total = plan["train_seconds"] + plan["evaluation_seconds"]
            plan["cost"] = actions.price * total / 3600
    if actions.json:
        plan["tokens"] = None if plan["steps"] is None else plan["steps"] * plan["tokens_per_step"]
        print_line(json.dumps(plain(plan)))
    else:
        threads = f"{processes} x {plural(env['threads'], 'thread')}"
        print_line(f"{'device':<14}{env['device']}, {threads}, {env['precision']}")
        print_line(describe(plan))


def seconds_per_step(config: TrainConfig, parts: Parts, state: State) -> float:
    """Seconds of a step of whole windows: times one and two micro-batches, and extrapolates."""
    config = dataclasses.replace(rehearse(config, parts, state), short_block_iters=0)
    processes = parts.accelerator.num_processes
    share = config.gradient_accumulation_steps // processes
    seconds = []
    for n in range(1, min(share, 2) + 1):
        timed = dataclasses.replace(config, gradient_accumulation_steps=n * processes)
        parts.accelerator.gradient_accumulation_steps = n
        take_step = partial(timed_step, timed, parts, state)
        seconds.append(median_seconds(take_step, parts.peers))
    return seconds[0] + (share - 1) * max(seconds[-1] - seconds[0], 0)


def timed_step(config: TrainConfig, parts: Parts, state: State) -> None:
    step(config, parts, state)
    synchronize(parts.device)


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


def evaluated_tokens(config: TrainConfig, parts: Parts, steps: int) -> int:
    """The tokens that a run of `steps` evaluates; the last evaluation is of the whole split."""
    whole = len(parts.val_data.tokens)
    quick = config.eval_iters * config.batch_size * parts.gpt.config.block_size
    return -(-steps // config.eval_interval) * (quick or whole) + whole


def timedelta_of(seconds: float) -> timedelta:
    return timedelta(seconds=round(seconds))
