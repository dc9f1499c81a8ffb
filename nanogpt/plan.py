"""What a run will do, before it does it: parameters, memory, arithmetic, tokens.

    accelerate launch recipes/shakespeare.py --dry_run
    nanogpt plan recipes/shakespeare.py --n_layer=8

Memory is not guessed from a formula: a step is carried out on torch's fake tensors, which have shapes but no contents,
while its allocations are counted.
"""

import dataclasses
import gc
import statistics
import time
from itertools import islice

import torch

from nanogpt import checkpoint
from nanogpt.config import TrainConfig
from nanogpt.evaluate import forward_batch_size, total_loss
from nanogpt.model import GPT, GPTConfig
from nanogpt.optim import make_optimizers
from nanogpt.runtime import guard
from nanogpt.runtime.device import free_memory, gpu_gib, wants_cpu

CHINCHILLA = 20  # tokens per parameter at which a given amount of compute is best spent (Hoffmann et al. 2022)
# what glibc's heap and oneDNN take on top of the tensors on a CPU (LOG.md: 4 to 20 % in eight configurations)
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
        parts[name] = sum(p.numel() for n, p in model.named_parameters() if pattern in n and p.ndim == 2)
    if model.lm_head is not None:
        parts["output projection"] = unpadded
    parts["norms and biases"] = model.get_num_params() - sum(parts.values())
    return parts


