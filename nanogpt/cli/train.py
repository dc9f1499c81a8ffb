"""`nanogpt train`, `plan` and `import-nanogpt`."""

import os
import runpy
import shlex
import sys
from argparse import ArgumentParser
from pathlib import Path

import torch

from nanogpt.checkpoint import load_configs, step_of
from nanogpt.cli.arguments import ARGUMENTS
from nanogpt.cli.options import show
from nanogpt.hub.nanogpt import import_checkpoint
from nanogpt.run.parser import OneLineParser
from nanogpt.run.stop import hangup_is_ignored

LAUNCH = (
    "-m accelerate.commands.launch --multi_gpu --num_machines 1 "
    "--mixed_precision no --dynamo_backend no --main_process_port 0"
)


def run_train(args) -> None:
    """Trains a recipe in this process, or in several that the launcher starts on this machine.

    For several machines, sharding or a configuration file use `accelerate launch`.
    """
    after_recipe = OneLineParser(add_help=False)  # --processes is accepted there, too
    flag, options = ARGUMENTS["train"][0]
    after_recipe.add_argument(flag, **options | {"default": args.processes})
    found, flags = ArgumentParser.parse_known_args(after_recipe, args.FLAGS)
    require_recipe(args.RECIPE)
    if found.processes == 1:
        run_recipe(args.RECIPE, flags)
    else:
        launch(args.RECIPE, flags, found.processes)


def require_recipe(recipe: str) -> None:
    """Raises ValueError unless it is a Python file."""
    if Path(recipe).suffix != ".py" or not Path(recipe).is_file():
        raise ValueError(f"{recipe} is not a .py file: name one, such as recipes/shakespeare.py")


def run_recipe(recipe: str, flags: list[str]) -> None:
    """Runs a recipe in this process, as `python RECIPE flags` would."""
    sys.argv = [recipe, *flags]
    sys.path.insert(0, str(Path(recipe).resolve().parent))
    runpy.run_path(recipe, run_name="__main__")


def launch(recipe: str, flags: list[str], processes: int) -> None:
    """Replaces this process with the launcher. Raises ValueError for more processes than GPUs."""
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


def run_plan(args) -> None:
    """Runs a recipe with --dry_run."""
    require_recipe(args.RECIPE)
    json = ["--json"] if args.json else []
    run_recipe(args.RECIPE, [*json, "--dry_run", *args.FLAGS])


def run_import_nanogpt(args) -> None:
    """Writes nanoGPT's checkpoint as one of ours and prints how to continue with it."""
    saved = import_checkpoint(Path(args.CKPT), Path(args.data), Path(args.out_dir))
    show(f"{args.CKPT} is now {saved}\n")
    show(f"next:  nanogpt sample {args.out_dir}")
    show(f"       nanogpt eval {args.out_dir}")
    flags = [f"--config={args.out_dir}/config.json", f"--out_dir={args.out_dir}", "--resume=auto"]
    step = step_of(saved)
    if step >= load_configs(saved)[1].max_iters:  # it was complete
        flags.append(f"--max_iters={2 * step}")
    show(f"       python recipes/shakespeare_nanogpt.py {shlex.join(flags)}")
