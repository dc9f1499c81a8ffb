"""Device, processes, precision and threads: what the launcher asked for and the machine has.

`accelerate launch` passes its settings in environment variables, and several combinations silently
train something else than intended. This module checks them and makes the Accelerator.
"""

import atexit
import math
import os
import platform
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import MethodType

import accelerate
import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

import nanogpt
from nanogpt.config import TrainConfig
from nanogpt.model import GPT
from nanogpt.ops import cpu, decode
from nanogpt.run import metrics
from nanogpt.train import logger, tokens_per_step

PRECISIONS = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}  # Accelerate's names and ours

# Dense bf16 peak of a GPU in TFLOP/s with sums in fp32, from its maker's data sheet; fp16 for V100
# and T4, which have no bf16. The first name whose words are in the device's name is used.
PEAK_TFLOPS = {
    "B200": 2250,
    "H100 PCIe": 756,
    "H100 NVL|H200 NVL": 835,
    "GH200|H200|H100|H800": 989,
    "H20": 148,
    "A100|A800": 312,
    "MI300X": 1307,
    "A10G": 70,
    "L40S": 362,
    "L4": 121,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 4080": 97.5,
    "RTX 4070": 58.3,
    "RTX 3090": 71,
    "RTX 3060": 25.5,
    "V100": 125,
    "T4": 65,
}

# Variables of the launcher, and the values that are supported
LAUNCHER = {
    "ACCELERATE_USE_DEEPSPEED": ["false"],
    "FSDP_VERSION": ["2"],
    "FSDP_ACTIVATION_CHECKPOINTING": ["false"],  # renames parameters: --gradient_checkpointing
    "ACCELERATE_DYNAMO_BACKEND": ["no"],
    "ACCELERATE_MIXED_PRECISION": [*PRECISIONS],
}

CGROUP = "/sys/fs/cgroup"  # limits of a container
NVIDIA_DRIVER = "/proc/driver/nvidia/version"
LONG_RUN = 5e12  # operations from which compiling pays on a CPU: 20 seconds on two cores
MOST_BLOCKS = 24  # in one graph: more compile for minutes, and are not bound by the host


