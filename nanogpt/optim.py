"""Optimizers and learning-rate schedules.

`make_optimizers` assigns a model's parameters: `optimizer="adamw"` is one AdamW with nanoGPT's
decay groups; `optimizer="muon"` is Muon for the matrices inside the blocks and AdamW for the rest.
`lr_at` is the whole schedule, a pure function of the step (or the time); `set_learning_rate` writes
its value into the parameter groups.
"""

import math
from collections import defaultdict

import torch
import torch.distributed as dist
from torch import nn

# Quintic Newton-Schulz with the steepest slope at zero; singular values end at about 0.7 to 1.2
# (Jordan 2024)
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
# Several processes share Newton-Schulz for matrices with at least this many rows and columns. The
# work per element grows with the shorter side and communication does not, so smaller matrices are
# faster to compute on every process
SHARED_FROM = 256


def lr_at(step: int, config, seconds: float = 0.0) -> float:
    """The learning rate of `step` (the first is 0): linear warm-up, then `config.lr_schedule`.

    cosine (nanoGPT's) and linear fall to min_lr at lr_decay_iters; wsd (warmup-stable-decay, Hu
    et al. 2024) holds the peak and falls on a straight line in the last decay_fraction of
    lr_decay_iters; constant never decays. With train_minutes, the decay goes by `seconds` of
    training instead of steps, and ends with those minutes.
    """
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    now: float = step
    start, end = config.warmup_iters, config.lr_decay_iters or config.max_iters
    if config.train_minutes:
        now = seconds
        start, end = 0, 60 * config.train_minutes
    if config.lr_schedule == "wsd":
        start = max(start, round(end * (1 - config.decay_fraction)))
    progress = min(1.0, (now - start) / max(1, end - start))
    if config.lr_schedule == "constant" or progress <= 0:
        return config.learning_rate
    share = 1 - progress
    if config.lr_schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr + share * (config.learning_rate - config.min_lr)


def set_learning_rate(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    """Sets the learning rate of every group to `lr` times the group's `lr_scale`, if it has one."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)


def make_optimizers(
    model: nn.Module, config, dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon and AdamW, over the parameters of a GPT; `dtype` is that of Muon's matmuls.

    Weight decay acts on matrices and embeddings, not on biases and norms, as in nanoGPT; with Muon
    only on the matrices inside the blocks. `set_learning_rate` sets the rates later.
    """
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    if config.optimizer == "adamw":
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        vectors = [p for p in model.parameters() if p.ndim < 2]
        decayed = {"params": matrices, "weight_decay": decay}
        rest = {"params": vectors, "weight_decay": 0.0}
        return [torch.optim.AdamW([decayed, rest], betas=betas, fused=True)]

    rows, named = model.fused_rows(), dict(model.named_parameters())
    inside = [name for name, p in named.items() if name.startswith("h.") and p.ndim == 2]
    group = {
        "params": [named[name] for name in inside],
        "rows": [rows.get(name) for name in inside],
        "lr_scale": config.muon_learning_rate / config.learning_rate,
    }
    muon = Muon([group], momentum=config.muon_momentum, weight_decay=decay, dtype=dtype)
    rest = {"params": [p for name, p in named.items() if name not in inside], "weight_decay": 0.0}
    return [muon, torch.optim.AdamW([rest], betas=betas, fused=True)]


def update(optimizers: list[torch.optim.Optimizer], not_finite: torch.Tensor) -> None:
    """Steps every optimizer, or none if `not_finite` is 1.0. Gradients are cleared either way.

    On an accelerator Muon and torch's fused optimizers read the flag on the device. Others, and
    fused ones on MPS, ignore it, so the host waits for it. A CPU has nothing to wait for.
    """
    kind = not_finite.device.type
    for optimizer in optimizers:
        fused = optimizer.defaults.get("fused") and kind != "mps"
        if kind != "cpu" and (fused or isinstance(optimizer, Muon)):
            optimizer.found_inf = not_finite  # type: ignore[attr-defined]
            optimizer.step()
        elif not_finite == 0:  # waits for the device
            optimizer.step()
        optimizer.zero_grad()


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized by Newton-Schulz (https://kellerjordan.github.io/posts/muon/).

    Only for the matrices of the blocks. A group's `rows` are, for each parameter, the row counts of
    matrices stacked in it (queries, keys and values), which are orthogonalized one by one, or None.
    A group's matrices of one shape go through Newton-Schulz as one batch, in `dtype`: bf16 is exact
    enough, and faster if the device computes in bf16. Several processes divide a batch of large
    matrices among themselves.

    With `equal_rows` each row of an update is first scaled to length 1 (MuonEq-R): no output
    channel dominates the few iterations. The loss of tiny Shakespeare falls by 0.006 to 0.010
    (LOG.md).

    An update has singular values near 1, so its entries have a root mean square of
    1/sqrt(max(rows, columns)). The factor sqrt(max(1, rows/columns)) makes a step change outputs by
    the same amount for any shape (Jordan 2024).
    """

    def __init__(
        self, params, lr=0.02, momentum=0.95, weight_decay=0.0, dtype=torch.float32, equal_rows=True
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "rows": None}
        super().__init__(params, defaults)
        self.dtype = dtype
        self.equal_rows = equal_rows
        self.found_inf: torch.Tensor | None = None  # 1.0 skips a step, as in torch's fused AdamW

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Updates all matrices that have a gradient; may overwrite it. `closure` is ignored."""
        skip = self.found_inf  # `update` sets it on accelerators only
        for group in self.param_groups:
            lr = group["lr"] if skip is None else group["lr"] * (1 - skip)
            every_rows = group["rows"] or [None] * len(group["params"])
            pairs = zip(group["params"], every_rows, strict=True)
            found = [(p, rows) for p, rows in pairs if p.grad is not None]
            found.sort(key=lambda member: (*member[0].shape, *(member[1] or ())))  # alike, together
            # a few sharded ones at a time: no process ever holds all matrices
            sharded = any(hasattr(p, "full_tensor") for p, _ in found)
            size = dist.get_world_size() if sharded else max(1, len(found))
            for i in range(0, len(found), size):
                params, rows = zip(*found[i : i + size], strict=True)
                updates = [full_tensor(u) for u in self.nesterov(params, group["momentum"], skip)]
                self.orthogonalize_stacked(updates, rows, lr)
                changes = [shard_like(u, p) for u, p in zip(updates, params, strict=True)]
                torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
                torch._foreach_sub_(params, changes)

    def nesterov(self, params: tuple, momentum: float, skip: torch.Tensor | None) -> list:
        """Adds the gradients to the momenta; returns Nesterov's updates, which may overwrite them.

        All at once, in few launches: one per matrix would keep a GPU waiting for the host.
        """
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum_buffer"] for p in params]
        grads = [p.grad for p in params]
        if skip is not None:  # part of the arithmetic on an accelerator: the host does not wait
            skipped = skip > 0
            grads = [torch.where(skipped, m, g) for m, g in zip(momenta, grads, strict=True)]
        torch._foreach_lerp_(momenta, grads, 1 - momentum)
        torch._foreach_lerp_(grads, momenta, momentum)
        return grads

    def orthogonalize_stacked(self, updates: list[torch.Tensor], rows: tuple, lr) -> None:
        """Orthogonalizes and scales the matrices that are stacked in each update, in place."""
        batches: dict[tuple, list[torch.Tensor]] = defaultdict(list)  # by shape
        for update, its_rows in zip(updates, rows, strict=True):
            for matrix in update.split(its_rows or len(update)):
                batches[matrix.shape].append(matrix)
        for (height, width), matrices in batches.items():
            together = self.orthogonalize_together(torch.stack(matrices))  # (N, height, width)
            together = together.to(matrices[0].dtype) * (lr * math.sqrt(max(1, height / width)))
            torch._foreach_copy_(matrices, together.unbind())

    def orthogonalize_together(self, updates: torch.Tensor) -> torch.Tensor:
        """`orthogonalize` of updates (N, rows, columns), with the work shared among processes."""
        if self.equal_rows:
            updates = updates / updates.norm(dim=-1, keepdim=True).clamp(min=1e-7)
        updates = updates.to(self.dtype)
        world = dist.get_world_size() if dist.is_initialized() else 1
        if world == 1 or min(updates.shape[1:]) < SHARED_FROM:
            return orthogonalize(updates)
        N = len(updates)
        share = math.ceil(N / world)
        # the last processes repeat the last matrix to fill their shares
        mine = torch.arange(share, device=updates.device) + dist.get_rank() * share
        results = updates.new_empty(world * share, *updates.shape[1:])
        part = orthogonalize(updates[mine.clamp(max=N - 1)]).contiguous()
        dist.all_gather([*results.split(share)], part)
        return results[:N]


def orthogonalize(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Roughly the nearest (semi-)orthogonal matrices to x (N, rows, columns): U V^T of x = U S V^T.

    Newton-Schulz iteration X <- a X + (b A + c A^2) X with A = X X^T, for all N matrices at once.
    With more rows than columns it is X <- a X + X (b A + c A^2) with A = X^T X.
    """
    a, b, c = NEWTON_SCHULZ
    tall = x.size(1) > x.size(2)
    # brings the largest singular value below 1
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x.mT @ x if tall else x @ x.mT  # of the shorter side
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factors = (x, polynomial) if tall else (polynomial, x)
        x = torch.baddbmm(x, *factors, beta=a)
    return x


# FSDP makes a parameter a DTensor: each process holds some of its rows


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor. A sharded one is gathered from all processes, which must all call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(tensor: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """A tensor that all processes have, on the device of p and sharded like p."""
    tensor = tensor.to(p.device)
    if not hasattr(p, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(p, DTensor)
    copies = [Replicate()] * p.device_mesh.ndim
    whole = DTensor.from_local(tensor, p.device_mesh, copies, run_check=False)
    return whole.redistribute(placements=p.placements)
