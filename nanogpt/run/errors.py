"""One line for a user's mistake: what is printed, and the exit code."""

import io
import json
import os
import re
import select
import signal
import sys
import time
import typing
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from nanogpt.data.files import waiting as waiting  # commands and data_prep take it from here

PATIENCE = 10  # seconds that other processes leave the main one to report what all of them found


def visible(text: str) -> str:
    """`text` for a terminal or a page: what is not shown or moves other text, but for newline and tab, becomes \\x1b.

    These are control characters such as ESC, the marks of writing direction, and halves of surrogate pairs.
    """
    hidden = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
    return re.sub(
        hidden, lambda match: ascii(match[0])[1:-1] if match[0] != "\r" else r"\x0d", text
    )


def fail(message: object, code: int = 2) -> typing.NoReturn:
    """One line on stderr, from the main process alone, and the exit code; 2: the user has something to change."""
    if isinstance(message, OSError) and message.filename:
        message = f"{message.filename}: {message.strerror}"
    line = visible(" ".join(str(message).split("\n")))
    line = f"error: {line if len(line) < 1000 else line[:1000] + '…'}"
    rank, torchrun = os.environ.get("RANK", "0"), os.environ.get("TORCHELASTIC_ERROR_FILE")
    if rank != "0" and torchrun and code == 2:
        time.sleep(
            PATIENCE
        )  # the main process has the same to say, and when it ends this one is ended as well
        line, rank = f"error: process {rank}: {line.removeprefix('error: ')}", "0"
    if rank == "0":
        print(line, file=sys.stderr, flush=True)
        if torchrun and code == 2:  # what the launcher prints last
            with suppress(OSError):
                Path(torchrun).write_text(
                    json.dumps({"message": line, "timestamp": int(time.time())})
                )
    if code == 2 and (launcher := lone_launcher()):
        launcher.terminate()
    sys.exit(code)


def lone_launcher() -> psutil.Process | None:
    """`accelerate launch`, where it started this process alone: it would print a traceback below a user's mistake."""
    with suppress(psutil.Error):
        parent = psutil.Process().parent()
        if "ACCELERATE_MIXED_PRECISION" in os.environ and "RANK" not in os.environ and parent:
            words = [Path(word).name for word in parent.cmdline()[:3]]
            if words[1:] == ["accelerate", "launch"] or words[1:2] == ["accelerate-launch"]:
                return parent
    return None


def out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed. Torch raises RuntimeErrors that only their text tells apart."""
    return isinstance(error, MemoryError) or any(
        text in str(error)
        for text in ("out of memory", "can't allocate memory", "not enough memory")
    )


def reader_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads any more."""
    poll = select.poll()
    with suppress(OSError, ValueError):  # stdout is no file
        poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))


@contextmanager
def user_errors(stopped: str = ""):
    """Around what depends on the user: ValueError, OSError and too little memory become one line and exit code 2.

    Ctrl-C becomes 130, with `stopped` as what to say if it says nothing itself; a reader that is gone (`| head`)
    becomes 141, as in a shell. From here on, characters that stdout cannot show are escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError as error:
        if not reader_is_gone():  # another pipe, or a connection
            fail(error)
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # the interpreter flushes once more
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
