"""A run's measurements: always in `metrics.jsonl`, and in Accelerate's trackers if they work.

A line of metrics.jsonl is one JSON object with `step`, `tokens`, `train_seconds` and what was
measured there; samples.jsonl has the `text` that the model wrote at each evaluation. Lines are
written at once and synced with each checkpoint, so a killed run keeps its curve. A tracker without
its package, a key or a network is a one-line warning, never the end of the run.
"""

import contextlib
import importlib.util
import io
import json
import logging
import math
import os
import shutil
import textwrap
from itertools import count
from pathlib import Path

from accelerate import Accelerator

from nanogpt import rundir
from nanogpt.data import files

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
TRACKERS = ("trackio", "wandb", "tensorboard")

logger = logging.getLogger("nanogpt")


def available(report_to: str) -> list[str]:
    """The trackers that a `report_to` setting names, if installed; wandb is offline without a key.

    Raises ValueError for one that does not exist.
    """
    found = []
    for name in report_to.replace(" ", "").split(","):
        if name in ("", "none"):
            continue
        if name not in TRACKERS:
            allowed = ", ".join(TRACKERS)
            raise ValueError(f"report_to={report_to!r}: {name!r} is not one of none, {allowed}")
        if importlib.util.find_spec(name) is None:
            logger.warning(f"{name} is not installed: pip install {name} to report to it")
            continue
        if name == "wandb" and not has_wandb_key():  # it would wait for one at the terminal
            os.environ.setdefault("WANDB_MODE", "offline")
        found.append(name)
    return found


def has_wandb_key() -> bool:
    netrc = Path("~/.netrc").expanduser()  # which `wandb login` writes
    known = netrc.is_file() and "api.wandb.ai" in netrc.read_text(errors="replace")
    return known or "WANDB_API_KEY" in os.environ


class Metrics:
    """The files of one run, written by the main process only, and its trackers."""

    def __init__(
        self,
        accelerator: Accelerator,
        out_dir: Path,
        step: int,
        config: dict,
        newest: int = -1,
        write: bool = True,
    ):
        """Continues after `step`; see `open_lines`. `write=False` leaves the files alone."""
        self.accelerator = accelerator
        self.files: dict[str, io.FileIO] = {}
        if accelerator.is_main_process and write:
            for name in (METRICS, SAMPLES):
                self.files[name] = open_lines(out_dir / name, step, newest)
        resumed = step > 0 or newest >= 0
        trackio = {"name": out_dir.name, "resume": "allow" if resumed else "never"}
        wandb = {"resume": "allow"}
        if "WANDB_NAME" not in os.environ:
            wandb["name"] = out_dir.name
        if "WANDB_RUN_ID" not in os.environ:  # which a sweep sets
            wandb["id"] = rundir.read_id(out_dir)
        project = os.environ.get("WANDB_PROJECT") or out_dir.parent.name or "nanogpt"
        options = {"trackio": trackio, "wandb": wandb}
        self._quietly(accelerator.init_trackers, project, config, options)

    def _quietly(self, call, *args) -> None:
        """Calls a function of the trackers without their output; an error ends the reporting."""
        if not self.accelerator.log_with:
            return
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                call(*args)
        except Exception as error:  # no tracker may end the run
            why = f"{type(error).__name__}: {error}"
            logger.warning(f"reporting to {self.accelerator.log_with} ended: {why}")
            self.accelerator.log_with, self.accelerator.trackers = [], []

    def log(self, step: int, **values) -> None:
        """Writes one line: `step` and the values measured at it."""
        self._write(METRICS, {"step": step, **values}, values)

    def sample(self, text: str, step: int, **progress) -> None:
        """Writes the model's text to samples.jsonl, and to the trackers as a block of Markdown."""
        line = {"step": step, **progress, "text": text}
        self._write(SAMPLES, line, {"sample": textwrap.indent(text, "    ")})

    def _write(self, name: str, line: dict, for_trackers: dict) -> None:
        if name in self.files:
            try:
                self.files[name].write(json.dumps(line).encode() + b"\n")
            except OSError as error:  # a full disk
                logger.warning(f"{name} could not be written: {error}")
        for tracker in self.accelerator.trackers:
            self._quietly(tracker.log, for_trackers, line["step"])

    def sync(self) -> None:
        """Flushes the lines to disk."""
        for name, file in self.files.items():
            try:
                files.sync(file.fileno())
            except OSError as error:
                logger.warning(f"{name} could not be synced: {error}")

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        # not Accelerate's end_training, which also destroys the process group
        for tracker in self.accelerator.trackers:
            self._quietly(tracker.finish)


def open_lines(path: Path, step: int, newest: int = -1) -> io.FileIO:
    """Opens a file of JSON lines to continue after `step`, without the lines beyond it.

    `newest` is the step of the newest checkpoint, -1 if there is none. The whole curve is kept in
    another file if it belongs to checkpoints that are gone, or to newer ones than `step`.
    """
    lines = read(path)
    is_new = step <= 0 and newest < 0
    rest = [] if is_new else [line for line in lines if line["step"] <= step]
    if (is_new or step < newest) and any(line["step"] > step for line in lines):
        names = (path.with_name(f"{path.stem}-{n}.jsonl") for n in count(1))
        kept = next(name for name in names if not name.exists())
        shutil.copyfile(path, kept)
        rundir.sync(kept)
        logger.info(f"note: the earlier curve in {path} is kept as {kept.name}")
    rundir.write(path, "".join(json.dumps(line) + "\n" for line in rest))
    return open(path, "ab", buffering=0)


def read(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl or samples.jsonl; none if there is no file.

    Skips damaged lines, such as a last one that a kill cut short.
    """
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [found for found in map(parse, lines) if found is not None]


def parse(line: bytes) -> dict | None:
    """The numbers and the text of a line; None if it is not a JSON object with a step."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = number(found.get("step")) if isinstance(found, dict) else None
    if step is None or not math.isfinite(step):
        return None
    return {k: v for k, v in found.items() if k == "text" or number(v) is not None}


def number(value: object) -> float | None:
    if type(value) not in (int, float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
