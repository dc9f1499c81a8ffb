"""What tests of several modules share: weights that show a mistake, checkpoints that are sealed again, curves."""

import json
import zlib
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from nanogpt import checkpoint
from nanogpt.run import metrics


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Gives a model weights so large that a wrong one shows, and returns it."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
            if p.ndim == 1:
                p.add_(1.0)
    return model


def seal_again(path: Path) -> None:
    """Makes the state file of a forged checkpoint match its other files, as an attacker would."""
    state = json.loads((path / "trainer_state.json").read_text())
    del state["crc32"]
    for name in state["files"]:
        state["files"][name] = {"crc32": zlib.crc32((path / name).read_bytes())}
    state["crc32"] = checkpoint.seal(state)
    (path / "trainer_state.json").write_text(json.dumps(state))
    assert checkpoint.find_damage(path) is None


def curve(run: Path, key: str = "val_loss", file: str = metrics.METRICS) -> dict:
    """A metric by step, as a run has written it."""
    return {line["step"]: line[key] for line in metrics.read(run / file) if key in line}


def reset_accelerate() -> None:
    """Accelerate's state is that of a new process, not that of the test before."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
