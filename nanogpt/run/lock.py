"""The lock of a directory, for data_prep."""

from nanogpt.rundir import Lock

__all__ = ["Lock"]
