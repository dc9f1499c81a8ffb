"""Device, processes, precision and threads: what the launcher asked for and the machine has.

`accelerate launch` passes its settings in environment variables, and several combinations silently
train something else than intended. This module checks them and makes the Accelerator.
"""

import atexit
import contextlib
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import accelerate
import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)

import nanogpt
from nanogpt.config import TrainConfig
from nanogpt.model import GPT
from nanogpt.ops import cpu
from nanogpt.run import metrics
from nanogpt.train import logger

PRECISIONS = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}  # Accelerate's names and ours

# Dense bf16 peak of a GPU in TFLOP/s, from its maker's data sheet; fp16 for V100 and T4, which have
# no bf16. The first name whose words are in the device's name is used.
PEAK_TFLOPS = {
    "B200": 2250,
    "GH200": 989,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "MI300X": 1307,
    "A10G": 70,
    "L40S": 362,
    "L4": 121,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71,
    "V100": 125,
    "T4": 65,
}

# Variables of the launcher: the values that are supported, and the message for all others
LAUNCHER = {
    "ACCELERATE_USE_DEEPSPEED": (["false"], "DeepSpeed is not supported: use fsdp2.yaml"),
    "FSDP_VERSION": (["2"], "FSDP version 1 is not supported: use fsdp2.yaml"),
    "ACCELERATE_DYNAMO_BACKEND": (["no"], "dynamo_backend is not supported: use --compile=true"),
    "ACCELERATE_MIXED_PRECISION": ([*PRECISIONS], "mixed_precision must be no, bf16 or fp16"),
}
SEVERAL_ON_A_CPU = (
    "for several processes on a CPU use nanogpt train --processes N, or the launcher as "
    "accelerate_configs/README.md shows"
)

# In one graph: more compile for minutes, and are not bound by the host
MOST_BLOCKS = 24


def peak_flops(device_name: str) -> float | None:
    """Peak bf16 floating-point operations per second of a GPU; None if unknown."""
    for name, peak in PEAK_TFLOPS.items():
        if re.search(rf"\b{name}\b(?! Ti| Laptop)", device_name):
            return peak * 1e12
    return None


def wants_cpu(device: str = "auto") -> bool:
    launcher = os.environ.get("ACCELERATE_USE_CPU", "").lower()
    return device == "cpu" or launcher in ("1", "true", "yes")


def gpu_gib(device: str = "auto") -> float:
    """Memory of the GPU that a run would use, in GiB; 0 if it would run on the CPU."""
    if wants_cpu(device):
        return 0.0
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / 2**30
    if torch.backends.mps.is_available():
        return torch.mps.recommended_max_memory() / 2**30
    return 0.0


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Makes the Accelerator. Raises ValueError if launcher, machine and settings disagree."""
    check_launcher(os.environ)
    world = int(os.environ.get("WORLD_SIZE", 1))
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and not wants_cpu(config.device) and processes_here > gpus:
        raise ValueError(
            f"{processes_here} processes cannot share {gpus} GPUs: give the launcher "
            f"--num_processes {gpus}, for each machine"
        )
    accumulation = config.gradient_accumulation_steps
    if accumulation % world:
        raise ValueError(
            f"gradient_accumulation_steps={accumulation} counts micro-batches over all processes: "
            f"with {world} processes choose {world}, {2 * world}, {3 * world}, …"
        )
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=mixed_precision(config),
        # as a plugin, because an environment variable of the launcher overrides the plain argument
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            accumulation // world, sync_with_dataloader=False
        ),
        log_with=metrics.available(config.report_to) or None,
        project_dir=config.out_dir,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(seconds=config.timeout)),
            # no second copy of the gradients
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        ],
    )
    if accelerator.num_processes != world:
        raise ValueError(
            f"the launcher started {world} processes, but each trains on its own: "
            f"{SEVERAL_ON_A_CPU}"
        )
    if config.device not in ("auto", accelerator.device.type):
        raise ValueError(
            f"device={config.device}, but torch or the launcher chose {accelerator.device.type}: "
            "leave --device out"
        )
    if world > 1:
        atexit.register(leave_group)
    return accelerator


def check_launcher(env: Mapping[str, str]) -> None:
    """Raises ValueError for what the launcher sets in the environment but no run here supports."""
    for variable, (fine, problem) in LAUNCHER.items():
        if env.get(variable, fine[0]).lower() not in fine:
            raise ValueError(f"the launcher's {problem}")
    # MASTER_ADDR is set if it was asked for several processes; without WORLD_SIZE it started one
    if "ACCELERATE_MIXED_PRECISION" in env and "MASTER_ADDR" in env and "WORLD_SIZE" not in env:
        raise ValueError(
            f"the launcher was asked for several processes, but started one: {SEVERAL_ON_A_CPU}"
        )


def leave_group() -> None:
    """Leaves all process groups at exit: gloo's threads, if still there, may abort the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def share_batches(config: TrainConfig, processes: int) -> TrainConfig:
    """The same step in micro-batches that `processes` can share, if they cannot as it is.

    If no smaller micro-batch divides, a default accumulation of 1 becomes one for each process.
    """
    accumulation = config.gradient_accumulation_steps
    if accumulation % processes == 0:
        return config
    sequences = accumulation * config.batch_size
    for count in range(processes, sequences + 1, processes):
        if sequences % count == 0:
            size = sequences // count
            return replace(config, batch_size=size, gradient_accumulation_steps=count)
    return replace(config, gradient_accumulation_steps=processes) if accumulation == 1 else config


