"""Runs for the tests with several processes: each line of a JSON list is the flags of one run, trained one by one.

    python tests/integration/runs.py '[{"out_dir": "out/a", "max_iters": 4}]'
    accelerate launch --multi_gpu … tests/integration/runs.py --fsdp '[…]'

One launch for many runs, because a launch takes seconds and a tiny run takes none. `--fsdp` shards the model as
accelerate_configs/fsdp2.yaml does, through Accelerate's own code, which the launcher never reaches without GPUs.
`poison` lists the steps at which the last process alone sees a loss that is not a number; `room` is the number of
sequences that fit into its memory.
"""

import json
import sys
from dataclasses import replace

import accelerate
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

from nanogpt import GPTConfig, TrainConfig
from nanogpt.run import device
from nanogpt.run.main import train_to_the_end
from nanogpt.run.prepare import prepare
from nanogpt.train import Parts, State

MODEL = GPTConfig(block_size=16, n_layer=2, n_head=2, n_embd=32, dropout=0.1, bias=True)
TRAIN = {"data": "data", "seed": 1, "batch_size": 4, "gradient_accumulation_steps": 4, "precision": "fp32"}
TRAIN |= {"device": "auto", "max_iters": 20, "lr_decay_iters": 20, "warmup_iters": 3, "log_interval": 1}
TRAIN |= {"eval_interval": 20}


def sharded(**kwargs):
    """An Accelerator on the CPU that shards as fsdp2.yaml does."""
    accelerator = accelerate.Accelerator(**kwargs)
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
    """Lets a run fail where, after any backward pass, a process has more than its shard of a gradient."""
    backward = parts.accelerator.backward

    def checked(loss):
        backward(loss)
        for name, p in parts.gpt.named_parameters():
            assert isinstance(p, DTensor) and p.grad.to_local().shape == p.to_local().shape, name

    parts.accelerator.backward = checked


def trouble(parts: Parts, state: State, poison: list[int], room: int) -> None:
    """The last process gets a loss that is not a number at some steps, and has room for few sequences."""
    forward = parts.gpt.forward
    last = parts.accelerator.process_index == parts.accelerator.num_processes - 1

    def broken(idx, *args, **kwargs):
        if last and len(idx) > room and parts.gpt.training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        loss = forward(idx, *args, **kwargs)
        return loss * float("nan") if last and parts.gpt.training and state.step in poison else loss

    parts.gpt.forward = broken


if __name__ == "__main__":
    if "--fsdp" in sys.argv:
        device.Accelerator = sharded
    for flags in json.loads(sys.argv[-1]):
        poison, room = flags.pop("poison", []), flags.pop("room", 99)
        model = replace(MODEL, dropout=flags.pop("dropout", MODEL.dropout))
        config, parts, state = prepare(model, TrainConfig(**TRAIN | flags))
        if "--fsdp" in sys.argv:
            check_shards(parts)
        trouble(parts, state, poison, room)
        train_to_the_end(config, parts, state)
