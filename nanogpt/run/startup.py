"""Runs before torch is imported: `nanogpt/__init__.py` imports this module first."""

import atexit
import gc
import os

# While they wait, torch's OpenMP threads spin for milliseconds, on cores that another process may
# need. libgomp reads this once, when torch is imported; 1500 rounds bridge most gaps between
# operators (LOG.md).
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
    os.environ["GOMP_SPINCOUNT"] = "1500"

# Inductor reads these two. torch knows the CPU's vector instructions; Inductor would test each of
# them again, for a second. And graphs with the operators of nanogpt/ops/cpu.py are worth caching.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE_ALLOW_CUSTOM_AUTOGRAD", "1")

# At its end Python searches all of torch's objects for cycles, which takes half a second.
atexit.register(gc.freeze)
