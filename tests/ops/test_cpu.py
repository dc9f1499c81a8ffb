"""Optimizations for the CPU have plain torch's values and gradients, each part and in models."""

import dataclasses
import math
import platform
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import randomize
from shapes import CASES

from nanogpt import GPT, GPTConfig
from nanogpt.model import Ops, attention
from nanogpt.ops import cpu
from nanogpt.ops.cpu import (
    CPU,
    RMSNormFunction,
    causal_attention,
    fast_attention,
    fused_rms_norm,
)

PARTS = {"rms_norm": Ops(rms_norm=fused_rms_norm), "attention": Ops(attention=fast_attention)}
IDX = torch.randint(65, (3, 24), generator=torch.Generator().manual_seed(1))


def make_model(config: GPTConfig) -> GPT:
    """A model with the same random weights each time; its logits have an ordinary size."""
    model = GPT(config)
    randomize(model)
    model.wte.weight.data *= 0.3
    return model


def gradients(model: GPT, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The loss and the gradient of each parameter, under autocast to dtype."""
    torch.manual_seed(2)  # of dropout
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = model(IDX, IDX)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters()}


def distance(a: dict, b: dict) -> float:
    """The largest difference between tensors of the same name, relative to the norm of the first."""
    assert a.keys() == b.keys()
    return max(((a[name] - b[name]).float().norm() / a[name].float().norm()).item() for name in a)


def test_rmsnorms_gradients_are_those_of_autograd():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 4, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(16, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(RMSNormFunction.apply(x, weight, 1e-5), F.rms_norm(x, (16,), eps=1e-5) * weight)
    assert torch.autograd.gradcheck(lambda x, w: RMSNormFunction.apply(x, w, 1e-5), (x, weight))


@pytest.mark.parametrize("tokens, written_out", [(8, True), (cpu.ROWS + 5, True), (1025, False)])
def test_attention_in_bf16_is_as_near_to_fp32_as_torchs_and_in_fp32_if_it_is_long(tokens, written_out):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, tokens, 16).bfloat16().requires_grad_() for _ in range(3))
    grad = torch.randn(q.shape).bfloat16()

    def with_gradients(attend, *inputs) -> list[torch.Tensor]:
        y = attend(*inputs)
        return [y, *torch.autograd.grad(y, inputs, grad.to(y.dtype))]

    torchs = partial(F.scaled_dot_product_attention, is_causal=True)
    expected = with_gradients(torchs, *(x.detach().float().requires_grad_() for x in (q, k, v)))
    in_bf16 = with_gradients(torchs, q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        ours = with_gradients(partial(fast_attention, causal=True), q, k, v)
    for a, b, exact in zip(ours, in_bf16, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, exact.bfloat16()) or written_out
        assert (a - exact).norm() < 2 * (b - exact).norm()
    with torch.no_grad():
        assert torch.equal(fast_attention(q, k, v, causal=True), (ours if written_out else in_bf16)[0])


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("tokens", [1, 2, cpu.ROWS, 2 * cpu.ROWS - 3])
@pytest.mark.parametrize("autocast", [False, True])  # which leaves fp32 as it is
def test_attention_written_out_is_torchs(tokens, heads, autocast):
    torch.manual_seed(0)
    q = torch.randn(2, 4, tokens, 16, requires_grad=True)
    k, v = (torch.randn(2, heads, tokens, 16, requires_grad=True) for _ in range(2))
    options = {"causal": True, "enable_gqa": heads < 4}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = fast_attention(q, k, v, **options)
    expected = attention(q, k, v, **options)
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(each, (q, k, v), grad) for each in (y, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_gradients_of_attention_with_dropout_are_those_of_autograd(monkeypatch):
    monkeypatch.setattr(cpu, "dropout_mask", lambda weights, p: mask)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.ones(6, 7, 7, dtype=torch.float64).bernoulli_(0.5) * 2
    assert torch.autograd.gradcheck(lambda *x: causal_attention(*x, 0.5), (q, k, v))
    scores = (q @ k.mT / 2).masked_fill(torch.ones(7, 7).triu_(1).bool(), -torch.inf)
    expected = (scores.softmax(-1) * mask.view(2, 3, 7, 7)) @ v
    torch.testing.assert_close(causal_attention(q, k, v, 0.5), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.999999])
def test_dropout_keeps_the_right_share_and_the_mean(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(1001, 1003, dtype=dtype)
    mask = cpu.dropout_mask(x, p)
    assert mask.dtype == dtype and mask.shape == x.shape
    count, kept = x.numel(), (mask > 0).sum().item()
    share = 1 - min(p, 65535 / 65536)
    assert abs(kept - count * share) < 5 * math.sqrt(count * share * (1 - share)) + count / 2**17
    values = mask.unique()
    assert len(values) == 2 and values[0] == 0 and values[1].item() == pytest.approx(1 / share, rel=1e-2)
    rows = (mask > 0).float().mean(1)  # no row, and no quarter of a number, is drawn differently
    assert rows.std() == pytest.approx(math.sqrt(share * (1 - share) / 1003), rel=0.1)
    torch.manual_seed(0)
    assert torch.equal(cpu.dropout_mask(x, p), mask)


def test_a_model_with_dropout_drops_while_training_only():
    config = dataclasses.replace(CASES["qwen3"], dropout=0.5)
    model, faster = make_model(config), make_model(config).use(CPU)
    losses = [gradients(faster)["loss"] for _ in range(2)]
    assert losses[0] == losses[1] != gradients(model)["loss"]  # by the seed, but from other numbers
    torch.testing.assert_close(faster.eval()(IDX), model.eval()(IDX), atol=1e-4, rtol=1e-4)
    checkpointed = make_model(dataclasses.replace(config, gradient_checkpointing=True)).use(CPU)
    faster.train().zero_grad()
    assert distance(gradients(faster), gradients(checkpointed)) == 0  # the same masks are drawn again


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("case", CASES)
def test_a_part_leaves_loss_and_gradients_as_they_are(part, case):
    model, faster = make_model(CASES[case]), make_model(CASES[case]).use(PARTS[part])
    assert distance(gradients(model), gradients(faster)) < 1e-5
    # in bf16 both are as far from fp32 as bf16 is
    faster.zero_grad()
    assert distance(gradients(make_model(CASES[case])), gradients(faster, torch.bfloat16)) < 0.1


@pytest.mark.parametrize("case", ["gpt2", "qwen3"])
def test_without_gradients_a_model_computes_the_same_bits_and_in_bf16_as_exact_values_as_torch(case):
    model, faster = make_model(CASES[case]), make_model(CASES[case]).use(CPU)
    with torch.no_grad():
        exact = model(IDX)
        assert torch.equal(faster(IDX), exact)
        with torch.autocast("cpu", torch.bfloat16):
            assert (faster(IDX) - exact).norm() < 1.5 * (model(IDX) - exact).norm()


def test_torch_compile_sees_one_graph():
    model = make_model(CASES["qwen3"]).use(CPU)
    expected = gradients(model)
    model.zero_grad()
    model.compile(backend="eager", fullgraph=True)
    assert distance(expected, gradients(model)) < 1e-5


FAULTS = """
import ctypes, resource, torch
from nanogpt.ops.cpu import keep_freed_memory

def faults():
    for step in range(20):
        if step == 10:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.ones(2**20) for _ in range(8)]  # 4 MiB each
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

ctypes.CDLL(None).mallopt(-3, 128 * 1024)  # glibc's default, without its adjustment to what has been freed so far
print(faults())
keep_freed_memory()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept_for_the_next_step(zygote, tmp_path):
    (tmp_path / "faults.py").write_text(FAULTS)
    before, after = map(int, zygote.run(tmp_path / "faults.py", cwd=tmp_path).stdout.split())
    assert before > 1000  # the pages of several blocks, each time
    assert after < 100
