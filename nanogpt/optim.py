"""Optimizers and learning-rate schedules.

`make_optimizers` assigns a model's parameters: `optimizer="adamw"` is one AdamW with nanoGPT's decay groups;
`optimizer="muon"` is Muon for the matrices inside the blocks and AdamW for the rest. `lr_at` is the whole schedule, a
pure function of the step (or the time); `set_learning_rate` writes its value into the parameter groups.
"""

import math
from contextlib import contextmanager
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import nn

# Quintic Newton-Schulz with the steepest slope at zero; singular values end in about 0.7 to 1.2 (Jordan 2024)
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
# Under DDP, processes share Newton-Schulz for matrices with at least this many rows and columns. The work per element
# grows with the shorter side, communication does not: smaller matrices are faster to compute on every process
SHARED_FROM = 256


def lr_at(step: int, config, seconds: float = 0.0) -> float:
    """The learning rate of `step` (the first is 0): linear warm-up, then `config.lr_schedule` down to `min_lr`.

    cosine and linear reach min_lr at lr_decay_iters (as nanoGPT); wsd (warmup-stable-decay, Hu et al. 2024) holds the
    peak and spends the last decay_fraction of lr_decay_iters on a straight line down; constant never decays. With
    train_minutes, the decay goes by `seconds` of training instead of steps, and ends with those minutes.
    """
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    now, start, end = step, config.warmup_iters, config.lr_decay_iters or config.max_iters
    if config.train_minutes:
        now, start, end = seconds, 0, 60 * config.train_minutes
    if config.lr_schedule == "wsd":
        start = max(start, round(end * (1 - config.decay_fraction)))
    progress = min(1.0, (now - start) / max(1, end - start))
    if config.lr_schedule == "constant" or progress <= 0:
        return config.learning_rate
    share = (
        0.5 * (1 + math.cos(math.pi * progress)) if config.lr_schedule == "cosine" else 1 - progress
    )
    return config.min_lr + share * (config.learning_rate - config.min_lr)


