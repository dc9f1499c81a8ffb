"""Learning rates, AdamW and Muon, compared with nanoGPT's formula and with torch."""

import math

import pytest
import torch

from nanogpt import GPT, GPTConfig, TrainConfig
from nanogpt.optim import Muon, lr_at, make_optimizers, orthogonalize, set_learning_rate

MODEL = GPTConfig(vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=16, norm="rmsnorm", mlp="swiglu")


def test_cosine_schedule_is_nanogpts():
    config = TrainConfig(learning_rate=1e-3, min_lr=1e-4, warmup_iters=100, lr_decay_iters=2000, max_iters=5000)

    def nanogpt(it):  # nanoGPT's formula, written out
        if it < 100:
            return 1e-3 * (it + 1) / 101
        if it > 2000:
            return 1e-4
        return 1e-4 + 0.5 * (1 + math.cos(math.pi * (it - 100) / 1900)) * 9e-4

    for it in (0, 1, 99, 100, 101, 1000, 1999, 2000, 2001, 4999):
        assert lr_at(it, config) == pytest.approx(nanogpt(it), rel=1e-12)


IN_STEPS = {"warmup_iters": 3, "max_iters": 23, "decay_fraction": 10 / 23}
IN_TIME = {"warmup_iters": 3, "train_minutes": 2}  # warms up by steps and decays by the clock
LONGER = {"warmup_iters": 0, "max_iters": 5, "lr_decay_iters": 10}  # than the run
LATE = 10**6


@pytest.mark.parametrize(
    "schedule, settings, expected",
    [
        ("linear", IN_STEPS, {(0, 0): 0.25, (3, 0): 1.0, (8, 0): 0.75, (13, 0): 0.5, (23, 0): 0.0, (40, 0): 0.0}),
        ("wsd", IN_STEPS, {(0, 0): 0.25, (3, 0): 1.0, (12, 0): 1.0, (13, 0): 1.0, (18, 0): 0.5, (40, 0): 0.0}),
        ("constant", IN_STEPS, {(0, 0): 0.25, (1, 0): 0.5, (3, 0): 1.0, (40, 0): 1.0}),
        ("linear", LONGER, {(5, 0): 0.5}),
        ("linear", IN_TIME, {(0, 0): 0.25, (LATE, 30): 0.75, (LATE, 60): 0.5, (LATE, 120): 0.0, (LATE, 500): 0.0}),
        ("cosine", IN_TIME, {(0, 0): 0.25, (LATE, 60): 0.5, (LATE, 120): 0.0}),
        ("wsd", IN_TIME, {(LATE, 30): 1.0, (LATE, 72): 1.0, (LATE, 96): 0.5, (LATE, 120): 0.0}),
    ],
)
def test_learning_rate_at_a_step_and_second(schedule, settings, expected):
    config = TrainConfig(lr_schedule=schedule, learning_rate=1.0, min_lr=0.0, **settings)
    assert {at: pytest.approx(lr_at(at[0], config, at[1])) for at in expected} == expected


def test_adamw_decays_only_matrices_and_embeddings():
    model = GPT(MODEL)
    (optimizer,) = make_optimizers(model, TrainConfig(weight_decay=0.3, beta1=0.8, beta2=0.98))
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3, 0.0}
    assert all(group["betas"] == (0.8, 0.98) for group in optimizer.param_groups)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(p) for p in model.parameters() if p.ndim >= 2}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


def test_a_module_of_ones_own_trains_with_muon():
    model = GPT(MODEL)
    conv = torch.nn.Conv1d(8, 8, 3, groups=8)  # its weight (8, 1, 3) is no matrix
    model.h[0].mlp = torch.nn.Sequential(torch.nn.Linear(MODEL.n_embd, 8), torch.nn.Linear(8, MODEL.n_embd))
    model.h[0].mlp.register_module("conv", conv)
    optimizers = make_optimizers(model, TrainConfig(optimizer="muon"))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in model.parameters()]
    for optimizer in optimizers:
        set_learning_rate([optimizer], 0.01)
        optimizer.step()
    assert all(not torch.equal(old, p) for old, p in zip(before, model.parameters(), strict=True))


