"""What a run will take: parameters, memory, arithmetic, tokens, time.

    accelerate launch recipes/shakespeare.py --dry_run
    nanogpt plan recipes/shakespeare.py --n_layer=8

Memory is not estimated by a formula: a step runs on torch's fake tensors, which have shapes but no data, while its
allocations are counted.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from itertools import islice

import torch

from nanogpt.config import Actions, TrainConfig
from nanogpt.data.files import plain
from nanogpt.data.tokens import TokenDataset
from nanogpt.evaluate import forward_batch_size, total_loss
from nanogpt.model import GPT, GPTConfig
from nanogpt.ops import ops_for
from nanogpt.optim import make_optimizers
from nanogpt.run.device import free_memory, gpu_gib, wants_cpu
from nanogpt.run.guard import rehearse
from nanogpt.train import Parts, State, memory_in_use, step, synchronize

CHINCHILLA = 20  # tokens per parameter that make best use of a given amount of compute (Hoffmann et al. 2022)
# memory of glibc's heap and oneDNN on a CPU, in addition to the tensors (LOG.md: 4 to 20 % in eight configurations)
CPU_OVERHEAD, CPU_SCRATCH = 0.12, 30e6


def parameters(config: GPTConfig) -> dict[str, int]:
    """Number of parameters by part of the model, without the padding of the vocabulary."""
    with torch.device("meta"):
        model = GPT(config)
    unpadded = config.vocab_size * config.n_embd
    parts = {"token embedding": unpadded}
    if model.wpe is not None:
        parts["position embedding"] = model.wpe.weight.numel()
    for name, pattern in (("attention", ".attn."), ("MLP", ".mlp.")):
        parts[name] = sum(
            p.numel() for n, p in model.named_parameters() if pattern in n and p.ndim == 2
        )
    if model.lm_head is not None:
        parts["output projection"] = unpadded
    parts["norms and biases"] = model.get_num_params() - sum(parts.values())
    return parts


def simulated_device(device: str) -> str:
    """Where a simulated step runs: cuda if the run would use it, else cpu; also instead of a Mac's GPU."""
    return "cuda" if torch.cuda.is_available() and gpu_gib(device) else "cpu"


def memory(
    config: GPTConfig,
    train: TrainConfig,
    precision: str,
    processes: int = 1,
    device: str | None = None,
) -> dict[str, int]:
    """Peak memory of a step in one process, in bytes by purpose; on a CPU with the allocator's overhead.

    `device` is by default `simulated_device`. Raises nothing for a model of any size: no memory is allocated. The step
    is not compiled; on CUDA, where a run compiles it, it takes less.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    device = device or simulated_device(train.device)
    with FakeTensorMode(), torch.device(device):
        model = GPT(
            config, ops=ops_for(torch.device(device), config, train.batch_size * config.block_size)
        )
        optimizers = make_optimizers(
            model, train, torch.bfloat16 if precision == "bf16" else torch.float32
        )
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
        peak = {
            kind.name: size  # type: ignore[attr-defined]
            for kind, size in next(iter(tracker.get_tracker_snapshot("peak").values())).items()
            if kind != "Total"
        }
    parts = {"weights": peak["PARAM"], "gradients": peak["GRAD"], "optimizer": peak["OPT"]}
    parts["activations"] = sum(peak.values()) - sum(parts.values())
    if device == "cpu" and (wants_cpu(train.device) or not gpu_gib()):
        parts["allocator"] = int(CPU_OVERHEAD * sum(parts.values()) + CPU_SCRATCH)
    return parts


def available(device: str = "auto") -> int:
    """Memory that a run could use now, in bytes: of the GPU if it would use one, else of this machine."""
    if gib := gpu_gib(device):
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else int(gib * 2**30)
    return free_memory()


def checkpoint_bytes(config: GPTConfig, train: TrainConfig) -> int:
    """Size of a checkpoint's two large files: weights and optimizer state in fp32."""
    with torch.device("meta"):
        model = GPT(config)
        optimizers = make_optimizers(model, train)
    moments = 0
    for optimizer in optimizers:
        each = 2 if isinstance(optimizer, torch.optim.AdamW) else 1
        moments += sum(
            each * p.numel() for group in optimizer.param_groups for p in group["params"]
        )
    return 4 * (sum(p.numel() for p in model.parameters()) + moments)


