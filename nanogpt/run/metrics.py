"""A run's measurements: always in `metrics.jsonl`, and in Accelerate's trackers if they work.

A line of metrics.jsonl is one JSON object with `step`, `tokens`, `train_seconds` and what was
measured there; samples.jsonl has the `text` that the model wrote at each evaluation. Lines are
written at once and synced with each checkpoint, so a killed run keeps its curve. A tracker without
its package, a key or a network is a one-line warning, never the end of the run.
"""

import contextlib
import html
import importlib.util
import io
import json
import logging
import math
import os
import secrets
import shutil
from itertools import count
from pathlib import Path

from accelerate import Accelerator

from nanogpt import rundir
from nanogpt.data import files

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
TRACKERS = ("trackio", "wandb", "tensorboard")
WANDB_ID = "wandb_id"  # a file in the out directory
# the variables of wandb.init's arguments
WANDB = {"name": "WANDB_NAME", "id": "WANDB_RUN_ID", "resume": "WANDB_RESUME"}

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
        if name == "wandb" and not has_wandb_key():
            os.environ.setdefault("WANDB_MODE", "offline")
        found.append(name)
    return found


def has_wandb_key() -> bool:
    netrc = Path("~/.netrc").expanduser()
    return "WANDB_API_KEY" in os.environ or (
        netrc.is_file() and "api.wandb.ai" in netrc.read_text(errors="replace")
    )


class LineFile:
    """A file of JSON lines, written without a buffer.

    Lines that cannot be written, because the disk is full, are kept and written before the next.
    """

    def __init__(self, path: Path, step: int, newest: int = -1):
        """Continues after `step`, without the lines beyond it.

        `newest` is the step of the newest checkpoint, -1 if there is none. The whole curve is kept
        in another file if it belongs to checkpoints that are gone, or to newer ones than `step`.
        """
        self.path = path
        self.unwritten = b""
        lines = read(path)
        is_new = step <= 0 and newest < 0
        if (is_new or step < newest) and any(line["step"] > step for line in lines):
            names = (path.with_name(f"{path.stem}-{n}.jsonl") for n in count(1))
            kept = next(name for name in names if not name.exists())
            shutil.copyfile(path, kept)
            rundir.sync(kept)
            logger.info(f"note: the earlier curve in {path} is kept as {kept.name}")
        rest = [] if is_new else [line for line in lines if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in rest)
        rundir.write(path, text)
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)

    def write(self, values: dict | None = None) -> None:
        """Writes one more line, or only those that were kept."""
        waited = bool(self.unwritten)
        if values is not None:
            self.unwritten += json.dumps(values).encode() + b"\n"
        try:
            while self.unwritten:
                written = self.file.write(self.unwritten)
                self.unwritten = self.unwritten[written:]
        except OSError as error:
            if not waited:
                logger.warning(f"{self.path.name}: {error}; its lines are kept for later")

    def sync(self) -> None:
        """Flushes the lines to disk."""
        try:
            files.sync(self.file.fileno())
        except OSError as error:
            logger.warning(f"{self.path} could not be synced: {error}")

    def close(self) -> None:
        self.write()
        self.file.close()


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
        """Continues after `step`; see `LineFile`. `write=False` leaves the files alone."""
        self.accelerator = accelerator
        self.out_dir = out_dir
        self.files: dict[str, LineFile] = {}
        if accelerator.is_main_process and write:
            for name in (METRICS, SAMPLES):
                self.files[name] = LineFile(out_dir / name, step, newest)
        self._quietly(self._start, step > 0 or newest >= 0, config)

    def _start(self, resumed: bool, config: dict) -> None:
        """Starts the trackers, or continues in them. W&B's own variables take precedence."""
        name = self.out_dir.name
        options = {"trackio": {"name": name, "resume": "allow" if resumed else "never"}}
        if self.accelerator.is_main_process and "wandb" in map(str, self.accelerator.log_with):
            kept = self.out_dir / WANDB_ID
            if not resumed or not kept.is_file():
                kept.write_text(secrets.token_hex(4))
            wandb = {"name": name, "id": kept.read_text(), "resume": "allow"}
            options["wandb"] = {k: v for k, v in wandb.items() if WANDB[k] not in os.environ}
        project = os.environ.get("WANDB_PROJECT") or self.out_dir.parent.name or "nanogpt"
        self.accelerator.init_trackers(project, config, options)

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
        self._write(METRICS, {"step": step, **values})
        for tracker in self.accelerator.trackers:
            self._quietly(tracker.log, values, step)

    def sample(self, text: str, step: int, **progress) -> None:
        """Writes the model's text to samples.jsonl, and verbatim to the trackers."""
        self._write(SAMPLES, {"step": step, **progress, "text": text})
        code = "".join(f"    {line}\n" for line in text.splitlines())  # a block in Markdown
        for tracker in self.accelerator.trackers if self.accelerator.is_main_process else []:
            self._quietly(self._show, tracker, text, code, step)

    def _write(self, name: str, values: dict) -> None:
        if self.files:
            self.files[name].write(values)

    def _show(self, tracker, text: str, code: str, step: int) -> None:
        if tracker.name == "tensorboard":
            tracker.writer.add_text("sample", code, step)
        elif tracker.name == "wandb":
            import wandb

            tracker.log({"sample": wandb.Html(f"<pre>{html.escape(text)}</pre>")}, step=step)
        else:
            import trackio

            tracker.log({"sample": trackio.Markdown(code)}, step=step)

    def sync(self) -> None:
        for file in self.files.values():
            file.sync()

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        # not Accelerate's end_training, which also destroys the process group
        for tracker in self.accelerator.trackers:
            self._quietly(tracker.finish)


def read(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl or samples.jsonl; none if there is no file.

    Warns of damaged lines and skips them; a last line that a kill cut short does not count.
    """
    if not path.is_file():
        return []
    content, _, cut_short = path.read_bytes().rpartition(b"\n")
    lines = [parse(line) for line in content.split(b"\n")] if content else []
    if None in lines:
        first = lines.index(None) + 1
        logger.warning(f"{path} has damaged lines, which are skipped; the first is line {first}")
    return [line for line in [*lines, parse(cut_short)] if line is not None]


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
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
