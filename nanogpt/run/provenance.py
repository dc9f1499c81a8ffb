"""Where a run's code comes from, for config.json: commit, checksum, classes of one's own."""

import hashlib
import os
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from nanogpt import optim
from nanogpt.model import GPT


def own_code(gpt: GPT, make_optimizers) -> dict:
    """For config.json: the user's own class and make_optimizers, with the files they are in."""
    found = {}
    hooks = {"class": (type(gpt), GPT), "optimizers": (make_optimizers, optim.make_optimizers)}
    for key, (used, ours) in hooks.items():
        used = used.func if isinstance(used, partial) else used
        if used is not ours:
            file = source_file(used)
            where = os.path.relpath(file) if file else "a notebook"
            found[key] = {"name": getattr(used, "__qualname__", type(used).__name__), "file": where}
    return found


def source_file(definition) -> Path | None:
    """The file that defines a class or a function."""
    definition = definition.func if isinstance(definition, partial) else definition
    module = sys.modules.get(getattr(definition, "__module__", ""))
    file = Path(getattr(module, "__file__", None) or "")
    return file if file.is_file() else None


def code_hash(*definitions) -> str:
    """Identifies the code of a step: ours, and the files of these classes and functions."""
    package = Path(optim.__file__).resolve().parent
    files = {file for folder in (".", "data", "ops") for file in package.glob(f"{folder}/*.py")}
    # these choose operators and data
    others = ("run/prepare.py", "run/device.py", "text/directories.py")
    files |= {package / name for name in others}
    files |= {file.resolve() for each in definitions if (file := source_file(each))}
    digests = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]


def git_commit() -> str | None:
    """The commit of the recipe's repository, with -dirty if files have changed since."""
    folder = Path(getattr(sys.modules["__main__"], "__file__", None) or ".").parent
    command = "git --no-optional-locks describe --always --dirty --abbrev=40 --exclude=*".split()
    with suppress(OSError, subprocess.SubprocessError):  # there is no git, or it takes too long
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
        return done.stdout.strip() or None
    return None
