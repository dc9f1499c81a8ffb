"""Compiles functions of tensors ahead of time for the CPU, and caches them on disk (AOTInductor).

torch.compile traces again in each process and checks guards at each call. A compiled library loads
within milliseconds, without importing torch.compile, and has no guards.
"""

import hashlib
import os
import threading
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from nanogpt.data.files import one_line_errors, write_atomic

OPTIONS = {"cpp.enable_floating_point_contract_flag": "fast"}  # fused multiply-add (LOG.md)
TYPICAL = 512  # Inductor tunes loops for this length; every length from 2 on works
HERE = Path(__file__).parent
FILES = [*sorted(HERE.glob("*.py")), HERE.parent / "model.py", HERE.parent / "sample.py"]
CODE = b"".join(file.read_bytes() for file in FILES)  # now, because the files may change later
LOCK = threading.Lock()  # torch traces in one thread at a time


class Program(nn.Module):  # torch.export wants a module
    """A function of tensors, compiled by `run` for each shape and dtype of its first input.

    `name` is the function's name in the cache. The inputs numbered in `growing` have the same
    dimension 0, which may differ from call to call. Raises ValueError if the function cannot be
    compiled.
    """

    def __init__(self, function: Callable, name: str, growing: tuple[int, ...] = ()):
        super().__init__()
        self.function = function
        self.name = name
        self.growing = growing
        self.libraries: dict[tuple, Callable] = {}

    def forward(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return self.function(*inputs)

    def run(self, *inputs: torch.Tensor) -> torch.Tensor:
        key = inputs[0].shape, inputs[0].dtype
        if key not in self.libraries:
            sizes = [TYPICAL if i in self.growing else len(x) for i, x in enumerate(inputs)]
            with LOCK, torch.inference_mode(False), torch.no_grad():
                like = [x.new_empty(n, *x.shape[1:]) for n, x in zip(sizes, inputs, strict=True)]
                self.libraries[key] = load_library(self, like)
        return self.libraries[key]([tensor.contiguous() for tensor in inputs])[0]


def load_library(program: Program, inputs: list[torch.Tensor]) -> Callable:
    """The compiled program, a function of a list of tensors like `inputs` that returns a list."""
    advice = "pass --compile=false and a --dtype other than int8, or check the C++ compiler"
    what = program.name, [(x.shape, x.dtype) for x in inputs]
    with (
        one_line_errors("the model cannot be compiled for sampling", advice),
        TemporaryDirectory() as folder,
    ):
        with suppress(OSError, RuntimeError):  # missing or damaged, or there is no home directory
            return open_library(cache_file(what))
        library, path = build(trace(program, inputs)), Path(folder, "program.so")
        with suppress(OSError, RuntimeError):  # there is no place to keep it
            cache_file(what).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(cache_file(what), library)
            return open_library(cache_file(what))
        path.write_bytes(library)
        return open_library(path)


def open_library(path: Path) -> Callable:
    return torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1).run


def trace(program: Program, inputs: list[torch.Tensor]) -> torch.export.ExportedProgram:
    length = torch.export.Dim("length", min=2, max=2**31)
    dims = [{0: length} if i in program.growing else {} for i in range(len(inputs))]
    with torch.autocast("cpu", enabled=False):
        return torch.export.export(program, (inputs,), dynamic_shapes=(dims,), strict=False)


def build(exported: torch.export.ExportedProgram) -> bytes:
    """The shared library of a traced program; compiling takes some ten seconds."""
    import torch._inductor

    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own code
        package = torch._inductor.aoti_compile_and_package(
            exported, package_path=f"{folder}/program.pt2", inductor_configs=dict(OPTIONS)
        )
        with zipfile.ZipFile(package) as archive:
            (library,) = (name for name in archive.namelist() if name.endswith(".so"))
            return archive.read(library)


def cache_file(what: object) -> Path:
    """The path of a library, with a hash of what it depends on: code, torch, threads, CPU."""
    cpuinfo = Path("/proc/cpuinfo")  # on Linux
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    cpu = sorted({line for line in lines if line.startswith(("flags", "Features"))})
    setup = (cpu, torch.__config__.show(), torch.get_num_threads(), OPTIONS)
    name = hashlib.sha256(CODE + repr((what, setup)).encode()).hexdigest()[:32]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "nanogpt", f"{name}.so")