def mixed_precision(config: TrainConfig) -> str:
    """Accelerate's name for the precision: the settings', the launcher's or the device's."""
    if config.precision != "auto":
        return "no" if config.precision == "fp32" else config.precision
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if torch.cuda.is_available() and not wants_cpu(config.device):
        return "fp16" if launcher == "fp16" else cuda_precision()
    if launcher != "no":
        return launcher
    return "bf16" if cpu_computes_in_bf16() and gpu_gib(config.device) == 0 else "no"


def cuda_precision() -> str:
    """The fastest precision of the GPU, by Accelerate's name.

    By compute capability: bf16 from 8.0 (Ampere) on, fp16 from 7.0 (Volta) on, else fp32. torch
    emulates bf16 on older ones, several times slower than fp16, and does not compile it.
    """
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp16" if torch.cuda.get_device_capability() >= (7, 0) else "no"


def cpu_computes_in_bf16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether this CPU has bf16 instructions: matmuls take a fifth of fp32's time (LOG.md)."""
    file = Path(cpuinfo)  # only Linux has it
    return file.is_file() and bool({"avx512_bf16", "amx_bf16"} & {*file.read_text().split()})


def set_up(config: TrainConfig, accelerator: Accelerator) -> dict:
    """Sets threads, memory and determinism of this process. Returns `environment_of` it."""
    if config.deterministic:  # only operators that give the same bits every time, also on CUDA
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True)
        # no code here reads uninitialized memory
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
    if accelerator.device.type == "cpu":
        cpu.keep_freed_memory()
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or wants_cpu(config.device)
        if Path("/proc/driver/nvidia/version").exists() and not hidden:
            logger.info(
                f"training on the CPU: torch {torch.__version__} does not find this machine's "
                "NVIDIA GPU: install a torch with CUDA that suits its driver, or update the driver"
            )
    # matmuls that stay in fp32 on CUDA use TF32, as in nanoGPT
    torch.set_float32_matmul_precision("high" if accelerator.device.type == "cuda" else "highest")
    return environment_of(accelerator, set_threads(config.threads, accelerator.num_processes))


def set_threads(wanted: int, processes: int) -> int:
    """Sets and returns the CPU threads of this process.

    0 means OMP_NUM_THREADS, or an equal share of the cores. Launchers set OMP_NUM_THREADS=1 by
    themselves, which would leave the other cores idle: from them 1 is ignored.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if not wanted and asked.isdecimal():
        launched = os.environ.keys() & {"ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"}
        wanted = 0 if asked == "1" and launched else int(asked)
    if not wanted:
        has_affinity = hasattr(os, "sched_getaffinity")
        logical = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
        cores = min(logical, psutil.cpu_count(logical=False) or logical)
        wanted = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", processes)))
    torch.set_num_threads(wanted)
    return wanted


def free_memory() -> int:
    """Free memory of the machine in bytes, within the container's limit if there is one."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2; "max" is not a number
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return free


def environment_of(accelerator: Accelerator, threads: int) -> dict:
    """Versions and hardware, on which results depend besides the settings; for config.json."""
    device = accelerator.device
    packages = (nanogpt, torch, accelerate, np)
    return {package.__name__: str(package.__version__) for package in packages} | {
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": accelerator.num_processes,
        "threads": threads,
        "precision": PRECISIONS[accelerator.mixed_precision],
    }


def compile_model(model: GPT, whole: bool) -> None:
    """Compiles the model in place, at its first call; parameters keep their names.

    `whole` is one graph, with fewer launches for the host. Otherwise each block and the loss are
    compiled, and all blocks share one compilation. What happens between them stays outside: FSDP
    gathers the next one, DDP sums gradients. Each shape has graphs of its own (dynamic=False).
    """
    if whole and len(model.h) <= MOST_BLOCKS:
        model.compile(dynamic=False)
        return
    # DDP's gradients are ready block by block anyway; otherwise it cuts each block's graph in two
    torch._dynamo.config.optimize_ddp = False  # type: ignore[attr-defined]
    for block in model.h:
        block.forward = torch.compile(block.forward, dynamic=False)
    model.loss = torch.compile(model.loss, dynamic=False)
