"""Runs before torch is imported: `nanogpt/__init__.py` imports this module first."""

import os
import sys

# While they wait, torch's OpenMP threads spin for milliseconds, on cores that another process may
# need. libgomp reads this once, when torch is imported; 1000 rounds bridge most gaps between
# operators (LOG.md).
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
    os.environ["GOMP_SPINCOUNT"] = "1000"


def report(kind, error, traceback, report=sys.excepthook) -> None:
    """`sys.excepthook`: Ctrl-C while a program imports torch is one line and exit code 130."""
    modules, frame = 0, traceback  # of the program, and of each module that it is importing
    while frame:
        modules += frame.tb_frame.f_code.co_name == "<module>"
        frame = frame.tb_next
    if not issubclass(kind, KeyboardInterrupt) or modules < 2 or hasattr(sys, "ps1"):
        return report(kind, error, traceback)  # ps1: at a prompt
    print("\nstopped", file=sys.stderr)
    sys.exit(130)


sys.excepthook = report