def memory(config: GPTConfig, train: TrainConfig, precision: str, processes: int = 1) -> dict[str, int]:
    """Bytes that a step needs at its peak in one process, by what they hold; for a CPU with the allocator's share.

    Raises nothing for a model of any size: no memory is allocated.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with FakeTensorMode():
        model = GPT(config)
        optimizers = make_optimizers(model, train, torch.bfloat16 if precision == "bf16" else torch.float32)
        idx = torch.zeros(train.batch_size, config.block_size, dtype=torch.long)
        tracker = MemTracker()
        tracker.track_external(model, *optimizers, idx)
        with tracker:
            for _ in range(2):  # the first step makes the optimizers' state
                for _ in range(min(2, train.gradient_accumulation_steps // processes)):
                    with torch.autocast("cpu", dtype, enabled=dtype is not None):
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
    if wants_cpu(train.device) or not gpu_gib():
        parts["allocator"] = int(CPU_OVERHEAD * sum(parts.values()) + CPU_SCRATCH)
    return parts


def available(device: str = "auto") -> int:
    """Bytes of memory that a run could take now: of the GPU where it would use one, else of this machine."""
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
        moments += sum(each * p.numel() for group in optimizer.param_groups for p in group["params"])
    return 4 * (sum(p.numel() for p in model.parameters()) + moments)


def describe(
    config: GPTConfig, train: TrainConfig, precision: str, train_tokens: int, processes: int = 1, taken: int = 0
) -> str:
    """The plan as text; `train_tokens` are those of the data, `taken` the bytes that the run has already."""
    with torch.device("meta"):
        model = GPT(config)
    total = model.get_num_params()
    parts = ", ".join(f"{name} {n:,}" for name, n in parameters(config).items() if n)
    lines = [f"parameters    {total:,}: {parts}"]

    needed = memory(config, train, precision, processes)
    room = available(train.device) + taken
    verdict = "fits into" if sum(needed.values()) < room else "DOES NOT FIT into"
    holding = ", ".join(f"{name} {show_bytes(n)}" for name, n in needed.items() if n)
    lines.append(f"memory        {show_bytes(sum(needed.values()))} at the peak of a step: {holding}")
    lines.append(f"              {verdict} the {show_bytes(room)} that are free")

    step_tokens = train.gradient_accumulation_steps * train.batch_size * config.block_size
    tokens = train.max_iters * step_tokens
    lines.append(
        f"tokens        {step_tokens:,} a step, {tokens:,} in {train.max_iters:,} steps: {tokens / train_tokens:.2f} "
        f"epochs of {train_tokens:,}"
    )
    ratio = tokens / total
    lines.append(f"              {ratio:.1f} tokens per parameter ({CHINCHILLA} make best use of compute)")
    flops = model.flops_per_token()
    lines.append(f"arithmetic    {flops / 1e6:,.1f} MFLOP a token, {flops * tokens / 1e15:,.3f} PFLOP in all")
    lines.append(f"checkpoint    {show_bytes(checkpoint_bytes(config, train))}")
    return "\n".join(lines)


def show(run) -> None:
    """Prints the plan of a run (see `train.Run`), with times measured by a few of its steps, which are thrown away."""
    config, processes, env = run.config, run.accelerator.num_processes, run.settings["environment"]
    precision, tokens = env["precision"], len(run.train_data.tokens)
    say(run, f"device        {env['device']}, {processes} x {env['threads']} threads, {precision}, data {config.data}")
    plan = describe(run.gpt.config, config, precision, tokens, processes, taken(run))
    say(run, plan)
    if "DOES NOT FIT" in plan:
        return
    run.begin()
    step = time_steps(run)
    training = step * config.max_iters
    each = evaluations(config, len(run.val_data.tokens), run.val_data.block_size, processes)
    seconds = {size: time_evaluation(run, size) for size, _ in set(each)}
    evaluating = sum(batches * seconds[size] for size, batches in each)
    say(
        run,
        f"time          {show_seconds(training + evaluating)}: {config.max_iters:,} steps of {1e3 * step:,.1f} ms "
        f"({show_seconds(training)}), {len(each)} evaluations ({show_seconds(evaluating)}); saving comes on top",
    )


def taken(run) -> int:
    """Bytes of what a step needs that a run has already."""
    return checkpoint.size(run.gpt, run.optimizers)


def say(run, text: str) -> None:
    if run.accelerator.is_main_process:
        print(text, flush=True)


def time_steps(run, seconds: float = 3.0) -> float:
    """Seconds that a step of `run` takes, the median of as many as fit into `seconds`, after two to warm up."""
    times = []
    while len(times) < 5 or (sum(times) < seconds and len(times) < 200):
        start = time.perf_counter()
        run.step()
        run.wait_for_device()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def evaluations(config: TrainConfig, val_tokens: int, block_size: int, processes: int) -> list[tuple[int, int]]:
    """(sequences in a batch, batches of a process) of every evaluation of a run, the last one over the whole split."""
    size = forward_batch_size(config.batch_size, block_size)
    windows = -(-(val_tokens - 1) // block_size)
    whole = size, -(-windows // (size * processes))
    quick = (config.batch_size, -(-config.eval_iters // processes)) if config.eval_iters else whole
    return [quick] * -(-config.max_iters // config.eval_interval) + [whole]


def time_evaluation(run, batch_size: int, batches: int = 6) -> float:
    """Seconds that a batch of an evaluation takes."""
    several = list(islice(run.val_data.whole_split(batch_size), batches))
    total_loss(run.gpt, iter(several[:1]), run.device)
    start = time.perf_counter()
    total_loss(run.gpt, iter(several), run.device)
    return (time.perf_counter() - start) / len(several)


def find_batch_size(run) -> None:
    """Prints the speed of ever larger micro-batches, until one does not fit into memory.

    On a GPU each is tried; on a CPU, where a process that takes too much is ended by the system, one whose plan needs
    more than was free at the start is not.
    """
    config, precision = run.config, run.settings["environment"]["precision"]
    room = available(config.device) + taken(run)
    run.config = dataclasses.replace(config, batch_size=1)
    run.begin()  # carries out a step of that size
    fastest, largest = (0.0, 0), 0
    say(run, f"{'batch_size':>10} {'memory':>10} {'tokens/s':>10}")
    for size in (2**n for n in range(20)):
        run.config = dataclasses.replace(config, batch_size=size)
        needed = sum(memory(run.gpt.config, run.config, precision, run.accelerator.num_processes).values())
        too_large = run.device.type == "cpu" and needed >= room
        if run.peers.largest(too_large)[0] or guard.attempt(run) == guard.MEMORY:
            say(run, f"{size:>10} {show_bytes(needed):>10}   does not fit")
            break
        gc.collect()
        sequences = size * config.gradient_accumulation_steps
        speed = sequences * run.gpt.config.block_size / time_steps(run, seconds=0.5)
        say(run, f"{size:>10} {show_bytes(needed):>10} {speed:>10,.0f}")
        fastest, largest = max(fastest, (speed, size)), size
        if size * run.gpt.config.block_size > len(run.train_data.tokens):
            break
    say(run, f"largest that fits: --batch_size={largest}; most tokens per second: --batch_size={fastest[1]}")


def show_seconds(seconds: float) -> str:
    """Time in the units that suit it."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    if minutes < 100:
        return f"{minutes:.1f} min"
    return f"{minutes / 60:,.1f} h"


def show_bytes(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, least in (("GB", 1e9), ("MB", 1e6)):
        if count >= least:
            return f"{count / least:,.1f} {unit}"
    return f"{count / 1e3:,.0f} kB"
