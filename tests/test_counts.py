"""What a step makes the host wait for, and what it copies: counted among the operators that torch dispatches.

Waits are looked for on the meta device, which has no data: whatever asks for a value there is an error, as on a GPU it
would be a wait. It stands for CUDA, whose tensors a torch without CUDA cannot even imitate.
"""

import re
import sys
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import curve
from packaging.version import Version
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanogpt import GPT, GPTConfig, TrainConfig
from nanogpt.ops import loss as loss_module
from nanogpt.optim import make_optimizers
from nanogpt.run import console, device
from nanogpt.train import Tally, log_is_due

WAITS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal")
TINY = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}
FAMILIES = {"gpt2": GPTConfig(**TINY, dropout=0.1), "modern": GPTConfig.modern(**TINY)}


class Operators(TorchDispatchMode):
    """Counts the operators that let the host wait for `device`, and casts of tensors of so many elements, by dtype."""

    def __init__(self, device: str = "cpu", elements: int = 0):
        super().__init__()
        self.device, self.elements, self.waits, self.casts = device, elements, Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)]
        devices = {tensor.device.type for tensor in tensors}
        moved = name == "copy_" and len(devices) > 1
        moved |= name == "_to_copy" and torch.device(kwargs.get("device") or self.device).type != self.device
        if self.device in devices and (name in WAITS or moved):
            self.waits[name] += 1
        if name == "_to_copy" and tensors[0].numel() == self.elements:
            self.casts[kwargs.get("dtype")] += 1
        return func(*args, **kwargs)


@pytest.fixture
def on_meta(make_run, monkeypatch):
    """Makes a run that has begun, all of whose tensors are on the meta device."""
    monkeypatch.setattr(console, "EVERY", float("inf"))  # a line of progress every ten seconds shows the loss
    # the fused AdamW computes shapes there, but is refused
    adam = sys.modules["torch.optim.adam"]  # torch.optim deletes the name
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *args, **options: None)

    def make(config: GPTConfig, **settings):
        run = make_run(config, max_iters=20, log_interval=10, **settings)
        run.rehearse()
        run.parts.device = torch.device("meta")
        run.gpt.to(run.device)
        run.parts.optimizers = make_optimizers(run.gpt, run.config)
        run.parts.tally = Tally(run.device, run.state)
        run.interrupts.begin()
        return run

    return make


@pytest.mark.skipif(Version(torch.__version__) < Version("2.13"), reason="torch 2.6 has no fused AdamW on meta tensors")
@pytest.mark.parametrize("family, optimizer", [("gpt2", "adamw"), ("modern", "muon")])
def test_between_two_log_lines_the_host_waits_for_nothing(on_meta, family, optimizer):
    run = on_meta(FAMILIES[family], optimizer=optimizer, gradient_accumulation_steps=2)
    with Operators("meta") as operators:
        for _ in range(9):
            run.step()
            run.interrupts.check_step(run.config, run.parts, run.state)
        run.step()
    assert log_is_due(run.config, run.state.step) and not operators.waits
    with pytest.raises(RuntimeError, match="meta"):  # the line itself needs values
        run.log()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision, casts", [("fp32", {}), ("bf16", {torch.float32: 1, torch.bfloat16: 1})])
def test_logits_are_cast_once_and_their_gradient_once(family, precision, casts):
    """Under autocast: to fp32 for the loss, and the gradient back; nothing else as large is copied."""
    model = GPT(replace(FAMILIES[family], vocab_size=1000))
    idx = torch.zeros(3, 16, dtype=torch.long)
    with Operators("cpu", elements=3 * 16 * model.config.padded_vocab_size) as operators:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(idx, idx)
        loss.backward()
    assert operators.casts == casts


