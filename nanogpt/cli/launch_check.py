"""`nanogpt launch-check`: what the launcher resolves to, without training."""

import os
import platform
from argparse import ArgumentParser

import torch
from accelerate.utils import DistributedType

from nanogpt.cli.options import add_device
from nanogpt.config import TrainConfig
from nanogpt.run.agree import Peers
from nanogpt.run.device import environment_of, make_accelerator, set_threads
from nanogpt.run.flags import within


def add_arguments(command: ArgumentParser) -> None:
    add_device(command)
    command.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="of a run")
    command.add_argument(
        "--timeout", type=within(float, 1, 1e6), default=60, metavar="S", help="seconds to wait for other processes"
    )


def run(args) -> None:
    """To be started as a recipe is: `accelerate launch … -m nanogpt launch-check`."""
    check(args.device, args.precision, args.timeout)


def check(device: str, precision: str, timeout: float) -> None:
    """Prints what the launcher and the machine resolve to, a line for each process, and lets the processes add up.

    They add up on the device and in the group on the CPU, as in a run. Raises ValueError, naming the right command,
    where they do not belong together.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    config = TrainConfig(device=device, precision=precision, timeout=timeout, gradient_accumulation_steps=world)
    accelerator = make_accelerator(config)
    peers = Peers(accelerator, timeout)
    threads = set_threads(0, accelerator.num_processes)
    env = environment_of(accelerator, threads)
    parallel = "one process, no communication"
    if accelerator.num_processes > 1:
        backend = torch.distributed.get_backend()
        how = {DistributedType.FSDP: "one model, sharded over them"}
        parallel = (
            f"{world} processes by {backend}, {how.get(accelerator.distributed_type, 'a copy of the model on each')}"
        )
    accelerator.print(f"{parallel}; {env['precision']}, torch {env['torch']}, accelerate {env['accelerate']}")
    for rank in range(accelerator.num_processes):  # one after the other
        if rank == accelerator.process_index:
            host = platform.node()
            print(f"process {rank}: {accelerator.device} ({env['device']}) on {host}, {threads} threads", flush=True)
        accelerator.wait_for_everyone()
    total = accelerator.reduce(torch.tensor(accelerator.process_index + 1.0, device=accelerator.device), "sum").item()
    expected = accelerator.num_processes * (accelerator.num_processes + 1) / 2
    last = peers.largest(accelerator.process_index)[0] + 1
    if (total, last) != (expected, accelerator.num_processes):
        raise ValueError(f"the processes do not add up: {total} instead of {expected}, {last} on the CPU")
    accelerator.print(f"the sequences of a step must be a multiple of {accelerator.num_processes}, to be shared")
    accelerator.end_training()
