"""Programs named `python` and `nanogpt` for shell scripts: forks of the zygote (tests/zygote.py)."""

import sys
from pathlib import Path

SHIM = """#!{python} -IS
import json, os, signal, socket, sys
zygote = socket.socket(socket.AF_UNIX)
zygote.connect({address!r})
request = {{"argv": {first} + sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}}
for fd, name in enumerate(("stdin", "stdout", "stderr")):
    request[name] = f"/proc/{{os.getpid()}}/fd/{{fd}}"
zygote.sendall(json.dumps(request).encode() + b"\\n")
answers = zygote.makefile()
pid = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.kill(pid, number))
code = int(answers.readline())
sys.exit(code if code >= 0 else 128 - code)
"""


def write_shims(directory: Path, address: str) -> None:
    """Writes them into a directory for the front of PATH."""
    for name, first in (("python", []), ("nanogpt", ["nanogpt"])):
        (directory / name).write_text(SHIM.format(python=sys.executable, address=address, first=first))
        (directory / name).chmod(0o755)
