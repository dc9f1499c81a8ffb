"""The loss in chunks against torch's cross-entropy of the whole logits, which `model.py` computes."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanogpt import GPT, GPTConfig
from nanogpt.model import Ops
from nanogpt.ops import loss as loss_module
from nanogpt.ops.loss import chunked_loss

SIZES = {"block_size": 64, "n_layer": 1, "n_head": 2, "n_embd": 32}
LARGE = GPTConfig(vocab_size=50257, n_layer=1)  # GPT-2's vocabulary, width and context


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", 64 * 1024)  # 64 rows of 1024 logits


def make(chunked: bool, **options) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=1000, **SIZES, **options))  # padded to 1024
    if chunked:
        model.use(Ops(loss=chunked_loss))
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Five sequences; the targets of the first and of some positions are ignored."""
    tokens = torch.randint(1000, (5, 65), generator=torch.Generator().manual_seed(1))
    targets = tokens[:, 1:].clone()
    targets[0], targets[3, 5:9] = -1, -1
    return tokens[:, :-1], targets


def step(model: GPT, dtype: torch.dtype | None = None, reduction: str = "mean", scale: float = 1.0):
    """The loss, and all gradients in one vector, divided by `scale`, which the loss is multiplied by."""
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss = model(*batch(), reduction=reduction)
    (loss * scale).backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()]) / scale


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_in_fp32_loss_and_gradients_are_those_of_cross_entropy(reduction, tie):
    loss, grad = step(make(True, tie_embeddings=tie), reduction=reduction)
    expected, expected_grad = step(make(False, tie_embeddings=tie), reduction=reduction)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert (grad - expected_grad).abs().max() < 1e-6 * max(1, expected_grad.abs().max())
    with torch.no_grad():
        assert make(True, tie_embeddings=tie)(*batch(), reduction=reduction).item() == pytest.approx(expected, rel=1e-6)


def test_the_loss_of_each_token_is_that_of_cross_entropy():
    with torch.no_grad():
        each = make(True)(*batch(), reduction="none")
        torch.testing.assert_close(each, make(False)(*batch(), reduction="none"))
    assert each.numel() == batch()[1].numel()


@pytest.mark.parametrize("dtype, scale", [(torch.bfloat16, 1.0), (torch.float16, 2.0**16)])
def test_in_half_precision_it_is_as_exact_as_cross_entropy(dtype, scale):
    exact_loss, exact = step(make(False))
    errors = []
    for chunked in (True, False):
        loss, grad = step(make(chunked), dtype, scale=scale)
        assert loss == pytest.approx(exact_loss, abs=2e-3)
        errors.append((grad - exact).norm())
    assert errors[0] < 1.2 * errors[1]


def test_torch_compile_takes_all_of_it():
    model = make(True)
    expected, expected_grad = step(make(True), torch.bfloat16)
    model.loss = torch.compile(model.loss, backend="aot_eager", fullgraph=True)
    loss, grad = step(model, torch.bfloat16)
    assert loss == pytest.approx(expected, abs=1e-6)
    assert (grad - expected_grad).abs().max() < 1e-6


# torch 2.6 shards on CUDA only
@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="no FSDP2 on this torch's CPU")
@pytest.mark.parametrize("kind", ["copied", "sharded"])
def test_copied_or_sharded_it_is_the_same(kind):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model, (loss, grad) = make(True), step(make(True))
        if kind == "copied":
            found = torch.nn.parallel.DistributedDataParallel(model)(*batch())
        else:
            for module in (*model.h, model):
                fully_shard(module)
            found = model(*batch())
        found.backward()
        whole = [p.grad.full_tensor() if kind == "sharded" else p.grad for p in model.parameters()]
        assert found.item() == pytest.approx(loss, rel=1e-6)
        assert (torch.cat([g.flatten() for g in whole]) - grad).abs().max() < 1e-6
    finally:
        torch.distributed.destroy_process_group()


class Live(TorchDispatchMode):
    """The most bytes that tensors of at least `least` elements take at once, among those made in this context."""

    def __init__(self, least: int):
        super().__init__()
        self.least, self.sizes, self.most = least, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(result) if torch.is_tensor(leaf)):
            storage = tensor.untyped_storage()
            if tensor.numel() >= self.least and storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.most = max(self.most, sum(self.sizes.values()))
                weakref.finalize(storage, self.sizes.pop, storage._cdata)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_less_than_half_of_the_logits_is_held(monkeypatch, dtype):
    """Counted on fake tensors; larger than 2^25 are the logits, a chunk of them, and the head's weight (2^25.2)."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(loss_module, "CHUNK", 2**26)
    most = {}
    for chunked in (True, False):
        with FakeTensorMode():
            model, idx = GPT(LARGE), torch.zeros(12, 1024, dtype=torch.long)
            if chunked:
                model.use(Ops(loss=chunked_loss))
            with Live(2**25) as live:
                with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                    loss = model(idx, idx)
                loss.backward()
            most[chunked] = live.most
    one_copy = 4 * 12 * 1024 * LARGE.padded_vocab_size
    assert most[True] < 0.5 * one_copy and most[False] > 3 * one_copy


@pytest.mark.parametrize(
    "gib, vocab_size, tokens, chunk",
    [
        (0, LARGE.vocab_size, 12 * 1024, 2**26),
        (0, LARGE.vocab_size, 2 * 1024, None),
        (0, 1000, 64 * 1024, None),
        (16, LARGE.vocab_size, 12 * 1024, 2**26),
        (80, LARGE.vocab_size, 12 * 1024, None),  # they all fit
        (80, LARGE.vocab_size, 64 * 1024, 5 * 2**26),
    ],
)
def test_logits_are_chunked_if_they_take_much_of_a_gpus_memory(monkeypatch, gib, vocab_size, tokens, chunk):
    """`gib` is the memory of a faked CUDA device; 0 is any other device."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    chunks, properties = [], SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(loss_module, "CHUNK", 2**26)
    monkeypatch.setattr(loss_module, "cross_entropy", lambda *args: torch.zeros(()))
    monkeypatch.setattr(loss_module.ChunkedLoss, "apply", lambda *args: chunks.append(args[-1]) or torch.zeros(()))
    with FakeTensorMode(), torch.device("cuda" if gib else "cpu"):
        x, weight, bias = (torch.empty(size) for size in ((1, tokens, 1), (vocab_size, 1), (vocab_size,)))
        targets = torch.empty(1, tokens, dtype=torch.long)
    chunked_loss(x, weight, bias, targets, "sum")
    assert chunks == ([] if chunk is None else [chunk])
