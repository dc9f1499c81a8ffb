"""A run's measurements: always in `metrics.jsonl`, and in Accelerate's trackers if they work.

A line of metrics.jsonl is one JSON object with `step`, `tokens`, `train_seconds` and what was measured there;
samples.jsonl has the `text` that the model wrote at each evaluation. Both are flushed line by line and synced with each
checkpoint, so a killed run keeps its curve. A tracker without its package, a key or a network is a one-line warning,
never the end of the run.
"""

import contextlib
import html
import importlib.util
import io
import json
import math
import os
import secrets
import shutil
import sys
from pathlib import Path

from accelerate import Accelerator

from nanogpt import rundir
from nanogpt.data import files

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
TRACKERS = ("trackio", "wandb", "tensorboard")
WANDB_ID = "wandb_id"  # a file in the out directory
WANDB = {
    "name": "WANDB_NAME",
    "id": "WANDB_RUN_ID",
    "resume": "WANDB_RESUME",
}  # the variables of wandb.init's arguments


def wanted(report_to: str) -> list[str]:
    """The trackers that a `report_to` setting names. Raises ValueError for one that does not exist."""
    names = [name.strip() for name in report_to.split(",") if name.strip() not in ("", "none")]
    for name in names:
        if name not in TRACKERS:
            raise ValueError(
                f"report_to={report_to!r}: {name!r} is not one of none, {', '.join(TRACKERS)}"
            )
    return names


def available(report_to: str, say) -> list[str]:
    """The trackers that are named and installed; wandb runs offline if there is no API key."""
    found = []
    for name in wanted(report_to):
        if importlib.util.find_spec(name) is None:
            say(
                f"warning: {name} is not installed, so nothing is reported to it (pip install {name})"
            )
            continue
        if (
            name == "wandb"
            and not os.environ.get("WANDB_API_KEY")
            and "api.wandb.ai" not in _netrc()
        ):
            os.environ.setdefault("WANDB_MODE", "offline")
        found.append(name)
    return found


def _netrc() -> str:
    with contextlib.suppress(OSError):
        return Path("~/.netrc").expanduser().read_text()
    return ""