def peak_flops(device_name: str) -> float | None:
    """Peak bf16 floating-point operations per second of a GPU; None if unknown."""
    for name, peak in PEAK_TFLOPS.items():
        if re.search(rf"\b({name})\b(?! Ti| Laptop| SUPER| D\b| PCIe)", device_name):
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
    for variable, supported in LAUNCHER.items():
        value = os.environ.get(variable, supported[0])
        if value.lower() not in supported:
            raise ValueError(f"{variable}={value} is not supported: see accelerate_configs")
    world = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and not wants_cpu(config.device) and local > gpus:
        raise ValueError(f"{local} processes cannot share {gpus} GPUs: --num_processes {gpus}")
    if world == 1:  # an earlier run of this process may have had another precision or device
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=mixed_precision(config),
        log_with=metrics.available(config.report_to) or None,
        project_dir=config.out_dir,
        kwargs_handlers=[
            accelerate.InitProcessGroupKwargs(timeout=timedelta(seconds=config.timeout)),
            # no second copy of the gradients
            accelerate.DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        ],
    )
    # MASTER_ADDR is set if the launcher was asked for several, which it may not have started
    one_of_several = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if accelerator.num_processes != world or (one_of_several and "WORLD_SIZE" not in os.environ):
        raise ValueError(
            "the launcher started only one process, or each would train alone: on GPUs give it "
            "--multi_gpu, without GPUs use nanogpt train RECIPE --processes=N, for a single "
            "process unset MASTER_ADDR"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        raise ValueError("fp16 needs a GPU: choose --precision=fp32, or bf16")
    if config.device not in ("auto", accelerator.device.type):
        found = f"torch or the launcher chose {accelerator.device.type}"
        raise ValueError(f"device={config.device}, but {found}: check both, or leave --device out")
    if world > 1:
        # gloo's threads, if still there at exit, may abort the process
        atexit.register(accelerator.state.destroy_process_group)
    return accelerator


def share_batches(config: TrainConfig, processes: int) -> TrainConfig:
    """The same step in smaller micro-batches, if `processes` cannot share it as it is.

    If they do not divide it evenly, a default accumulation of 1 becomes one for each process.
    """
    asked = config.gradient_accumulation_steps
    shared = math.lcm(asked, processes)
    if shared == asked:
        return config
    size, rest = divmod(config.batch_size, shared // asked)
    if rest and asked == 1:
        size = config.batch_size
    elif rest:
        raise ValueError(f"gradient_accumulation_steps={asked}: take a multiple of {processes}")
    now = f"for {processes} processes --batch_size={size} --gradient_accumulation_steps={shared}"
    logger.info(f"note: {now}, a step of {size * shared:,} sequences")
    return replace(config, batch_size=size, gradient_accumulation_steps=shared)


def mixed_precision(config: TrainConfig) -> str:
    """Accelerate's name for the precision: the settings', the launcher's or the device's."""
    if config.precision != "auto":
        return "no" if config.precision == "fp32" else config.precision
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if torch.cuda.is_available() and not wants_cpu(config.device):
        precision = "fp16" if launcher == "fp16" else cuda_precision()
        if launcher == "bf16" != precision:
            logger.info(f"note: {PRECISIONS[precision]}, because this GPU only emulates bf16")
        return precision
    if launcher != "no":
        return launcher
    return "bf16" if cpu_computes_in_bf16() and gpu_gib(config.device) == 0 else "no"


def cuda_precision() -> str:
    """The fastest precision of the GPU, by Accelerate's name: fp32 before Volta."""
    # torch emulates bf16 before Ampere, several times slower than fp16, and does not compile it
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp16" if torch.cuda.get_device_capability() >= (7, 0) else "no"


def cpu_computes_in_bf16() -> bool:
    """Whether this CPU has bf16 instructions: matmuls take a fifth of fp32's time (LOG.md)."""
    file = Path("/proc/cpuinfo")  # only Linux has it
    return file.is_file() and bool({"avx512_bf16", "amx_bf16"} & {*file.read_text().split()})


def set_up(config: TrainConfig, accelerator: Accelerator) -> dict:
    """Sets threads, memory and determinism of this process.

    Returns versions and hardware, on which results depend besides the settings; for config.json.
    """
    device = accelerator.device
    torch.use_deterministic_algorithms(config.deterministic)  # the same bits every time
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        # no code here reads uninitialized memory
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cpu":
        cpu.keep_freed_memory()
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or wants_cpu(config.device)
        if Path(NVIDIA_DRIVER).exists() and not hidden:
            logger.info(
                f"training on the CPU: torch {torch.__version__} does not find this machine's "
                "NVIDIA GPU: install a torch with CUDA that suits its driver, or update the driver"
            )
    # matmuls that stay in fp32 on CUDA use TF32, as in nanoGPT
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    torch.set_num_threads(config.threads or default_threads(accelerator.num_processes))
    packages = (nanogpt, torch, accelerate, np)
    return {package.__name__: str(package.__version__) for package in packages} | {
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "precision": PRECISIONS[accelerator.mixed_precision],
    }


def default_threads(processes: int) -> int:
    """CPU threads of each process: OMP_NUM_THREADS, or an equal share of the cores.

    Launchers set OMP_NUM_THREADS=1 by themselves, which would leave the other cores idle: from
    them 1 is ignored.
    """
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    asked = int(text) if text.isdecimal() else 0
    launched = os.environ.keys() & {"ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"}
    if asked > 1 or (asked == 1 and not launched):
        return asked
    has_affinity = hasattr(os, "sched_getaffinity")
    logical = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    cores = min(logical, psutil.cpu_count(logical=False) or logical)
    with suppress(OSError, ValueError):  # no cgroup v2, or "max", which is not a number
        quota, period = map(int, Path(CGROUP, "cpu.max").read_text().split())  # of the container
        cores = min(cores, max(1, quota // period))
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", processes)))


def should_compile(config: TrainConfig, model: GPT, device: torch.device) -> bool:
    """Whether to compile the model: what the settings say, or on a device where it saves time.

    On a CPU, in the modern family without dropout, a step takes a sixth less time (LOG.md), but
    compiling takes some seconds, which short runs do not get back.
    """
    if config.compile != "auto":
        return config.compile == "true"
    if device.type != "cpu":
        return device.type == "cuda"
    c = model.config
    flops = config.max_iters * tokens_per_step(config, c) * model.flops_per_token()
    is_long = config.train_minutes >= 0.5 if config.train_minutes else flops > LONG_RUN
    suits = c.norm == "rmsnorm" and not c.dropout
    return is_long and suits and sys.platform == "linux" and decode.has_compiler()


def compile_model(model: GPT, whole: bool) -> None:
    """Compiles the model in place, at its first call; parameters keep their names.

    `whole` is one graph, with fewer launches for the host. Otherwise each block and the loss are
    compiled, and all blocks share one compilation, which is faster on a CPU. What happens between
    them stays outside: FSDP gathers the next one, DDP sums gradients. Each shape has graphs of its
    own (dynamic=False). Evaluation and sampling run uncompiled: compiling graphs for their shapes
    would take longer than it saves.
    """
    torch.compiler.set_stance("default")  # an earlier run may have failed to compile
    if whole and len(model.h) <= MOST_BLOCKS:
        model.forward = compiled_for_training(model, model.forward)
        return
    # DDP's gradients are ready block by block anyway; otherwise it cuts each block's graph in two
    torch._dynamo.config.optimize_ddp = False  # type: ignore[attr-defined]
    for block in model.h:
        block.forward = compiled_for_training(block, block.forward)
    model.loss = compiled_for_training(model, model.loss)


def compiled_for_training(module: nn.Module, method: Callable) -> Callable:
    """A module's method that is compiled in training mode, and plain otherwise."""
    # a function of the module, so that a copy of the module computes with its own weights
    plain = getattr(method, "__func__", lambda module, *args, **options: method(*args, **options))
    compiled = torch.compile(plain, dynamic=False)

    def chosen(module: nn.Module, *args, **options) -> torch.Tensor:
        return (compiled if module.training else plain)(module, *args, **options)

    return MethodType(chosen, module)
