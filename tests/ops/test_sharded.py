"""A sharded model on one process, in a group of its own; two processes are in tests/integration/test_processes.py."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from torch.distributed.fsdp import fully_shard

from nanogpt import GPT, GPTConfig
from nanogpt.model import Ops
from nanogpt.ops import sharded as sharding
from nanogpt.ops.cpu import CPU

# torch 2.6 shards on CUDA only
pytestmark = pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="no FSDP2 on this torch's CPU")

SIZES = {"vocab_size": 65, "block_size": 64, "n_layer": 2, "n_head": 4, "n_embd": 32}
FAMILIES = {
    "gpt2": GPTConfig(**SIZES, bias=True),
    "modern": GPTConfig(**SIZES, norm="rmsnorm", position="rope", mlp="swiglu", qk_norm=True, n_kv_head=2),
}


@pytest.fixture
def group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def accelerator(precision: str, kind=DistributedType.FSDP) -> SimpleNamespace:
    made = SimpleNamespace(distributed_type=kind, mixed_precision=precision, device=torch.device("cpu"))
    made.state = SimpleNamespace(fsdp_plugin=SimpleNamespace(mixed_precision_policy=None))
    made.gradient_state = SimpleNamespace(plugin_kwargs={})
    return made


def sharded(config: GPTConfig, precision: str) -> GPT:
    """A model as Accelerate's `prepare` shards it."""
    torch.manual_seed(0)
    model, how = GPT(config, CPU), accelerator(precision)
    sharding.configure(how, model)
    policy = how.state.fsdp_plugin.mixed_precision_policy
    for module in (*model.h, model.ln_f, model):
        fully_shard(module, mp_policy=policy)
    return model


def autocast(dtype=torch.bfloat16):
    return torch.autocast("cpu", dtype)


def batch(sequences: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(65, (sequences, 65), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:]


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_products_are_in_bf16_and_what_is_between_them_in_fp32(group, config):
    model, got, gave = sharded(config, "bf16"), {}, {}

    def record(name, inputs, output):
        got[name], gave[name] = inputs[0].dtype, output.dtype

    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: record(name, inputs, output))
    with autocast():
        loss = model(*batch(2))
    loss.backward()
    assert loss.dtype == torch.float32
    for name in ("h.0", "h.1", "h.0.ln_1", "h.0.ln_2", "ln_f"):
        assert got[name] == gave[name] == torch.float32, name
    assert gave["wte"] == torch.float32
    for name in ("h.0.attn.c_attn", "h.0.attn.c_proj", "h.1.mlp.c_fc", "h.1.mlp.c_proj"):
        assert gave[name] == torch.bfloat16, name
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_its_loss_and_gradients_are_those_of_autocast(group, config):
    torch.manual_seed(0)
    plain, x, y = GPT(config, CPU), *batch(8)
    with autocast():
        expected = plain(x, y)
    expected.backward()
    model = sharded(config, "bf16")
    with autocast():
        loss = model(x, y)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-3)
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        assert (p.grad - q.grad.full_tensor()).norm() < 0.03 * p.grad.norm() + 1e-4


def test_a_sum_of_losses_in_fp16_does_not_overflow(group):
    x, y = batch(400)
    with autocast(torch.float16):
        loss = sharded(FAMILIES["gpt2"], "fp16")(x, y, reduction="sum")
    assert 65_504 < loss.item() == pytest.approx(y.numel() * 4.174, rel=0.01)


def test_nothing_changes_without_fsdp_and_fp32_needs_no_policy():
    for how in (accelerator("bf16", DistributedType.MULTI_GPU), accelerator("no")):
        model = GPT(FAMILIES["gpt2"])
        sharding.configure(how, model)
        assert model.ops == Ops()
        assert how.state.fsdp_plugin.mixed_precision_policy is None
    assert how.gradient_state.plugin_kwargs == {"sync_each_batch": True}  # with FSDP, in fp32 as well
