"""What programs print for a user: one line for a mistake, with its exit code; notes."""

import io
import math
import os
import re
import signal
import sys
import threading
import time
import typing
from contextlib import contextmanager

# control characters except tab and newline, marks of writing direction, halves of surrogate pairs
HIDDEN = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
PATIENCE = 10  # seconds that other processes wait for what the first one says


def visible(text: str) -> str:
    """`text` for a terminal or a page: an ESC, for example, becomes the four characters \\x1b."""
    return re.sub(HIDDEN, lambda match: ascii(match[0])[1:-1], text)


def fail(message: object, code: int = 2) -> typing.NoReturn:
    """Prints one line on stderr and exits. Code 2 is a user's mistake.

    Ranks other than local rank 0 wait first: if it fails with the same message, its exit ends them.
    """
    if isinstance(message, OSError) and message.filename:
        message = f"{message.filename}: {message.strerror}"
    line = visible(str(message).replace("\n", " "))
    rank = os.environ.get("LOCAL_RANK", "0")
    if rank != "0":
        time.sleep(PATIENCE)
        line = f"process {rank}: {line}"
    print(f"error: {line:.1000}", file=sys.stderr, flush=True)
    sys.exit(code)


def refuse_windows() -> None:
    """Ends a program there: training needs links, file locks and signals that it does not have."""
    if sys.platform == "win32":
        fail("this program needs Linux or macOS: on Windows, run it in WSL2")


def out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed. Torch raises RuntimeErrors that only their text tells apart."""
    texts = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


@contextmanager
def user_errors(stopped: str = ""):
    """Context manager that turns a user's mistakes into one line and exit code 2.

    They are ValueError, OSError, SyntaxError (of a recipe), missing packages and too little memory.
    Ctrl-C becomes 130, and prints `stopped`; a reader that is gone (`| head`) becomes 141, as in a
    shell. From here on, characters that stdout cannot show are escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
        sys.exit(128 + signal.SIGPIPE)
    except (ValueError, OSError, SyntaxError) as error:
        if os.environ.get("NANOGPT_TRACEBACK"):  # for those who change the code
            raise
        fail(error)
    except ModuleNotFoundError as error:
        extra = error.name in ("gguf", "gradio", "lm_eval", "onnx", "onnxruntime", "peft", "trl")
        fail(f"there is no module {error.name}" + (f": pip install {error.name}" if extra else ""))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        fail("out of memory: choose a smaller model, batch or number of samples")
    except KeyboardInterrupt:
        print(f"\n{stopped}".rstrip(), file=sys.stderr)
        sys.exit(130)


@contextmanager
def waiting(what: str, say=None):
    """Context manager for slow, silent work: prints `what` to stderr, or by `say`, after 1.5 s."""
    say = say or (lambda text: print(text, file=sys.stderr))
    timer = threading.Timer(1.5, say, [f"{what} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def plain(value: object) -> object:
    """`value` for JSON, which has no infinities and no NaN: they become null."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