class LineFile:
    """A file of JSON lines, written without a buffer.

    Lines that cannot be written, because the disk is full, are kept and written before the next line.
    """

    def __init__(self, path: Path, step: int, say, evaluated: bool = True, newest: int = -1):
        """Continues after `step`: removes later lines, and the evaluation of that step unless it is `evaluated`.

        `newest` is the step of the newest checkpoint, or -1 if there is none. The whole curve is kept in another file
        if it belongs to checkpoints that are gone, or to newer ones than `step`.
        """
        there, resumed = read(path, say), step > 0 or newest >= 0
        if (not resumed or step < newest) and any(line["step"] > step for line in there):
            kept = next(
                p
                for n in range(1, 10**6)
                if not (p := path.with_name(f"{path.stem}-{n}.jsonl")).exists()
            )
            shutil.copyfile(path, kept)
            rundir.sync(kept)
            why = (
                f"goes on after step {step}"
                if resumed
                else "belongs to an earlier run without checkpoints"
            )
            say(f"note: {path} {why}: kept as {kept.name}")
        self.path, self.say, self.unwritten = path, say, b""
        lines = [line for line in there if line["step"] <= step] if resumed else []
        if not evaluated:
            lines = [
                line
                for line in lines
                if line["step"] < step or not {"val_loss", "text"} & line.keys()
            ]
        self.end = lines[-1]["step"] if lines else 0
        temporary = rundir.temporary(path)
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        rundir.sync(temporary)
        temporary.replace(path)
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)

    def write(self, values: dict | None = None) -> None:
        """Writes one more line, or only those that were kept."""
        waited = bool(self.unwritten)
        if values is not None:
            self.unwritten += json.dumps(values).encode() + b"\n"
        try:
            while self.unwritten:
                self.unwritten = self.unwritten[self.file.write(self.unwritten) :]
        except OSError as error:
            if not waited:
                self.say(
                    f"warning: {self.path.name} could not be written: {error}; its lines are kept for later"
                )

    def sync(self) -> None:
        """Flushes the lines to disk. If the file was removed, warns and starts a new one."""
        try:
            if rundir.inode(self.path) != os.fstat(self.file.fileno()).st_ino:
                rundir.claim(self.path.parent)
                self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115
                self.say(
                    f"warning: {self.path} was removed during the run: its earlier lines are lost"
                )
            files.sync(self.file.fileno())
        except OSError as error:
            self.say(f"warning: {self.path} could not be synced: {error}")

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
        say,
        evaluated: bool = True,
        newest: int = -1,
        write: bool = True,
    ):
        """Continues after `step`; arguments are those of `LineFile`. `write=False` leaves the files alone."""
        self.accelerator, self.out_dir, self.say, self.files = accelerator, out_dir, say, {}
        self.first_new_step = 0  # of those that trackio does not have from before a kill
        if accelerator.is_main_process and write:
            self.files = {
                name: LineFile(out_dir / name, step, say, evaluated, newest)
                for name in (METRICS, SAMPLES)
            }
            if self.files[METRICS].end + config.get("log_interval", step) < step:
                say(
                    f"note: {out_dir / METRICS} has no lines between steps {self.files[METRICS].end} and {step}"
                )
        self._quietly(self._start, out_dir, step > 0 or newest >= 0, config)
        for tracker in accelerator.trackers if accelerator.is_main_process else []:
            if tracker.name == "wandb":
                run = tracker.run
                mode = "disabled" if run.disabled else "offline" if run.offline else "online"
                say(f"wandb   {mode}: project {run.project}, run {run.name}, id {run.id}")

    def _start(self, out_dir: Path, resumed: bool, config: dict) -> None:
        """Starts the trackers; a resumed run continues there. W&B's own environment variables take precedence."""
        options = {"trackio": {"name": out_dir.name, "resume": "allow" if resumed else "never"}}
        if self.accelerator.is_main_process and "wandb" in map(str, self.accelerator.log_with):
            kept = out_dir / WANDB_ID
            if not resumed or not kept.is_file():
                kept.write_text(secrets.token_hex(4))
            wandb = {"name": out_dir.name, "id": kept.read_text(), "resume": "allow"}
            options["wandb"] = {
                key: value for key, value in wandb.items() if WANDB[key] not in os.environ
            }
        project = os.environ.get("WANDB_PROJECT") or out_dir.parent.name or "nanogpt"
        self.accelerator.init_trackers(project, config, options)
        for tracker in self.accelerator.trackers:
            if tracker.name == "trackio" and self.accelerator.is_main_process:
                self.first_new_step = getattr(
                    tracker.run, "_next_step", 0
                )  # trackio shows what is logged twice twice

    def _quietly(self, call, *args, **kwargs) -> None:
        """Calls a function of the trackers without their output; an exception ends the reporting."""
        if not self.accelerator.log_with:
            return
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                call(*args, **kwargs)
        except Exception as error:  # no tracker may end the run
            self.say(
                f"warning: reporting to {self.accelerator.log_with} ended: {type(error).__name__}: {error}"
            )
            self.accelerator.log_with, self.accelerator.trackers = [], []

    def log(self, **values) -> None:
        """Writes one line: `step` and the values measured at it."""
        self._write(METRICS, values)
        self._quietly(
            self._report, {k: v for k, v in values.items() if k != "step"}, values["step"]
        )

    def _report(self, values: dict, step: int) -> None:
        for tracker in self.accelerator.trackers:
            if tracker.name != "trackio" or step >= self.first_new_step:
                tracker.log(values, step=step)

    def sample(self, text: str, **progress) -> None:
        """Writes the model's text at this step to samples.jsonl; trackers also get the curve as a picture."""
        self._write(SAMPLES, {**progress, "text": text})
        if self.accelerator.is_main_process:
            self._quietly(self._show, text, progress["step"])

    def _write(self, name: str, values: dict) -> None:
        if self.files:
            self.files[name].write(values)

    def _show(self, text: str, step: int) -> None:
        """Sends text and curve in each tracker's own types, the text verbatim."""
        from nanogpt.run import plot  # which reads metrics

        indented = "".join(
            f"    {line}\n" for line in text.splitlines()
        )  # a code block in Markdown
        pixels = plot.pixels(self.out_dir)
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.writer.add_text("sample", indented, step)
                tracker.writer.add_image("curve", pixels, step, dataformats="HWC")
            elif tracker.name == "wandb":
                import wandb

                shown = {
                    "sample": wandb.Html(f"<pre>{html.escape(text)}</pre>"),
                    "curve": wandb.Image(pixels),
                }
                tracker.log(shown, step=step)
            elif tracker.name == "trackio" and step >= self.first_new_step:
                import trackio

                tracker.log(
                    {"sample": trackio.Markdown(indented), "curve": trackio.Image(pixels)},
                    step=step,
                )

    def sync(self) -> None:
        for file in self.files.values():
            file.sync()

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        # not Accelerate's end_training, which also destroys the process group
        for tracker in self.accelerator.trackers:
            self._quietly(tracker.finish)


def read(path: Path, say=lambda text: print(text, file=sys.stderr)) -> list[dict]:
    """The lines of a metrics.jsonl or samples.jsonl.

    Damaged lines are skipped and reported through `say`, except for a last line that a kill cut short.
    """
    if not path.is_file():
        return []
    content, _, cut_short = path.read_bytes().rpartition(b"\n")
    lines = [parse(line) for line in content.split(b"\n")] if content else []
    if damaged := [n for n, line in enumerate(lines, 1) if line is None]:
        say(
            f"note: {path} has {len(damaged)} damaged lines, skipped; the first is line {damaged[0]}"
        )
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
    return {
        name: value for name, value in found.items() if name == "text" or number(value) is not None
    }


def number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
