"""What a step makes the host wait for, and what it copies: counted among the operators that torch dispatches.

Waits are looked for on the meta device, which has no data: whatever asks for a value there is an error, as on a GPU it
would be a wait. It stands for CUDA, whose tensors a torch without CUDA cannot even imitate.
"""

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

from nanogpt import GPT, GPTConfig
from nanogpt.optim import make_optimizers
from nanogpt.run import console
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


@pytest.mark.parametrize("family, checkpointing", [("gpt2", False), ("modern", True)])
def test_compiled_a_run_has_one_graph_for_each_size_of_window_and_loses_the_same(
    make_run, monkeypatch, tmp_path, family, checkpointing
):
    shapes = []

    def backend(graph: torch.fx.GraphModule, inputs: list):
        shapes.extend(tuple(x.shape) for x in inputs if torch.is_tensor(x) and x.ndim == 3)
        assert not any(isinstance(x, torch.SymInt) for x in inputs)
        return graph.forward

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
    # block and loss, for short and whole windows; evaluations of two other sizes are not compiled
    assert Counter(shapes) == {(8, 8, config.n_embd): 2, (4, 16, config.n_embd): 2}
