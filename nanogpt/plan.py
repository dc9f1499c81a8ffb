"""What a run will do, before it does it: parameters, memory, arithmetic, tokens.

    accelerate launch recipes/shakespeare.py --dry_run
    nanogpt plan recipes/shakespeare.py --n_layer=8

Memory is not guessed from a formula: a step is carried out on torch's fake tensors, which have shapes but no contents,
while its allocations are counted.
"""

import dataclasses

import psutil
import torch

from nanogpt import launch
from nanogpt.config import TrainConfig
from nanogpt.model import GPT, GPTConfig
from nanogpt.optim import make_optimizers

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
            kind.name: size
            for kind, size in next(iter(tracker.get_tracker_snapshot("peak").values())).items()
            if kind != "Total"
        }
    parts = {"weights": peak["PARAM"], "gradients": peak["GRAD"], "optimizer": peak["OPT"]}
    parts["activations"] = sum(peak.values()) - sum(parts.values())
    if launch.wants_cpu(train.device) or not launch.gpu_gib():
        parts["allocator"] = int(CPU_OVERHEAD * sum(parts.values()) + CPU_SCRATCH)
    return parts


def available(device: str = "auto") -> int:
    """Bytes of memory that a run could take now: of the GPU where it would use one, else of this machine."""
    if gib := launch.gpu_gib(device):
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else int(gib * 2**30)
    return psutil.virtual_memory().available


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


def describe(config: GPTConfig, train: TrainConfig, precision: str, train_tokens: int, processes: int = 1) -> str:
    """The plan as text; `train_tokens` are those of the data."""
    with torch.device("meta"):
        model = GPT(config)
    parts, total = parameters(config), model.get_num_params()
    lines = [f"parameters    {total:,}: " + ", ".join(f"{name} {n:,}" for name, n in parts.items() if n)]

    needed = memory(config, train, precision, processes)
    room = available(train.device)
    verdict = "fits into" if sum(needed.values()) < room else "DOES NOT FIT into"
    parts = ", ".join(f"{name} {size(n)}" for name, n in needed.items() if n)
    lines.append(f"memory        {size(sum(needed.values()))} at the peak of a step: {parts}")
    lines.append(f"              {verdict} the {size(room)} that are free")

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
    lines.append(f"checkpoint    {size(checkpoint_bytes(config, train))}")
    return "\n".join(lines)


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, least in (("GB", 1e9), ("MB", 1e6)):
        if count >= least:
            return f"{count / least:,.1f} {unit}"
    return f"{count / 1e3:,.0f} kB"


def with_batch_size(train: TrainConfig, batch_size: int) -> TrainConfig:
    return dataclasses.replace(train, batch_size=batch_size)
