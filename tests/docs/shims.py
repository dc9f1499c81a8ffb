"""Programs named `python` and `nanogpt` for shell scripts: forks of the zygote (tests/zygote.py)."""

import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer
from tempfile import TemporaryDirectory
from threading import Thread

from zygote import Zygote

SHIM = """#!{python} -IS
import json, os, signal, socket, sys
broker = socket.socket(socket.AF_UNIX)
broker.connect({path!r})
request = {{"argv": {first} + sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}}
for fd, name in enumerate(("stdin", "stdout", "stderr")):
    request[name] = f"/proc/{{os.getpid()}}/fd/{{fd}}"
broker.sendall(json.dumps(request).encode() + b"\\n")
answers = broker.makefile()
pid = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.kill(pid, number))
code = int(answers.readline())
sys.exit(code if code >= 0 else 128 - code)
"""


@contextmanager
def shims(zygote: Zygote):
    """Their directory, for the front of PATH."""

    class Broker(StreamRequestHandler):
        """Has the zygote start what a shim was called with, and tells the shim its pid and its exit code."""

        def handle(self):
            pid = zygote.ask(**json.loads(self.rfile.readline()))
            self.wfile.write(f"{pid}\n".encode())
            while (code := zygote.ask(poll=pid)) is None:
                time.sleep(0.01)
            self.wfile.write(f"{code}\n".encode())

    with TemporaryDirectory(prefix="shims") as directory:
        path = f"{directory}/socket"
        for name, first in (("python", []), ("nanogpt", ["nanogpt"])):
            shim = Path(directory, name)
            shim.write_text(SHIM.format(python=sys.executable, path=path, first=first))
            shim.chmod(0o755)
        with ThreadingUnixStreamServer(path, Broker) as server:
            Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            yield directory
            server.shutdown()
