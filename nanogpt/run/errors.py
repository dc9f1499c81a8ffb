"""One line for a user's mistake: what is printed, and the exit code."""

import io
import json
import os
import re
import signal
import sys
import time
import typing
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from nanogpt.data.files import waiting as waiting  # commands and data_prep take it from here

PATIENCE = 10  # seconds to wait for the main process, which reports what all processes found
# control characters except tab and newline, marks of writing direction, halves of surrogate pairs
HIDDEN = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"


def visible(text: str) -> str:
    """`text` for a terminal or a page: an ESC, for example, becomes the four characters \\x1b."""
    text = text.replace("\r", r"\x0d")
    return re.sub(HIDDEN, lambda match: ascii(match[0])[1:-1], text)


def fail(message: object, code: int = 2) -> typing.NoReturn:
    """Prints one line on stderr, on the main process only, and exits; code 2: a user's mistake."""
    if isinstance(message, OSError) and message.filename:
        message = f"{message.filename}: {message.strerror}"
    line = visible(" ".join(str(message).split("\n")))
    line = f"error: {line if len(line) < 1000 else line[:1000] + '…'}"
    rank, torchrun = os.environ.get("RANK", "0"), os.environ.get("TORCHELASTIC_ERROR_FILE")
    if rank != "0" and torchrun and code == 2:
        time.sleep(PATIENCE)  # if the main process has the same to say, its end ends this one
        line = f"error: process {rank}: {line.removeprefix('error: ')}"
        rank = "0"
    if rank == "0":
        print(line, file=sys.stderr, flush=True)
        if torchrun and code == 2:  # what the launcher prints last
            with suppress(OSError):
                error = {"message": line, "timestamp": int(time.time())}
                Path(torchrun).write_text(json.dumps(error))
    if code == 2 and (launcher := lone_launcher()):
        launcher.terminate()
    sys.exit(code)


def refuse_windows() -> None:
    """Ends a program there: training needs links, file locks and signals that it does not have."""
    if sys.platform == "win32":
        fail("this program needs Linux or macOS: on Windows, run it in WSL2")


def lone_launcher() -> psutil.Process | None:
    """`accelerate launch` if it started only this process: it would print a traceback."""
    with suppress(psutil.Error):
        parent = psutil.Process().parent()
        if "ACCELERATE_MIXED_PRECISION" in os.environ and "RANK" not in os.environ and parent:
            words = [Path(word).name for word in parent.cmdline()[:3]]
            if words[1:] == ["accelerate", "launch"] or words[1:2] == ["accelerate-launch"]:
                return parent
    return None


def out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed. Torch raises RuntimeErrors that only their text tells apart."""
    texts = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


@contextmanager
def user_errors(stopped: str = ""):
    """Context manager that turns a user's mistakes into one line and exit code 2.

    They are ValueError, OSError, missing packages and too little memory. Ctrl-C becomes 130, and
    prints `stopped` if it has no message; a reader that is gone (`| head`) becomes 141, as in a
    shell. From here on, characters that stdout cannot show are escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # the interpreter flushes once more
        sys.exit(128 + signal.SIGPIPE)
    except (ValueError, OSError) as error:
        fail(error)
    except ModuleNotFoundError as error:  # of what only some commands need
        fail(f"the package {error.name} is not installed: pip install {error.name}")
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        fail("out of memory: choose a smaller model, batch or number of samples")
    except KeyboardInterrupt as interrupt:
        stopped = str(interrupt) or stopped
        print(stopped and f"\n{stopped}", file=sys.stderr)
        sys.exit(130)
