"""Where a run's measurements go: `metrics.jsonl`, always, and Accelerate's trackers, as far as they work.

A line of metrics.jsonl is one JSON object with `step`, `tokens`, `train_seconds` and what was measured there. It is
flushed line by line, so a killed run keeps its curve. A tracker that is missing, has no key or no network costs one
line of warning, never the run.
"""

import contextlib
import importlib.util
import io
import json
import os
from pathlib import Path

from accelerate import Accelerator

TRACKERS = ("trackio", "wandb", "tensorboard")


def wanted(report_to: str) -> list[str]:
    """The trackers that a `report_to` setting names. Raises ValueError for one that does not exist."""
    names = [name.strip() for name in report_to.split(",") if name.strip() not in ("", "none")]
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"report_to={report_to!r}: {name!r} is not one of none, {', '.join(TRACKERS)}")
    return names


def available(report_to: str, say) -> list[str]:
    """The trackers that are named and installed; wandb goes offline where there is no key to ask for."""
    found = []
    for name in wanted(report_to):
        if importlib.util.find_spec(name) is None:
            say(f"warning: {name} is not installed, so nothing is reported to it (pip install {name})")
            continue
        if name == "wandb" and not os.environ.get("WANDB_API_KEY") and "api.wandb.ai" not in _netrc():
            os.environ.setdefault("WANDB_MODE", "offline")
        found.append(name)
    return found


def _netrc() -> str:
    with contextlib.suppress(OSError):
        return Path("~/.netrc").expanduser().read_text()
    return ""


class Metrics:
    """`metrics.jsonl` of one run, written by the main process alone, and the trackers beside it."""

    def __init__(self, accelerator: Accelerator, out_dir: Path, step: int, config: dict, say):
        """Goes on behind `step`: what an earlier life of the run wrote beyond it is taken back."""
        self.accelerator, self.say = accelerator, say
        self.file, self.unwritten = None, b""
        if accelerator.is_main_process:
            path = out_dir / "metrics.jsonl"
            kept = [line for line in read(path) if line["step"] <= step] if step else []
            temporary = out_dir / ".tmp-metrics.jsonl"
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            temporary.replace(path)
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)
        self._quietly("init_trackers", out_dir.parent.name or "nanogpt", config, self._names(out_dir))

    def _names(self, out_dir: Path) -> dict:
        return {"trackio": {"name": out_dir.name}, "wandb": {"name": out_dir.name}}

    def _quietly(self, method: str, *args, **kwargs) -> None:
        """Calls a method of Accelerate's trackers: what they print is dropped, what they raise ends them."""
        if not self.accelerator.log_with:
            return
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                getattr(self.accelerator, method)(*args, **kwargs)
        except Exception as error:  # whatever a tracker trips over, the run is worth more
            self.say(f"warning: reporting to {self.accelerator.log_with} ended: {type(error).__name__}: {error}")
            self.accelerator.log_with, self.accelerator.trackers = [], []

    def log(self, **values) -> None:
        """One line: `step` and whatever was measured at it."""
        if self.file is not None:
            self._write(json.dumps(values) + "\n")
        self._quietly("log", {k: v for k, v in values.items() if k != "step"}, step=values["step"])

    def _write(self, text: str) -> None:
        """Writes `text`, and before it what a full disk did not take: then it waits for the next call."""
        waited, self.unwritten = bool(self.unwritten), self.unwritten + text.encode()
        try:
            while self.unwritten:
                self.unwritten = self.unwritten[self.file.write(self.unwritten) :]
        except OSError as error:
            if not waited:
                self.say(f"warning: {self.file.name} could not be written: {error}; its lines are kept for later")

    def close(self) -> None:
        if self.file is not None:
            self._write("")
            self.file.close()
        self._quietly("end_training")


def read(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines
