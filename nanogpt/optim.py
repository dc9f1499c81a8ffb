"""Optimizers and learning-rate schedules.

`make_optimizers` assigns a model's parameters: `optimizer="adamw"` is one AdamW with nanoGPT's
decay groups; `optimizer="muon"` is Muon for the matrices inside the blocks and AdamW for the rest.
`lr_at` is the whole schedule, a pure function of the step (or the time); `set_learning_rate` writes
its value into the parameter groups.
"""

import math
from collections import defaultdict
from contextlib import contextmanager
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import nn

# Quintic Newton-Schulz with the steepest slope at zero; singular values end in about 0.7 to 1.2
# (Jordan 2024)
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
# Under DDP, processes share Newton-Schulz for matrices with at least this many rows and columns.
# The work per element grows with the shorter side and communication does not, so smaller matrices
# are faster to compute on every process
SHARED_FROM = 256


def lr_at(step: int, config, seconds: float = 0.0) -> float:
    """The learning rate of `step` (the first is 0): linear warm-up, then `config.lr_schedule`.

    cosine and linear fall to min_lr at lr_decay_iters (as nanoGPT); wsd (warmup-stable-decay, Hu
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
    not on embeddings.
    """
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    if config.optimizer == "adamw":
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        vectors = [p for p in model.parameters() if p.ndim < 2]
        decayed = {"params": matrices, "weight_decay": decay, "lr_scale": 1.0}
        rest = {"params": vectors, "weight_decay": 0.0, "lr_scale": 1.0}
        return [torch.optim.AdamW([decayed, rest], betas=betas, fused=True)]

    rows = model.fused_rows()
    scale = config.muon_learning_rate / config.learning_rate
    groups, others = [], []
    for name, p in model.named_parameters():
        if name.startswith("h.") and p.ndim >= 2:
            groups.append({"params": [p], "rows": rows.get(name), "lr_scale": scale})
        else:
            others.append(p)
    muon = Muon(groups, momentum=config.muon_momentum, weight_decay=decay, dtype=dtype)
    rest = {"params": others, "weight_decay": 0.0, "lr_scale": 1.0}
    return [muon, torch.optim.AdamW([rest], betas=betas, fused=True)]


@contextmanager
def cast_weights_once():
    """Context manager around a step's micro-batches: autocast casts each weight only once.

    Weights must change only afterwards, in `update`. Compiled blocks cast in their own code and
    gain nothing.
    """
    torch.autocast_increment_nesting()  # the outermost context clears autocast's cache at its end
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()


def update(optimizers: list[torch.optim.Optimizer], not_finite: torch.Tensor) -> None:
    """Steps every optimizer, or none if `not_finite` is 1.0. Gradients are freed either way.

    Muon and torch's fused optimizers read the flag on the device. Others, and fused ones on MPS,
    ignore it, so for them the host waits for the flag.
    """
    for optimizer in optimizers:
        fused = optimizer.defaults.get("fused") and not_finite.device.type != "mps"
        if isinstance(optimizer, Muon) or fused:
            optimizer.found_inf = not_finite  # type: ignore[attr-defined]
            optimizer.step()
        elif not not_finite:
            optimizer.step()
        optimizer.zero_grad()


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized by Newton-Schulz (https://kellerjordan.github.io/posts/muon/).

    With `equal_rows` each row of an update is first scaled to length 1 (MuonEq-R): no output
    channel dominates the few iterations. The loss of tiny Shakespeare falls by 0.006 to 0.010
    (LOG.md).

    Only for the matrices of the blocks. A group's `rows` are the row counts of matrices stacked in
    one parameter (queries, keys and values), which are orthogonalized one by one. All matrices of
    one shape go through Newton-Schulz as one batch, in `dtype`: bf16 is exact enough, and faster if
    the device computes in bf16.

    An update has singular values near 1, so its entries have a root mean square of
    1/sqrt(max(rows, columns)). The factor sqrt(max(1, rows/columns)) makes a step change outputs by
    the same amount for any shape (same source).

    Several processes divide the matrices of a batch among themselves: always if FSDP shards them,
    and if each has a copy of the model (`copies`), from SHARED_FROM on. All decide by the shape, so
    they decide alike.
    """

    def __init__(
        self,
        params,
        lr=0.02,
        momentum=0.95,
        weight_decay=0.0,
        dtype: torch.dtype = torch.float32,
        equal_rows: bool = True,
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "rows": None}
        super().__init__(params, defaults)
        self.dtype = dtype
        self.equal_rows = equal_rows
        self.found_inf: torch.Tensor | None = None  # 1.0 skips a step, as in torch's fused AdamW
        self.copies = 1  # processes that call this with the same gradients

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Updates all matrices that have a gradient. `closure` is ignored."""
        skip = self.found_inf
        if skip is not None and skip.device.type == "cpu":
            if skip:  # on all processes, or on none
                return
            skip = None

        found = [(p, g) for g in self.param_groups for p in g["params"] if p.grad is not None]
        updates = self.nesterov([p for p, _ in found], skip)
        # the matrices of one shape, with their updates
        batches: dict[tuple, list[tuple]] = defaultdict(list)
        for (p, group), update in zip(found, updates, strict=True):
            mesh = getattr(p, "device_mesh", None)  # of a sharded parameter
            rank, processes = (mesh.get_local_rank(), mesh.size()) if mesh else (0, 1)
            rows = group["rows"] or [p.size(0)]
            held = rows_held(rows, processes)  # of each matrix, by each process
            here = [counts[rank] for counts in held]
            pieces = zip(update.split(here), local(p).split(here), held, strict=True)
            for n, piece in zip(rows, pieces, strict=True):
                shape = (n, p.size(1), group["lr"], group["weight_decay"], mesh)
                batches[shape].append(piece)

        for (rows, columns, lr, weight_decay, mesh), pieces in batches.items():
            updates, weights, held = zip(*pieces, strict=True)
            if mesh:
                updates = [self.scale_rows(update) for update in updates]
                update = orthogonalize_sharded(updates, held, mesh.get_group())
            elif self.copies > 1 and min(rows, columns) >= SHARED_FROM:
                update = orthogonalize_share([self.scale_rows(update) for update in updates])
            else:
                update = orthogonalize(self.scale_rows(torch.stack(updates)))
            update = update.reshape(-1, columns)  # all rows of a batch below each other
            lr = lr if skip is None else lr * (1 - skip)
            torch._foreach_mul_(weights, 1 - lr * weight_decay)
            update = update.to(weights[0].dtype) * (lr * math.sqrt(max(1, rows / columns)))
            torch._foreach_sub_(weights, update.split([len(weight) for weight in weights]))

    def nesterov(self, params: list, skip: torch.Tensor | None) -> list[torch.Tensor]:
        """Adds the gradients to the momenta; returns Nesterov's updates, of the rows held here.

        All at once: on a GPU that is a few launches, where the host would need longer than the GPU.
        """
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [local(self.state[p]["momentum_buffer"]) for p in params]
        grads = [local(p.grad) for p in params]
        if skip is not None:  # part of the arithmetic on an accelerator: the host does not wait
            skipped = skip > 0
            grads = [torch.where(skipped, m, g) for m, g in zip(momenta, grads, strict=True)]
        momentum = self.defaults["momentum"]
        torch._foreach_lerp_(momenta, grads, 1 - momentum)
        return torch._foreach_lerp(grads, momenta, momentum)

    def scale_rows(self, updates: torch.Tensor) -> torch.Tensor:
        """Updates (…, rows, columns) in the dtype of the matmuls, with rows of length 1."""
        if self.equal_rows:
            updates = updates / updates.norm(dim=-1, keepdim=True).clamp(min=1e-7)
        return updates.to(self.dtype)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of a sharded tensor that this process holds; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def orthogonalize(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Roughly the nearest (semi-)orthogonal matrices to x (N, rows, columns): U V^T of x = U S V^T.

    Newton-Schulz iteration X <- a X + (b A + c A^2) X with A = X X^T, for all N matrices at once.
    """
    a, b, c = NEWTON_SCHULZ
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x
    # brings the largest singular value below 1
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def orthogonalize_share(x: list[torch.Tensor]) -> torch.Tensor:
    """`orthogonalize` of N matrices that all processes have: each computes a share for all."""
    rank, world = dist.get_rank(), dist.get_world_size()
    N = len(x)
    share = math.ceil(N / world)  # the last process repeats the last matrix to fill its share
    mine = torch.stack([x[min(rank * share + i, N - 1)] for i in range(share)])
    results = mine.new_empty(world * share, *x[0].shape)
    dist.all_gather([*results.split(share)], orthogonalize(mine).contiguous())
    return results[:N]


def orthogonalize_sharded(x: list[torch.Tensor], held: list[list[int]], group) -> torch.Tensor:
    """`orthogonalize` of matrices whose rows are spread over the processes of `group`.

    x[i] are the rows of matrix i that this process holds, held[i][r] is how many process r holds.
    Each process gets whole matrices, its share of all, and sends back the rows of the results: none
    ever holds all matrices. Returns this process's rows, one matrix after the other.
    """
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    size = math.ceil(len(x) / world)
    shares = [range(len(x))[r * size : (r + 1) * size] for r in range(world)]  # some may be empty
    mine = shares[rank]

    # everyone's rows of my matrices, for my rows of theirs
    counts = [[held[i][r] for i in mine] for r in range(world)]
    received = exchange([[x[i] for i in share] for share in shares], counts, x[0], group)
    results = []
    if mine:
        whole = [torch.cat(rows) for rows in zip(*received, strict=True)]
        results = orthogonalize(torch.stack(whole))

    # and back
    rows = [result.split(held[i]) for i, result in zip(mine, results, strict=True)]
    counts = [[held[i][rank] for i in share] for share in shares]
    returned = exchange([[each[r] for each in rows] for r in range(world)], counts, x[0], group)
    return torch.cat([piece for pieces in returned for piece in pieces])


def exchange(
    pieces: list[list[torch.Tensor]], counts: list[list[int]], like: torch.Tensor, group
) -> list[list[torch.Tensor]]:
    """Sends pieces[r], matrices with the columns of `like`, to each process r of a group.

    Returns what each process r has sent here: matrices of counts[r] rows.
    """
    sent = torch.cat([like[:0], *(piece for each in pieces for piece in each)])
    sizes = [sum(each) for each in counts]
    received = sent.new_empty(sum(sizes), sent.size(1))
    sent_sizes = [sum(len(piece) for piece in each) for each in pieces]
    dist.all_to_all_single(received, sent, sizes, sent_sizes, group=group)
    return [list(part.split(n)) for part, n in zip(received.split(sizes), counts, strict=True)]


def rows_held(rows: list[int], processes: int) -> list[list[int]]:
    """How many rows of each of several stacked matrices each process holds of a stack in shards.

    FSDP cuts the stack as torch.chunk does.
    """
    size = math.ceil(sum(rows) / processes)
    shards = [(r * size, (r + 1) * size) for r in range(processes)]
    ends = accumulate(rows)
    return [
        [max(0, min(end, stop) - max(end - n, start)) for start, stop in shards]
        for n, end in zip(rows, ends, strict=True)
    ]


def state_shapes(optimizer: torch.optim.Optimizer, p: torch.Tensor) -> dict[str, torch.Size] | None:
    """Shapes of AdamW's or Muon's state of a parameter p, by name; None for a custom optimizer."""
    if type(optimizer) is Muon:
        return {"momentum_buffer": p.shape}
    if type(optimizer) is not torch.optim.AdamW:
        return None
    shapes = {"step": torch.Size(), "exp_avg": p.shape, "exp_avg_sq": p.shape}
    if optimizer.defaults["amsgrad"]:
        shapes["max_exp_avg_sq"] = p.shape
    return shapes


class UpdateRatio:
    """Context manager around an update that measures how far it moves the blocks' matrices.

    The ratio is |after - before| / |before|, over 16 rows of each matrix (or of its shard): a copy
    of all weights would cost memory and time. About 1e-3 is healthy for AdamW (Karpathy,
    https://youtu.be/P6sfmUTpUmc); Muon's updates are larger by design.
    """

    def __init__(self, model: nn.Module):
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.matrices = [p for n, p in named if n.startswith("h.") and p.ndim >= 2]

    @torch.no_grad()
    def __enter__(self) -> None:
        # views of what the optimizer changes; FSDP may have replaced the shards since
        shards = [local(p.detach()) for p in self.matrices]
        self.rows = [shard[:: max(1, shard.size(0) // 16)] for shard in shards]
        self.copies = torch._foreach_mul(self.rows, 1.0)

    @torch.no_grad()
    def __exit__(self, *error) -> None:
        size = torch.stack(torch._foreach_norm(self.copies)).norm()
        torch._foreach_sub_(self.copies, self.rows)
        moved = torch.stack(torch._foreach_norm(self.copies)).norm()
        self.squares = torch.stack((moved, size)).square()  # stays on the device: no waiting

    def value(self, add_up=lambda tensor: tensor) -> float:
        """The ratio of the last step; `add_up` sums a tensor over processes, which hold shards."""
        moved, size = add_up(self.squares).sqrt().tolist()
        return moved / size
