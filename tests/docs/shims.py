"""Programs named `python` and `nanogpt` for shell scripts, which start in milliseconds.

Each asks a process that has imported everything for a fork of it, which gets the caller's arguments, directory,
environment, streams and signals. The process itself never computes: a fork after OpenMP's threads have started
would hang. Variables that are read by imports (`HF_HOME`, `OMP_NUM_THREADS`) are those of its own
environment.
"""

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

PRELOAD = "torch._dynamo accelerate datasets tokenizers tiktoken matplotlib.pyplot nanogpt.train nanogpt.hub.export"
PRELOAD += " data_prep.text data_prep.chat transformers.pipelines"
CLASSES = (
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "Qwen3ForCausalLM",
    "PreTrainedTokenizerFast",
    "TextGenerationPipeline",
)
SHIM = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({path!r})
request = json.dumps([{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
server.sendall(request)
answers = server.makefile()
pid = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: os.kill(pid, number))
code = int(answers.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class Shims:
    """`bin` is their directory, for the front of PATH. `env` is the environment in which everything is imported."""

    def __init__(self, env: dict[str, str]):
        self.directory = TemporaryDirectory(prefix="shims")
        self.bin = Path(self.directory.name)
        path = str(self.bin / "socket")
        for name in ("python", "nanogpt"):
            (self.bin / name).write_text(SHIM.format(python=sys.executable, path=path, name=name))
            (self.bin / name).chmod(0o755)
        command = [sys.executable, __file__, path]
        self.server = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> "Shims":
        assert self.server.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, *_) -> None:
        self.server.stdin.close()  # which ends it, also if this process is killed
        self.server.wait()
        self.directory.cleanup()


def serve(path: str) -> tuple[str, list[str]]:
    """Forks a process for each request. It returns only in these processes, with the program and its arguments."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(64)
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watching processes
    while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
        connection, _ = server.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.close()
            return watch(connection)
        connection.close()
    os._exit(0)


def watch(connection: socket.socket) -> tuple[str, list[str]]:
    """Forks the process that was asked for, in which it returns, and tells its pid and its exit code."""
    size, fds, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as request:
        name, words, cwd, env = json.loads(request.read(int.from_bytes(size, "big")))
    pid = os.fork()
    if pid:
        for fd in (0, 1, 2, *fds):  # a reader of the output waits until no process holds it
            os.close(fd)
        connection.sendall(f"{pid}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.sendall(f"{code}\n".encode())
        os._exit(0)
    connection.close()
    for stream, fd in enumerate(fds):
        os.dup2(fd, stream)
        os.close(fd)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    return name, words


def run(name: str, words: list[str]) -> None:
    """Runs `nanogpt WORDS` or `python SCRIPT`, `python -m MODULE` in this process."""
    if name == "nanogpt":
        sys.argv = ["nanogpt", *words]
        import_module("nanogpt.cli").main()
    elif words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        sys.modules.pop(words[1], None)  # runpy warns about a module that is there already
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


def main(path: str) -> None:
    for module in PRELOAD.split():
        import_module(module)
    for name in CLASSES:
        getattr(import_module("transformers"), name)
    import_module("nanogpt.cli").make_parser()  # imports every command
    gc.freeze()
    program, code = serve(path), 1
    try:
        run(*program)
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)  # not taking the modules apart saves half a second


if __name__ == "__main__":
    main(sys.argv[1])