def test_muon_gets_the_blocks_matrices_and_adamw_the_rest():
    model = GPT(MODEL)
    config = {
        "learning_rate": 0.01,
        "muon_learning_rate": 0.02,
        "beta1": 0.8,
        "muon_momentum": 0.7,
        "weight_decay": 0.3,
    }
    muon, adamw = make_optimizers(model, TrainConfig(optimizer="muon", **config))
    names = {id(p): name for name, p in model.named_parameters()}
    by_muon, by_adamw = ({names[id(p)] for g in o.param_groups for p in g["params"]} for o in (muon, adamw))
    assert by_muon == {name for name, p in model.named_parameters() if name.startswith("h.") and p.ndim == 2}
    assert by_adamw == set(names.values()) - by_muon
    set_learning_rate([muon, adamw], 0.005)
    (rest,) = adamw.param_groups
    assert (rest["lr"], rest["betas"], rest["weight_decay"]) == (0.005, (0.8, 0.95), 0.0)
    for group in muon.param_groups:
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0.7, 0.3)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("shape", [(16, 32), (48, 16), (16, 16)])
def test_muon_equals_torchs_muon_in_equal_precision(shape):
    torch.manual_seed(0)
    p, reference = torch.nn.Parameter(torch.randn(shape)), torch.nn.Parameter(torch.empty(shape))
    reference.data.copy_(p.data)
    start = p.detach().clone()
    settings = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1, "dtype": torch.bfloat16, "equal_rows": False}
    a = Muon([{"params": [p], "rows": None}], **settings)
    b = torch.optim.Muon([reference], lr=0.02, momentum=0.95, weight_decay=0.1, nesterov=True)
    for _ in range(5):
        p.grad = torch.randn(shape)
        reference.grad = p.grad.clone()
        a.step(), b.step()
    assert (p - start).abs().max() > 0.01
    torch.testing.assert_close(p, reference, atol=1e-6, rtol=1e-6)


def test_rows_of_any_length_count_alike():
    torch.manual_seed(0)
    grad = torch.randn(16, 32)
    scaled, plain = (torch.nn.Parameter(torch.zeros(16, 32)) for _ in range(2))
    scaled.grad = grad * torch.logspace(-3, 3, 16)[:, None]
    plain.grad = grad / grad.norm(dim=1, keepdim=True)
    Muon([scaled], momentum=0.0).step()
    Muon([plain], momentum=0.0, equal_rows=False).step()
    torch.testing.assert_close(scaled, plain)


def test_stacked_matrices_are_orthogonalized_one_by_one():
    torch.manual_seed(0)
    stacked, parts = torch.nn.Parameter(torch.zeros(24, 8)), [torch.nn.Parameter(torch.zeros(n, 8)) for n in (8, 16)]
    stacked.grad = torch.randn(24, 8)
    for p, g in zip(parts, stacked.grad.split([8, 16]), strict=True):
        p.grad = g.clone()
    Muon([{"params": [stacked], "rows": [[8, 16]]}], lr=0.1).step()
    Muon([{"params": parts}], lr=0.1).step()
    torch.testing.assert_close(stacked, torch.cat(parts))


def test_orthogonalize_brings_singular_values_near_one():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(3, 32, 64)))
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("grad_clip", [0.01, 0.0])
def test_the_optimizer_gets_the_clipped_gradient(make_run, monkeypatch, grad_clip):
    run, norms = make_run(grad_clip=grad_clip), []
    (optimizer,) = run.optimizers
    step = optimizer.step  # whose update hardly depends on the gradient's size, so the gradient itself is looked at
    norm = lambda: torch.nn.utils.get_total_norm([p.grad for p in run.gpt.parameters()]).item()  # noqa: E731
    monkeypatch.setattr(optimizer, "step", lambda: norms.append(norm()) or step())
    run.rehearse()
    run.step()
    assert run.tally.grad_norm > 0.1
    assert norms == [pytest.approx(grad_clip or run.tally.grad_norm.item(), rel=1e-3)]