@pytest.mark.parametrize("whole", [False, True])  # as on a CPU or several processes; on a single GPU
@pytest.mark.parametrize("family, checkpointing", [("gpt2", False), ("modern", True)])
def test_compiled_a_run_has_one_graph_for_each_size_of_window_and_loses_the_same(
    make_run, monkeypatch, tmp_path, family, checkpointing, whole
):
    shapes, compile_model = [], device.compile_model

    def backend(graph: torch.fx.GraphModule, inputs: list):
        tensors = [x for x in inputs if torch.is_tensor(x)]
        states = [x for x in tensors if x.ndim == 3 and x.size(-1) == config.n_embd]
        shapes.extend(tuple(x.shape) for x in ([x for x in tensors if x.dtype == torch.long] if whole else states))
        assert not any(isinstance(x, torch.SymInt) for x in inputs)
        return graph.forward

    monkeypatch.setattr(device, "compile_model", lambda model, **_: compile_model(model, whole=whole))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    torch.compiler.reset()
    config = replace(FAMILIES[family], n_layer=1, dropout=0.0, gradient_checkpointing=checkpointing)
    settings = {"max_iters": 6, "eval_interval": 2, "eval_iters": 2, "log_interval": 1, "batch_size": 4}
    settings |= {"short_block_iters": 3, "short_block_size": 8, "precision": "bf16"}
    losses = []
    for compiled in ("true", "false"):
        run = make_run(config, compile=compiled, out_dir=str(tmp_path / compiled), **settings)
        run.train()
        losses.append(curve(run.out_dir, "train_loss") | curve(run.out_dir))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and len(losses[0]) == 7
    # tokens and targets, or block and loss, for short and whole windows; evaluations are not compiled
    sizes = ((8, 8), (4, 16)) if whole else ((8, 8, config.n_embd), (4, 16, config.n_embd))
    assert Counter(shapes) == dict.fromkeys(sizes, 2)


VIEWS = ("split", "split_with_sizes", "view", "_unsafe_view", "expand", "transpose", "detach", "select", "slice")


class Launches(TorchDispatchMode):
    """Counts the operators that compute something, each a kernel that the host launches or more."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in VIEWS and not name.startswith("_record_function"):
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def test_a_step_of_muon_launches_one_operator_a_matrix_and_else_some_for_each_shape():
    counts = []
    for n_layer in (6, 12):
        with torch.device("meta"):
            model = GPT(replace(FAMILIES["modern"], vocab_size=65, n_layer=n_layer))
        muon = make_optimizers(model, TrainConfig(optimizer="muon"), torch.bfloat16)[0]
        muon.found_inf = torch.zeros((), device="meta")  # a step that may have to be skipped
        for _ in range(2):
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            with Launches() as launches:
                muon.step()
        counts.append(launches.count)
    matrices = 6 * 4
    assert counts[1] - counts[0] == Counter({"where": matrices})
    # three shapes, each of 5 iterations of 3 matmuls
    assert counts[0]["bmm"] + counts[0]["baddbmm"] == 3 * 15
    assert counts[0].total() < 6 * matrices


class Written(Exception):
    """Raised with the code that Inductor has written, in place of compiling it."""


@pytest.fixture
def inductor_code(monkeypatch):
    """The code that Inductor writes for a function's forward pass on a CPU; nothing compiles or runs it."""
    from torch._inductor import config
    from torch._inductor.graph import GraphLowering

    def stop(code: str) -> None:
        raise Written(code)

    monkeypatch.setattr(GraphLowering, "save_output_code", staticmethod(stop))

    def code(function, *args) -> str:
        torch.compiler.reset()
        # simdlen: otherwise it compiles programs to see what the CPU can do
        with config.patch({"cpp.simdlen": 1}), pytest.raises(Exception, match="Written") as error:
            torch.compile(function, dynamic=False)(*args)
        return str(error.value)

    return code


def test_compiled_the_loss_in_chunks_makes_no_large_buffer_in_fp32(inductor_code, monkeypatch):
    """Neither logits, nor a sum of the weight's gradient that each chunk would rewrite."""
    rows, V, C = 64, 1024, 32
    monkeypatch.setattr(loss_module, "CHUNK", rows * V)
    x, weight = torch.randn(3, rows, C, requires_grad=True), torch.randn(V, C, requires_grad=True)
    targets = torch.zeros(3, rows, dtype=torch.long)

    def loss(x, weight, targets):
        with torch.autocast("cpu", torch.bfloat16):
            return loss_module.chunked_loss(x, weight, torch.zeros(V), targets)

    code = inductor_code(loss, x, weight, targets)
    buffers = re.findall(r"empty_strided_cpu\(\((\d+), (\d+)\), \(.*?\), torch\.(\w+)\)", code)
    large = {(int(n), int(m), dtype) for n, m, dtype in buffers if int(n) * int(m) >= V * C}
    assert large == {(rows, V, "bfloat16"), (V, C, "bfloat16")}
