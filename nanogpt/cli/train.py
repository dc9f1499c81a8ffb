"""`nanogpt train`, `plan`, `show-batch`, `import-nanogpt` and `launch-check`."""

import os
import platform
import sys
from argparse import ArgumentParser
from pathlib import Path

from nanogpt.cli.options import add_number, add_shared, note, require_recipe, run_recipe, show
from nanogpt.data.files import plural
from nanogpt.run.parser import OneLineParser, within

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


def add_show_batch(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt show-batch`."""
    command.add_argument("RUN", help="an out directory, or one checkpoint in it")
    add_shared(command, "--checkpoint")
    step = within(int, 1, 10**9)
    command.add_argument("--step", type=step, required=True, metavar="N", help="from 1 on")
    command.add_argument("--data", metavar="DIR", help="the data directory; default: the run's")
    add_number(command, "--sequences", int, 1, 2**32, 4, "how many of the step's sequences")


def run_show_batch(args) -> None:
    """Prints the first sequences of a step; they do not depend on the number of processes."""
    import numpy as np

    from nanogpt import checkpoint
    from nanogpt.data.mixture import open_data, read_shares
    from nanogpt.data.tokenizer import load_tokenizer
    from nanogpt.hub.load import choose

    config, trained = checkpoint.load_configs(choose(Path(args.RUN), args.checkpoint))
    directory = args.data or trained.data
    data = open_data(directory, "train", config.block_size, config.vocab_size)
    directories = list(read_shares(directory))
    tokenizer = load_tokenizer(directories[0])
    left = args.sequences
    for index in range(trained.gradient_accumulation_steps):
        number = (args.step - 1) * trained.gradient_accumulation_steps + index
        samples = number * trained.batch_size + np.arange(trained.batch_size)
        starts = data.starts(trained.seed, samples)
        inputs, targets = data.batch(trained.seed, samples[0], trained.batch_size)
        sequences = list(zip(inputs.tolist(), targets.tolist(), strict=True))[:left]
        left -= len(sequences)
        for row, (x, y) in enumerate(sequences):
            where = f"tokens {starts[row]:,} to {starts[row] + len(x):,} of {directory}"
            if len(directories) == 1:  # each directory of a mixture has its own epochs
                where += f", epoch {samples[row] // data.windows_per_epoch + 1}"
            show(f"step {args.step}, micro-batch {index}, sequence {row}: {where}")
            show(tokenizer.decode([*x, y[-1]]))
        if not left:
            break
    total = trained.gradient_accumulation_steps * trained.batch_size
    if args.sequences < total:
        note(f"{args.sequences} of {total} sequences are shown; --sequences={total} shows all")


def add_import_nanogpt(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt import-nanogpt`."""
    command.add_argument("CKPT", help="nanoGPT's ckpt.pt")
    command.add_argument("--data", required=True, metavar="DIR", help="the data it was trained on")
    command.add_argument(
        "--out_dir", default="out/from_nanogpt", metavar="DIR", help="the run to write"
    )
    command.add_argument(
        "--weights_only", action="store_true", help="do not import the optimizer state"
    )


def run_import_nanogpt(args) -> None:
    """Writes nanoGPT's checkpoint as one of ours and prints how to continue with it."""
    from nanogpt.hub.nanogpt import import_checkpoint, resume_command

    data, out_dir = Path(args.data), Path(args.out_dir)
    saved = import_checkpoint(Path(args.CKPT), data, out_dir, args.weights_only)
    show(f"{args.CKPT} is now {saved}\n")
    show(f"next:  nanogpt sample {args.out_dir}")
    show(f"       nanogpt eval {args.out_dir}")
    show(f"       {resume_command(saved)}")


def add_launch_check(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt launch-check`."""
    add_shared(command, "--device", "--precision")
    add_number(command, "--timeout", float, 1, 1e6, 60, "seconds to wait for other processes")


def run_launch_check(args) -> None:
    """Prints what the launcher and the machine resolve to, one line per process.

    Start it as a recipe is started: `accelerate launch … -m nanogpt launch-check`. The processes
    sum their ranks on the device and take a maximum on the CPU, as a run does; raises ValueError
    if they do not form one group, naming the right command.
    """
    import torch
    from accelerate.utils import DistributedType

    from nanogpt.config import TrainConfig
    from nanogpt.run.agree import Peers
    from nanogpt.run.device import environment_of, make_accelerator, set_threads

    config = TrainConfig(
        device=args.device,
        precision=args.precision,
        timeout=args.timeout,
        gradient_accumulation_steps=int(os.environ.get("WORLD_SIZE", 1)),
    )
    accelerator = make_accelerator(config)
    peers = Peers(accelerator, args.timeout)
    processes, rank = accelerator.num_processes, accelerator.process_index
    threads = set_threads(0, processes)
    env = environment_of(accelerator, threads)
    parallel = "one process, no communication"
    if processes > 1:
        sharded = accelerator.distributed_type == DistributedType.FSDP
        model = "one model, sharded over them" if sharded else "a copy of the model on each"
        parallel = f"{processes} processes by {torch.distributed.get_backend()}, {model}"
    versions = f"torch {env['torch']}, accelerate {env['accelerate']}"
    accelerator.print(f"{parallel}; {env['precision']}, {versions}")
    for turn in range(processes):
        if turn == rank:
            device = f"{accelerator.device} ({env['device']}) on {platform.node()}"
            print(f"process {rank}: {device}, {plural(threads, 'thread')}", flush=True)
        accelerator.wait_for_everyone()
    ranks = accelerator.reduce(torch.tensor(rank + 1.0, device=accelerator.device), "sum").item()
    last = peers.largest(rank)[0] + 1
    expected = processes * (processes + 1) / 2
    if (ranks, last) != (expected, processes):
        raise ValueError(
            f"the processes do not add up: {ranks} instead of {expected}, {last} on the CPU"
        )
    accelerator.print(f"the number of sequences in a step must be a multiple of {processes}")
    accelerator.end_training()
