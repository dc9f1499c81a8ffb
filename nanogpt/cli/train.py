"""`nanogpt train`, `plan` and `import-nanogpt`."""

import os
import shlex
import sys
from argparse import ArgumentParser
from pathlib import Path

from nanogpt.cli.options import add_number, add_shared, require_recipe, run_recipe, show
from nanogpt.run.parser import OneLineParser

LAUNCH = (
    "-m accelerate.commands.launch --multi_gpu --num_machines 1 "
    "--mixed_precision no --dynamo_backend no --main_process_port 0"
)


def add_train(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt train`."""
    add_processes(command, 1)
    add_shared(command, "RECIPE", "FLAGS")


def add_processes(command: ArgumentParser, default: int) -> None:
    """Adds --processes."""
    count = "number of processes: one per GPU; without a GPU, on the CPU"
    add_number(command, "--processes", int, 1, 1024, default, count)


def run_train(args) -> None:
    """Trains a recipe in this process, or in several that the launcher starts on this machine.

    For several machines, sharding or a configuration file use `accelerate launch`.
    """
    after_recipe = OneLineParser(add_help=False)  # --processes is accepted there, too
    add_processes(after_recipe, args.processes)
    found, flags = ArgumentParser.parse_known_args(after_recipe, args.FLAGS)
    require_recipe(args.RECIPE)
    if found.processes == 1:
        run_recipe(args.RECIPE, flags)
    else:
        launch(args.RECIPE, flags, found.processes)


def launch(recipe: str, flags: list[str], processes: int) -> None:
    """Replaces this process with the launcher. Raises ValueError for more processes than GPUs."""
    import torch

    from nanogpt.run.stop import hangup_is_ignored

    gpus = torch.cuda.device_count()
    on_cpu = not gpus or "--device=cpu" in "=".join(flags)
    if not on_cpu and processes > gpus:
        raise ValueError(
            f"--processes={processes}: this machine has {gpus} GPUs; --device=cpu trains on the CPU"
        )
    words = [sys.executable, *LAUNCH.split(), "--num_processes", str(processes), recipe, *flags]
    environment = dict(os.environ)
    if on_cpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    if hangup_is_ignored():  # under nohup; the launcher would handle SIGHUP all the same
        environment.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGQUIT")
    os.execve(sys.executable, words, environment)


def add_plan(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt plan`."""
    add_shared(command, "--json", "RECIPE", "FLAGS")


def run_plan(args) -> None:
    """Runs a recipe with --dry_run."""
    require_recipe(args.RECIPE)
    json = ["--json"] if args.json else []
    run_recipe(args.RECIPE, [*json, "--dry_run", *args.FLAGS])


def add_import_nanogpt(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt import-nanogpt`."""
    command.add_argument("CKPT", help="nanoGPT's ckpt.pt")
    command.add_argument("--data", required=True, metavar="DIR", help="the data it was trained on")
    command.add_argument(
        "--out_dir", default="out/from_nanogpt", metavar="DIR", help="the run to write"
    )


def run_import_nanogpt(args) -> None:
    """Writes nanoGPT's checkpoint as one of ours and prints how to continue with it."""
    from nanogpt.hub.nanogpt import import_checkpoint

    saved = import_checkpoint(Path(args.CKPT), Path(args.data), Path(args.out_dir))
    show(f"{args.CKPT} is now {saved}\n")
    show(f"next:  nanogpt sample {args.out_dir}")
    show(f"       nanogpt eval {args.out_dir}")
    settings = f"--config={args.out_dir}/config.json", f"--out_dir={args.out_dir}", "--resume=auto"
    show(f"       python recipes/shakespeare_nanogpt.py {shlex.join(settings)}")
