"""Starts programs in a tenth of a second: a Python that has imported everything forks for each of them.

`python tests/zygote.py` answers requests, one JSON object a line, and never computes: a fork after OpenMP's threads
have started would hang. `Zygote` is its client. A program that it starts is a process of its own, with its own
arguments, environment, output, exit code and signals. What it does not show: the imports themselves, variables that are
read while importing (OMP_NUM_THREADS, HF_ENDPOINT), and the launcher; tests/integration/test_launch.py starts these.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
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
    """The client. `start` forks a program; use it in a `with` block, which ends what still runs."""

    def __init__(self, directory: Path):
        self.directory, self.count, self.stores, self.lock = directory, 0, [], threading.Lock()

    def __enter__(self) -> "Zygote":
        self.env = clean_environment(self.directory)
        command = [sys.executable, __file__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=self.env, text=True, bufsize=1, **pipes)
        return self

    def __exit__(self, *error) -> None:
        self.process.communicate()

    def ask(self, **request):
        with self.lock:
            self.process.stdin.write(json.dumps(request) + "\n")
            return json.loads(self.process.stdout.readline())

    def start(self, *words, cwd: Path, env: dict[str, str] | None = None, stderr: str | None = None) -> "Program":
        """Starts `nanogpt …`, `-m MODULE …` or `SCRIPT.py …`; its stderr may go to a terminal, given by its name."""
        self.count += 1
        files = [str(self.directory / f"{self.count}.{name}") for name in ("out", "err")]
        request = {"argv": list(map(str, words)), "cwd": str(cwd), "env": self.env | (env or {})}
        pid = self.ask(**request, stdout=files[0], stderr=stderr or files[1])
        return Program(self, pid, *map(Path, files))

    def run(self, *words, cwd: Path, **env: str) -> SimpleNamespace:
        return self.start(*words, cwd=cwd, env=env).wait()

    def ranks(self, number: int, *words, cwd: Path, **env: str) -> list["Program"]:
        """Starts a program as the launcher would, in so many processes on the CPU."""
        env = {"ACCELERATE_USE_CPU": "true"} | env
        if number > 1:
            store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            self.stores.append(store)  # it lives as long as the processes
            env |= {"WORLD_SIZE": str(number), "TORCHELASTIC_USE_AGENT_STORE": "True"}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if number > 1 else {} for rank in range(number)]
        return [self.start(*words, cwd=cwd, env=env | rank) for rank in ranks]


class Program:
    def __init__(self, zygote: Zygote, pid: int, out: Path, err: Path):
        self.zygote, self.pid, self.out, self.err = zygote, pid, out, err

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        return self.zygote.ask(poll=self.pid)

    def wait(self) -> SimpleNamespace:
        """Its returncode, stdout and stderr, once it has ended."""
        end = time.monotonic() + PATIENCE
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.send_signal(signal.SIGKILL)
            time.sleep(0.01)
        out, err = (path.read_text() if path.exists() else "" for path in (self.out, self.err))
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)


def serve() -> dict:
    """Answers requests until its client is gone; returns in the forks, with what each is to run."""
    replies, codes, running = os.fdopen(os.dup(1), "w"), {}, set()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid = request["poll"]
            if pid in running and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                running.remove(pid)
            answer = codes.get(pid)
        elif (answer := os.fork()) == 0:
            os.close(replies.fileno())
            return request
        else:
            running.add(answer)
        print(json.dumps(answer), file=replies, flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    sys.exit()


def become(request: dict) -> None:
    """Makes this fork the process that was asked for, and runs its program."""
    os.dup2(os.open(request.get("stdin", os.devnull), os.O_RDONLY), 0)
    for fd, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT), fd)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    first, *rest = request["argv"]
    if first == "nanogpt":
        sys.argv = [first, *rest]
        cli.main()
    elif first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        sys.path[0] = str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


def end(program: Callable[[], None]) -> None:
    """Ends this process as Python would, but for taking the imported modules apart, which takes a second."""
    code = 1
    try:
        program()
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    import accelerate  # noqa: F401
    import torch._dynamo  # noqa: F401 (which making an optimizer imports)
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, Qwen3ForCausalLM  # noqa: F401

    import nanogpt.train  # noqa: F401
    from nanogpt import cli
    from nanogpt.hub import export  # noqa: F401
    from nanogpt.run import console

    console.SAMPLE_TOKENS = 8
    gc.freeze()
    end(partial(become, serve()))
