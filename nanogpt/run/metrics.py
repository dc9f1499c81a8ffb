"""A run's measurements: always in `metrics.jsonl`, and in Accelerate's trackers if they work.

A line of metrics.jsonl is one JSON object with `step`, `tokens`, `train_seconds` and what was
measured there; samples.jsonl has the `text` that the model wrote at each evaluation. A tracker
without its package, a key or a network is a one-line warning, never the end of the run.
"""

import contextlib
import importlib.util
import io
import json
import logging
import math
import os
import textwrap
from functools import lru_cache
from pathlib import Path

from nanogpt import rundir
from nanogpt.data.files import sync, write_atomic
from nanogpt.run.errors import plain

METRICS, SAMPLES, RESULT = "metrics.jsonl", "samples.jsonl", "result.json"
TRACKERS = ("trackio", "wandb", "tensorboard")

logger = logging.getLogger("nanogpt")


def available(report_to: str) -> list[str]:
    """The installed trackers that `report_to` names. Raises ValueError for an unknown one."""
    installed = []
    names = [name for name in report_to.replace(" ", "").split(",") if name not in ("", "none")]
    for name in names:
        if name not in TRACKERS:
            allowed = ", ".join(TRACKERS)
            raise ValueError(f"report_to={report_to!r}: {name!r} is not one of none, {allowed}")
        if importlib.util.find_spec(name):
            installed.append(name)
        else:
            logger.warning(f"{name} is not installed: pip install {name} to report to it")
    if "wandb" in installed and "WANDB_API_KEY" not in os.environ:
        netrc = Path("~/.netrc").expanduser()  # which `wandb login` writes
        if not netrc.is_file() or "wandb" not in netrc.read_text(errors="replace"):
            os.environ.setdefault("WANDB_MODE", "offline")  # it would wait for a key
    return installed


class Metrics:
    """The files of one run, written by the main process only, and its trackers."""

    def __init__(self, accelerator, out_dir: Path, step: int, config: dict, write: bool = True):
        """Continues after `step`, -1 for a new run; `write=False` leaves the files alone."""
        self.accelerator = accelerator
        self.files: dict[str, io.FileIO] = {}
        if accelerator.is_main_process and write:
            self.files = {name: open_lines(out_dir / name, step) for name in (METRICS, SAMPLES)}
        project = os.environ.get("WANDB_PROJECT") or out_dir.parent.name or "nanogpt"
        wandb = {
            "name": os.environ.get("WANDB_NAME") or out_dir.name,
            "id": os.environ.get("WANDB_RUN_ID") or rundir.read_id(out_dir),  # a sweep sets one
            "resume": "allow",
        }
        trackio = {"name": out_dir.name, "resume": "never" if step < 0 else "allow"}
        options = {"wandb": wandb, "trackio": trackio}
        self._quietly(accelerator.init_trackers, project, config, options)

    def _quietly(self, call, *args) -> None:
        """Calls a function of the trackers without their output; an error ends the reporting."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                call(*args)
        except Exception as error:  # no tracker may end the run
            why = f"{type(error).__name__}: {error}"
            logger.warning(f"reporting to {self.accelerator.log_with} ended: {why}")
            self.accelerator.log_with, self.accelerator.trackers = [], []

    def log(self, step: int, **values) -> None:
        """Writes one line: `step` and the values measured at it."""
        self._write(METRICS, step, values, values)

    def sample(self, text: str, step: int, **progress) -> None:
        """Writes the model's text to samples.jsonl, and to the trackers as a block of Markdown."""
        block = {"sample": textwrap.indent(text, "    ")}
        self._write(SAMPLES, step, {**progress, "text": text}, block)

    def _write(self, name: str, step: int, values: dict, for_trackers: dict) -> None:
        if name in self.files:
            file = self.files[name]
            line = json.dumps(plain({"step": step, **values})).encode() + b"\n"
            end = file.seek(0, os.SEEK_END)
            try:
                if file.write(line) < len(line):
                    raise OSError("the disk is full")
            except OSError as error:
                logger.warning(f"{name} could not be written: {error}")
                with contextlib.suppress(OSError):
                    file.truncate(end)  # half a line would spoil the next one
        for tracker in self.accelerator.trackers:
            self._quietly(tracker.log, for_trackers, step)

    def sync(self) -> None:
        """Flushes the lines to disk."""
        for file in self.files.values():
            sync(file.fileno())

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        # not Accelerate's end_training, which also destroys the process group
        for tracker in self.accelerator.trackers:
            self._quietly(tracker.finish)


def open_lines(path: Path, step: int) -> io.FileIO:
    """Opens a file of JSON lines to continue after `step`; moves lines beyond it to another."""
    lines = read(path)
    beyond = [json.dumps(plain(line)) + "\n" for line in lines if line["step"] > step]
    if beyond:
        with open(path.with_name(f"{path.stem}-replaced.jsonl"), "a") as file:
            file.writelines(beyond)
    kept = [json.dumps(plain(line)) + "\n" for line in lines if line["step"] <= step]
    write_atomic(path, "".join(kept).encode())
    return open(path, "ab", buffering=0)


def read(path: Path) -> list[dict]:
    """The numbers and texts in a metrics.jsonl or samples.jsonl, if any; skips damaged lines."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [found for line in lines if (found := parse(line))]


@lru_cache(1 << 18)  # the dashboard reads the files of a run again and again
def parse(line: bytes) -> dict | None:
    """The numbers and texts in a line; None if it is damaged. Not to be changed."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError):  # not a dictionary
        values = json.loads(line).items()
        values = [(k, math.nan if v is None else v) for k, v in values]  # JSON has no NaN
        kept = {k: v for k, v in values if k == "text" or is_number(v)}
        if isinstance(kept.get("step"), int):
            return kept
    return None


def is_number(value: object) -> bool:
    """Whether it is a float, or an integer that fits into one."""
    return type(value) is float or (type(value) is int and abs(value) < 1 << 63)