def estimate(
    config: GPTConfig,
    train: TrainConfig,
    precision: str,
    train_tokens: int,
    processes: int = 1,
    taken: int = 0,
) -> dict:
    """The plan without times. `train_tokens` counts the training data; `taken` is memory that the run already holds.

    With train_minutes the number of steps is None: it depends on the time of a step.
    """
    with torch.device("meta"):
        model = GPT(config)
    needed = memory(config, train, precision, processes)
    room, minutes = available(train.device) + taken, train.train_minutes if train.max_iters else 0
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
        "on_cuda": simulated_device(train.device) == "cuda",
        "tokens_per_step": train.gradient_accumulation_steps * train.batch_size * config.block_size,
        "train_minutes": minutes,
        "steps": None if minutes else train.max_iters,
        "train_tokens": train_tokens,
        "flops_per_token": model.flops_per_token(),
        "checkpoint_bytes": checkpoint_bytes(config, train),
    }


def describe(plan: dict) -> str:
    """An `estimate` as text."""
    total, steps, minutes = plan["parameters"], plan["steps"], plan["train_minutes"]
    parts = ", ".join(f"{name} {n:,}" for name, n in plan["parameters_by_part"].items() if n)
    lines = [f"parameters    {total:,}: {parts}"]
    holding = ", ".join(
        f"{name} {show_bytes(n)}" for name, n in plan["memory_by_purpose"].items() if n
    )
    lines.append(f"memory        {show_bytes(plan['memory'])} at the peak of a step: {holding}")
    if plan["on_cuda"]:
        lines.append(
            "              without torch.compile, which takes less; the CUDA context comes on top"
        )
    verdict = "fits into" if plan["fits"] else "DOES NOT FIT into"
    lines.append(f"              {verdict} the {show_bytes(plan['free_memory'])} that are free")
    a_step, flops = f"tokens        {plan['tokens_per_step']:,} a step, ", plan["flops_per_token"]
    arithmetic = f"arithmetic    {flops / 1e6:,.1f} MFLOP a token"
    if steps is None:
        lines += [f"{a_step}for {minutes:g} minutes", arithmetic]
    else:
        tokens = steps * plan["tokens_per_step"]
        amount = f"{tokens:,} in {steps:,} steps"
        amount = f"about {amount}, which {minutes:g} minutes allow" if minutes else amount
        lines.append(
            f"{a_step}{amount}: {tokens / plan['train_tokens']:.2f} epochs of {plan['train_tokens']:,}"
        )
        lines.append(
            f"              {tokens / total:.1f} tokens per parameter ({CHINCHILLA} make best use of compute)"
        )
        lines.append(f"{arithmetic}, {flops * tokens / 1e15:,.3f} PFLOP in all")
    lines.append(f"checkpoint    {show_bytes(plan['checkpoint_bytes'])}")
    return "\n".join(lines)


def show(config: TrainConfig, parts: Parts, state: State, actions: Actions) -> None:
    """Prints what a run will take, with times measured by a few of its steps, which are thrown away.

    With actions.price also its cost; with actions.json all in one line.
    """
    env, print_line = parts.settings["environment"], parts.accelerator.print
    precision, processes = env["precision"], env["processes"]
    say = (lambda text: None) if actions.json else print_line
    say(
        f"device        {env['device']}, {processes} x {env['threads']} threads, {precision}, data {config.data}"
    )
    train_tokens, val_data = len(parts.train_data.tokens), parts.val_data
    taken = bytes_taken(parts.gpt, parts.optimizers)
    plan = estimate(parts.gpt.config, config, precision, train_tokens, processes, taken)
    by_time = plan["fits"] and plan["train_minutes"]
    if not by_time:  # else the steps have to be timed first
        say(describe(plan))
    if plan["fits"]:
        plan["seconds_per_step"] = seconds = seconds_per_step(config, parts, state)
        if by_time:
            plan["steps"] = max(1, round(60 * plan["train_minutes"] / seconds))
            config = dataclasses.replace(config, max_iters=plan["steps"])
            say(describe(plan))
        training = seconds * config.max_iters
        each = evaluations(config, len(val_data.tokens), val_data.block_size, processes)
        with parts.autocast():
            a_batch = {size: time_evaluation(parts, val_data, size) for size, _ in set(each)}
        evaluating = sum(batches * a_batch[size] for size, batches in each)
        say(
            f"time          {show_seconds(training + evaluating)}: {config.max_iters:,} steps of {1e3 * seconds:,.1f} "
            f"ms ({show_seconds(training)}), {len(each)} evaluations ({show_seconds(evaluating)}); saving comes on top"
        )
        plan |= {"train_seconds": training, "evaluation_seconds": evaluating}
        if actions.price:
            plan["cost"] = actions.price * (training + evaluating) / 3600
            say(f"cost          {plan['cost']:,.2f} dollars, at {actions.price:g} dollars an hour")
    if actions.json:
        plan["tokens"] = None if plan["steps"] is None else plan["steps"] * plan["tokens_per_step"]
        print_line(json.dumps(plain(plan)))


