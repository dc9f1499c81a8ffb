"""Starts programs in a tenth of a second: a Python that has imported everything forks for each of them.

`python tests/zygote.py SOCKET` listens there, and never computes: a fork after OpenMP's threads have started would
hang. Whoever connects sends a program as a JSON object, and gets its process number and later its exit code, a line
each. `Zygote` starts and calls it. A program is a process of its own, with its own arguments, environment, output, exit
code and signals. What it does not show: the imports themselves, variables that are read while importing
(OMP_NUM_THREADS, HF_ENDPOINT), and the launcher; tests/integration/test_launch.py starts these.
"""

import atexit
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from types import SimpleNamespace

from torch.distributed import TCPStore

ROOT = Path(__file__).parents[1]
PATIENCE = 300  # seconds; only a test that fails waits so long


def clean_environment(home: Path) -> dict[str, str]:
    """The environment without what launchers set, and without any configuration of this machine's."""
    launchers = ("ACCELERATE_", "MASTER_", "OMP_NUM_THREADS", "PET_", "RANK", "LOCAL_RANK", "SLURM_", "WORLD_SIZE")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(launchers)}
    path = f"{Path(sys.executable).parent}:{clean['PATH']}"
    return clean | {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HOME": str(home / "hf"), "CUDA_VISIBLE_DEVICES": ""}


class Zygote:
    """Forks programs; use it in a `with` block, which ends what still runs."""

    def __init__(self, directory: Path):
        self.directory, self.env = directory, clean_environment(directory)
        self.count, self.stores = 0, []

    def __enter__(self) -> "Zygote":
        self.socket = f"{tempfile.mkdtemp()}/socket"  # whose name must be short
        command, pipes = [sys.executable, __file__, self.socket], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=self.env, start_new_session=True, **pipes)
        self.process.stdout.readline()  # it listens
        return self

    def __exit__(self, *error) -> None:
        self.process.communicate()
        shutil.rmtree(Path(self.socket).parent)

    def start(self, *words, cwd: Path, env: dict[str, str] | None = None) -> "Program":
        """Starts `nanogpt …`, `-m MODULE …` or `SCRIPT.py …`."""
        self.count += 1
        files = {name: str(self.directory / f"{self.count}.{name}") for name in ("stdout", "stderr")}
        request = {"argv": list(map(str, words)), "cwd": str(cwd), "env": self.env | (env or {}), **files}
        return Program(self.socket, request)

    def run(self, *words, cwd: Path, **env: str) -> SimpleNamespace:
        return self.start(*words, cwd=cwd, env=env).wait()

    def ranks(self, number: int, *words, cwd: Path, **env: str) -> list["Program"]:
        """Starts a program as the launcher would, in so many processes on the CPU."""
        env = {"ACCELERATE_USE_CPU": "true"} | env
        if number == 1:
            return [self.start(*words, cwd=cwd, env=env)]
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.stores.append(store)  # it lives as long as the processes
        env |= {"WORLD_SIZE": str(number), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        ranks = map(str, range(number))
        return [self.start(*words, cwd=cwd, env=env | {"RANK": rank, "LOCAL_RANK": rank}) for rank in ranks]


class Program:
    def __init__(self, address: str, request: dict):
        self.connection, self.request, self.code = socket.socket(socket.AF_UNIX), request, None
        self.connection.connect(address)
        self.connection.sendall(json.dumps(request).encode() + b"\n")
        self.answers = self.connection.makefile()
        self.pid = int(self.answers.readline())

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def poll(self, patience: float = 0) -> int | None:
        """Its exit code if it has ended."""
        if self.code is None and select.select([self.connection], [], [], patience)[0]:
            self.code = int(self.answers.readline())
        return self.code

    def wait(self) -> SimpleNamespace:
        """Its returncode, stdout and stderr, once it has ended."""
        if self.poll(PATIENCE) is None:
            self.send_signal(signal.SIGKILL)
        said = {name: Path(self.request[name]).read_text() for name in ("stdout", "stderr")}
        return SimpleNamespace(returncode=self.poll(PATIENCE), **said)


class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    max_children, request_queue_size, timeout = 1000, 100, 0.2


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        """In a fork: forks once more, and waits for that program."""
        request = json.loads(self.rfile.readline())
        pid = os.fork()
        if pid == 0:
            self.connection.close()
            run(request)
        self.connection.sendall(b"%d\n" % pid)
        self.connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def run(request: dict) -> None:
    """Ends this process as the program would that was asked for, but does not unload modules, which takes a second."""
    code = 0
    try:
        become(request)
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def become(request: dict) -> None:
    """Makes this fork the process that was asked for, and runs its program."""
    os.dup2(os.open(request.get("stdin", os.devnull), os.O_RDONLY), 0)
    for fd, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT), fd)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    first, *rest = request["argv"]
    sys.argv = rest if first == "-m" else [first, *rest]
    if first == "nanogpt":
        cli.main()
    elif first == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    import accelerate  # noqa: F401
    import torch._dynamo  # noqa: F401 (which making an optimizer imports)
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, Qwen3ForCausalLM  # noqa: F401

    import nanogpt.train  # noqa: F401
    from nanogpt import cli
    from nanogpt.cli import commands  # noqa: F401
    from nanogpt.run import console

    console.SAMPLE_TOKENS = 8
    gc.freeze()
    with Server(sys.argv[1], Handler) as server:
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:  # ended by whoever started it
            server.handle_request()
        os.killpg(0, signal.SIGKILL)
