"""Runs before torch is imported: `nanogpt/__init__.py` imports this module first."""

import atexit
import gc
import os

# While they wait, torch's OpenMP threads spin for milliseconds, on cores that another process may
# need. libgomp reads this once, when torch is imported; 1500 rounds bridge most gaps between
# operators (LOG.md).
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
    os.environ["GOMP_SPINCOUNT"] = "1500"

# At its end Python searches all of torch's objects for cycles, which takes half a second.
atexit.register(gc.freeze)