def bytes_taken(gpt: GPT, optimizers: list[torch.optim.Optimizer]) -> int:
    """Bytes of the weights and of the optimizers' state so far."""
    tensors = list(gpt.parameters())
    tensors += [
        value
        for optimizer in optimizers
        for values in optimizer.state.values()
        for value in values.values()
    ]
    return sum(
        tensor.numel() * tensor.element_size() for tensor in tensors if torch.is_tensor(tensor)
    )


def seconds_per_step(config: TrainConfig, parts: Parts, state: State) -> float:
    """Seconds of a step of whole windows. Times one and two micro-batches and extrapolates if there are more."""
    config = rehearse(config, parts, state)
    processes = parts.accelerator.num_processes
    share = config.gradient_accumulation_steps // processes
    seconds = []
    for n in range(1, 3) if share > 2 else [share]:
        timed = dataclasses.replace(
            config, gradient_accumulation_steps=n * processes, short_block_iters=0
        )
        parts.accelerator.gradient_accumulation_steps = n
        seconds.append(median_seconds(lambda timed=timed: timed_step(timed, parts, state)))
    return seconds[0] + (share - 1) * max(seconds[1] - seconds[0], 0) if share > 2 else seconds[0]


def timed_step(config: TrainConfig, parts: Parts, state: State) -> None:
    step(config, parts, state)
    synchronize(parts.device)


def median_seconds(step: Callable[[], None], at_most: float = 3.0) -> float:
    """Seconds that `step()` takes: the median of as many calls as fit into `at_most` seconds, after two to warm up.

    These are three calls at least, unless a step takes so long that the start makes no difference to it.
    """
    times: list[float] = []
    while sum(times) < 4 * at_most and (
        len(times) < 5 or (sum(times) < at_most and len(times) < 200)
    ):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:] or times[-1:])


def evaluations(
    config: TrainConfig, val_tokens: int, block_size: int, processes: int
) -> list[tuple[int, int]]:
    """(sequences in a batch, batches of a process) of every evaluation of a run, the last one over the whole split."""
    size = forward_batch_size(config.batch_size, block_size)
    windows = -(-(val_tokens - 1) // block_size)
    whole = size, -(-windows // (size * processes))
    quick = (config.batch_size, -(-config.eval_iters // processes)) if config.eval_iters else whole
    return [quick] * -(-config.max_iters // config.eval_interval) + [whole]


def time_evaluation(parts: Parts, data: TokenDataset, batch_size: int, batches: int = 6) -> float:
    """Seconds that a batch of an evaluation takes."""
    several = list(islice(data.whole_split(batch_size), batches))
    total_loss(parts.gpt, iter(several[:1]), parts.device)
    start = time.perf_counter()
    total_loss(parts.gpt, iter(several), parts.device)
    return (time.perf_counter() - start) / len(several)


def show_seconds(seconds: float) -> str:
    """Formats a duration."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    if minutes < 100:
        return f"{minutes:.1f} min"
    return f"{minutes / 60:,.1f} h"


def show_bytes(count: float) -> str:
    """Formats a number of bytes."""
    for unit, least in (("GB", 1e9), ("MB", 1e6)):
        if count >= least:
            return f"{count / least:,.1f} {unit}"
    return f"{count / 1e3:,.0f} kB"
