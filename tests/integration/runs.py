"""Runs for the tests with several processes: each item of a JSON list is the settings of one run, trained one by one.

    python tests/integration/runs.py [--fsdp] '[{"out_dir": "out/a", "max_iters": 4}]'

`--fsdp` shards the model as accelerate_configs/fsdp2.yaml does, through Accelerate's own code, which the launcher never
reaches without GPUs. `model` are changes of the model; with `minimal` recipes/minimal.py trains, and its losses go to
the file `out_dir`. The last process alone meets trouble: `poison` lists the steps at which its loss is not a number,
`room` is the number of sequences that fit into its memory (with `late` into that of the backward pass), `terminate` the
step at whose evaluation it gets a SIGTERM.
With `everywhere` all processes meet it.
"""

import json
import os
import runpy
import signal
import sys
from dataclasses import replace
from pathlib import Path

import accelerate
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

from nanogpt import GPTConfig, TrainConfig, optim
from nanogpt.run import device
from nanogpt.run.errors import user_errors
from nanogpt.run.main import train_to_the_end
from nanogpt.run.prepare import prepare
from nanogpt.train import Parts, State

MODEL = GPTConfig(block_size=16, n_layer=2, n_head=2, n_embd=32, dropout=0.1, bias=True)
TRAIN = {"data": "data", "seed": 1, "batch_size": 4, "gradient_accumulation_steps": 4, "precision": "fp32"}
TRAIN |= {"device": "auto", "threads": 1, "max_iters": 12, "lr_decay_iters": 12, "warmup_iters": 3}
TRAIN |= {"log_interval": 1, "eval_interval": 12}
TROUBLES = ("poison", "room", "terminate", "late")


def sharded(**options):
    """An Accelerator on the CPU that shards as fsdp2.yaml does."""
    accelerator = accelerate.Accelerator(**options)
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Block"],
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    if accelerator.mixed_precision != "no":
        accelerator.state.fsdp_plugin.set_mixed_precision(accelerator.mixed_precision)
    return accelerator


def check_shards(parts: Parts) -> None:
    """Makes a run fail if a process ever holds more than its shard of a gradient."""
    backward = parts.accelerator.backward

    def checked(loss):
        backward(loss)
        for name, p in parts.gpt.named_parameters():
            assert isinstance(p, DTensor) and p.grad.to_local().shape == p.to_local().shape, name

    parts.accelerator.backward = checked


def check_shares(parts: Parts) -> None:
    """Makes a run fail if a process computes more than its share of Muon's matrices, of which a shape has 9 at most."""
    orthogonalize, most = optim.orthogonalize, -(-9 // parts.accelerator.num_processes)

    def checked(x):
        assert len(x) <= most
        return orthogonalize(x)

    optim.orthogonalize = checked


def trouble(
    parts: Parts, state: State, poison=(), room: int = 99, terminate: int | None = None, late: bool = False
) -> None:
    """Makes a process meet what the others do not; see above."""
    forward, whole_split = parts.gpt.forward, parts.val_data.whole_split

    def lack_memory(*ignored):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def troubled(idx, *args, **kwargs):
        if len(idx) > room and parts.gpt.training and not late:
            lack_memory()
        loss = forward(idx, *args, **kwargs)
        return loss * float("nan") if parts.gpt.training and state.step in poison else loss

    def backward_lacks_memory(block, inputs, output):
        if len(output) > room and parts.gpt.training:
            output.register_hook(lack_memory)

    def batches(*args):
        if terminate == state.step:
            os.kill(os.getpid(), signal.SIGTERM)
        yield from whole_split(*args)

    parts.gpt.forward, parts.val_data.whole_split = troubled, batches
    if late:  # after FSDP's own hooks of the block
        parts.gpt.h[0].register_forward_hook(backward_lacks_memory)


def train_minimal(model: GPTConfig, config: TrainConfig) -> None:
    recipes = Path(__file__).parents[2] / "recipes"
    sys.path.insert(0, str(recipes))
    recipe = runpy.run_path(str(recipes / "minimal.py"))
    _, losses = recipe["train"](model, config, accelerate.Accelerator(cpu=True))
    Path(config.out_dir).write_text(json.dumps([loss.item() for loss in losses]))


def train(settings: dict) -> None:
    troubles = {name: settings.pop(name) for name in TROUBLES if name in settings}
    everywhere = settings.pop("everywhere", False)
    model = replace(MODEL, **settings.pop("model", {}))
    if settings.pop("minimal", False):
        return train_minimal(model, TrainConfig(**TRAIN | settings))
    with user_errors():
        config, parts, state = prepare(model, TrainConfig(**TRAIN | settings))
    if parts.sharded:
        check_shards(parts)
    check_shares(parts)
    if parts.accelerator.is_last_process or everywhere:
        trouble(parts, state, **troubles)
    train_to_the_end(config, parts, state)


if __name__ == "__main__":
    optim.SHARED_FROM = 25  # Muon shares tiny matrices too
    if "--fsdp" in sys.argv:
        device.Accelerator = sharded
    for each in json.loads(sys.argv[-1]):
        train(each)