def set_learning_rate(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    """Sets the learning rate of every group to `lr` times the group's `lr_scale`, if it has one."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)


@contextmanager
def cast_weights_once():
    """Around the micro-batches of a step: autocast casts each weight for the first one and keeps it for the others.

    Weights change only in `update`, which must come after it. torch.compile casts in its own code, so it gains nothing.
    """
    torch.autocast_increment_nesting()  # autocast forgets at the end of the outermost context
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()


def update(optimizers: list[torch.optim.Optimizer], not_finite: torch.Tensor) -> None:
    """Steps every optimizer, unless `not_finite` is 1.0: then nothing changes. Gradients are freed either way.

    Muon and torch's fused optimizers read the flag on the device. Others, and fused ones on MPS, ignore it, so for them
    the host waits for the flag.
    """
    for optimizer in optimizers:
        fused = optimizer.defaults.get("fused") and not_finite.device.type != "mps"
        if isinstance(optimizer, Muon) or fused:
            optimizer.found_inf = not_finite  # type: ignore[attr-defined]
            optimizer.step()
        elif not not_finite:
            optimizer.step()
        optimizer.zero_grad()


def make_optimizers(
    model: nn.Module, config, dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon and AdamW, over the parameters of a GPT; `dtype` is that of Muon's matrix products.

    Weight decay acts on matrices and embeddings, not on biases and norms, as in nanoGPT; with Muon not on embeddings.
    """
    named = dict(model.named_parameters())
    matrices = {name: p for name, p in named.items() if p.ndim >= 2}
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    if config.optimizer == "adamw":
        vectors = [p for name, p in named.items() if name not in matrices]
        decayed = {"params": list(matrices.values()), "weight_decay": decay, "lr_scale": 1.0}
        rest = {"params": vectors, "weight_decay": 0.0, "lr_scale": 1.0}
        return [torch.optim.AdamW([decayed, rest], betas=betas, fused=True)]

    inside = {name: p for name, p in matrices.items() if name.startswith("h.")}
    rows, scale = model.fused_rows(), config.muon_learning_rate / config.learning_rate
    groups = [
        {"params": [p], "rows": rows.get(name), "lr_scale": scale} for name, p in inside.items()
    ]
    others = {
        "params": [p for name, p in named.items() if name not in inside],
        "weight_decay": 0.0,
        "lr_scale": 1.0,
    }
    muon = Muon(groups, momentum=config.muon_momentum, weight_decay=decay, dtype=dtype)
    return [muon, torch.optim.AdamW([others], betas=betas, fused=True)]


def orthogonalize(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrices to x (N, rows, columns), roughly: U V^T where x = U S V^T.

    Newton-Schulz iteration X <- a X + (b A + c A^2) X with A = X X^T, for all N matrices of one shape at once.
    """
    a, b, c = NEWTON_SCHULZ
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(
        min=1e-7
    )  # brings the largest singular value below 1
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def orthogonalize_share(x: list[torch.Tensor]) -> torch.Tensor:
    """`orthogonalize` of N matrices that every process has: each computes its share, and gets those of the others."""
    rank, world, N = dist.get_rank(), dist.get_world_size(), len(x)
    each = -(-N // world)
    mine = torch.stack(
        [x[min(rank * each + i, N - 1)] for i in range(each)]
    )  # all shares have one size
    everyones = mine.new_empty(world * each, *x[0].shape)
    dist.all_gather([*everyones.split(each)], orthogonalize(mine).contiguous())
    return everyones[:N]


def orthogonalize_sharded(x: list[torch.Tensor], held: list[list[int]], group) -> torch.Tensor:
    """`orthogonalize` of matrices whose rows are spread over the processes of `group`.

    x are the rows that this process has of each matrix, held[i][r] is how many process r has of matrix i. Each process
    gets its share of the matrices whole and sends back the rows of the results: none ever has all matrices. Returns the
    rows of this process, one matrix after the other.
    """
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    each = -(-len(x) // world)
    shares = [slice(r * each, (r + 1) * each) for r in range(world)]  # the last ones may be empty
    mine = held[shares[rank]]

    def exchange(send: list[list[torch.Tensor]], rows: list[list[int]]) -> torch.Tensor:
        """Sends the matrices send[r] to process r; returns what all sent, of rows[r] rows each, one after the other."""
        flat = torch.cat([x[0][:0], *(matrix for matrices in send for matrix in matrices)])
        got = flat.new_empty(sum(map(sum, rows)), flat.size(1))
        dist.all_to_all_single(
            got, flat, [sum(n) for n in rows], [sum(map(len, m)) for m in send], group=group
        )
        return got

    rows = [[counts[r] for counts in mine] for r in range(world)]
    parts = exchange([x[share] for share in shares], rows).split(
        [n for counts in rows for n in counts]
    )
    whole = [torch.cat(parts[i :: len(mine)]) for i in range(len(mine))]
    whole = orthogonalize(torch.stack(whole)) if mine else []
    back = [matrix.split(counts) for matrix, counts in zip(whole, mine, strict=True)]
    rows = [[counts[rank] for counts in held[share]] for share in shares]
    return exchange([[matrix[r] for matrix in back] for r in range(world)], rows)


def rows_held(rows: list[int], processes: int) -> list[list[int]]:
    """How many rows of each of several stacked matrices a process has, where FSDP shards the stack (torch.chunk)."""
    each = -(-sum(rows) // processes)
    starts = [each * r for r in range(processes)]
    ends = accumulate(rows)
    return [
        [max(0, min(end, s + each) - max(end - n, s)) for s in starts]
        for n, end in zip(rows, ends, strict=True)
    ]


def state_shapes(optimizer: torch.optim.Optimizer, p: torch.Tensor) -> dict[str, torch.Size] | None:
    """What AdamW and Muon keep for a parameter p, by name; None for other optimizers, which may keep anything."""
    if type(optimizer) is torch.optim.AdamW:
        moments = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * optimizer.defaults["amsgrad"]
        return {"step": torch.Size()} | dict.fromkeys(moments, p.shape)
    return {"momentum_buffer": p.shape} if type(optimizer) is Muon else None


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized by Newton-Schulz (Jordan 2024, https://kellerjordan.github.io/posts/muon/).

    Only for the matrices of the blocks. A group's `rows` are the row counts of matrices stacked in one parameter
    (queries, keys and values), which are orthogonalized one by one. All matrices of one shape go through
    Newton-Schulz as one batch, in `dtype`: bf16 is enough for it, and pays where the device computes in bf16.

    An update has singular values near 1, so its entries have a root mean square of 1/sqrt(max(rows, columns)). The
    factor sqrt(max(1, rows/columns)) makes a step change outputs by the same amount for any shape (same source).

    Processes divide the matrices of a batch among themselves: always where FSDP shards them, and where each process has
    a copy of the model (`copies`), from SHARED_FROM on. All decide by the shape alone, so they decide alike.
    """

    def __init__(
        self, params, lr=0.02, momentum=0.95, weight_decay=0.0, dtype: torch.dtype = torch.float32
    ):
        super().__init__(
            params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, rows=None)
        )
        self.dtype = dtype
        self.found_inf: torch.Tensor | None = (
            None  # 1.0 skips the update, as in torch's fused AdamW
        )
        self.copies = 1  # processes that call this with the same gradients

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Updates all matrices that have a gradient. `closure` is ignored."""
        skip = self.found_inf
        if skip is not None and skip.device.type == "cpu":
            if skip:  # on all processes, or on none
                return
            skip = None
        batches = {}  # (rows, columns, lr, weight decay, device mesh) -> (update, weight, rows held by each process)
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                mesh = getattr(p, "device_mesh", None)  # of a sharded parameter
                tensors = self.state[p]["momentum_buffer"], p.grad, p
                momentum, grad, weight = (
                    tensor.to_local() if mesh else tensor for tensor in tensors
                )
                if (
                    skip is not None
                ):  # on an accelerator the flag is part of the arithmetic: the host does not wait
                    grad = torch.where(skip > 0, momentum, grad)
                momentum.lerp_(grad, 1 - group["momentum"])
                update = grad.lerp(momentum, group["momentum"]).to(self.dtype)  # Nesterov
                rows = group["rows"] or [p.size(0)]
                held = rows_held(rows, mesh.size() if mesh else 1)
                here = [counts[mesh.get_local_rank() if mesh else 0] for counts in held]
                for n, *matrix in zip(
                    rows, update.split(here), weight.split(here), held, strict=True
                ):
                    key = (n, p.size(1), group["lr"], group["weight_decay"], mesh)
                    batches.setdefault(key, []).append(matrix)
        for (rows, columns, lr, weight_decay, mesh), matrices in batches.items():
            updates, weights, held = zip(*matrices, strict=True)
            if mesh:
                update = orthogonalize_sharded(updates, held, mesh.get_group())
            elif self.copies > 1 and min(rows, columns) >= SHARED_FROM:
                update = orthogonalize_share(updates)
            else:
                update = orthogonalize(torch.stack(updates))
            lr = lr if skip is None else lr * (1 - skip)
            torch._foreach_mul_(weights, 1 - lr * weight_decay)
            update = update.to(weights[0].dtype) * (lr * math.sqrt(max(1, rows / columns)))
            torch._foreach_sub_(
                weights, update.reshape(-1, columns).split([len(weight) for weight in weights])
            )


class UpdateRatio:
    """How far a step moves the blocks' matrices: |after - before| / |before|, over 16 rows of each (or of its shard).

    Used around the update: `with update_ratio: …`.

    About 1e-3 is healthy for AdamW (Karpathy, https://youtu.be/P6sfmUTpUmc); Muon's updates are larger by design. It
    uses a few rows because a copy of all weights would cost memory and time.
    """

    def __init__(self, model: nn.Module):
        from torch.distributed.tensor import DTensor  # takes half a second to import

        matrices = [
            p.detach()
            for name, p in model.named_parameters()
            if name.startswith("h.") and p.ndim >= 2
        ]
        matrices = [p.to_local() if isinstance(p, DTensor) else p for p in matrices]
        self.rows = [
            p[:: max(1, p.size(0) // 16)] for p in matrices
        ]  # views of what the optimizer changes

    @torch.no_grad()
    def __enter__(self) -> None:
        self.copies = torch._foreach_mul(self.rows, 1.0)

    @torch.no_grad()
    def __exit__(self, *error) -> None:
        size = torch.stack(torch._foreach_norm(self.copies)).norm()
        torch._foreach_sub_(self.copies, self.rows)
        moved = torch.stack(torch._foreach_norm(self.copies)).norm()
        self.squares = torch.stack((moved, size)).square()  # on the device, without synchronizing

    def value(self, add_up=lambda tensor: tensor) -> float:
        """The ratio of the last step; `add_up` sums a tensor over processes, each of which may hold a shard."""
        moved, size = add_up(self.squares).sqrt().tolist()
        return moved / size
