"""Accelerate's state, which lives as long as a process does, so that a test could see that of the test before it."""

from accelerate.state import AcceleratorState, GradientState, PartialState


def reset_accelerate() -> None:
    """As at the start of a process."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
