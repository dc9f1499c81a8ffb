"""`nanogpt train RECIPE [flags]`: trains a recipe, in this process or in several that the launcher starts."""

import os
import sys
from argparse import ArgumentParser

from nanogpt.cli.options import add_recipe, require_recipe, run_recipe
from nanogpt.run.flags import OneLineParser, within
from nanogpt.run.stop import hangup_is_ignored

LAUNCH = "-m accelerate.commands.launch --multi_gpu --num_machines 1 --mixed_precision no --dynamo_backend no".split()


def add_arguments(command: ArgumentParser) -> None:
    add_processes(command)
    add_recipe(command)


def add_processes(command: ArgumentParser, default: int = 1) -> None:
    what = "number of processes: one per GPU; without a GPU, on the CPU"
    command.add_argument("--processes", type=within(int, 1, 1024), default=default, metavar="N", help=what)


def run(args) -> None:
    """Trains the recipe. For several machines, sharding or a configuration file use `accelerate launch`."""
    anywhere = OneLineParser(add_help=False)  # --processes is accepted after the recipe, too
    add_processes(anywhere, args.processes)
    found, flags = ArgumentParser.parse_known_args(anywhere, args.FLAGS)
    require_recipe(args.RECIPE)
    if found.processes == 1:
        run_recipe(args.RECIPE, flags)
    else:
        launch(args.RECIPE, flags, found.processes)


def launch(recipe: str, flags: list[str], processes: int) -> None:
    """Replaces this process by the launcher. Raises ValueError if the machine has fewer GPUs than processes."""
    import torch

    gpus = torch.cuda.device_count()
    on_cpu = not gpus or "--device=cpu" in "=".join(flags)
    if not on_cpu and processes > gpus:
        raise ValueError(f"--processes={processes}: this machine has {gpus} GPUs; --device=cpu trains on the CPU")
    command = [sys.executable, *LAUNCH, "--main_process_port", "0", "--num_processes", str(processes), recipe, *flags]
    environment = os.environ | ({"ACCELERATE_USE_CPU": "true"} if on_cpu else {})
    if hangup_is_ignored():  # the launcher would handle it all the same
        environment.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGQUIT")
    os.execve(sys.executable, command, environment)
