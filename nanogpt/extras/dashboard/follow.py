"""Follows runs on disk. Each line of their files is read once, while the files grow.

>>> runs = Runs(["out"])  # doctest: +SKIP
>>> runs.update()  # doctest: +SKIP
>>> runs.found[0].curve("train_loss", "tokens", points=600)  # doctest: +SKIP
"""

import contextlib
import math
import os
import time
from array import array
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np

from nanogpt import checkpoint
from nanogpt.data.files import read_json, require_regular
from nanogpt.extras.dashboard import alerts
from nanogpt.run import metrics
from nanogpt.run.errors import visible
from nanogpt.run.metrics import number, parse

X = ("step", "tokens", "train_seconds")
AT_ONCE = 4_000_000  # bytes of a file read in one update
MOST_CONFIG = 1 << 20  # bytes of config.json
MOST = 300  # metrics, settings and samples of a run
LONGEST = 200  # characters of a metric's or setting's name, or of a setting
LONGEST_TEXT = 4000  # characters of a sample


class Lines:
    """The objects in a growing file of JSON lines; lines that are not JSON are skipped."""

    def __init__(self, path: Path):
        self.path = path
        self.identity: int | None = None
        self.position = 0
        self.behind = False  # whether there is more to read

    def new(self) -> tuple[bool, list[dict]]:
        """Whether the file was replaced (the run was resumed), and the objects on new whole lines.

        Reads at most AT_ONCE bytes.
        """
        try:
            require_regular(self.path)
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                again = self.identity not in (None, status.st_ino) or status.st_size < self.position
                if again:
                    self.position = 0
                file.seek(self.position)
                content = file.read(AT_ONCE)
        except (OSError, ValueError):  # it is being replaced, was removed, or is not a regular file
            return False, []
        self.identity = status.st_ino
        self.behind = status.st_size > self.position + AT_ONCE
        if not self.behind or b"\n" in content:  # else it is one enormous line, which is skipped
            content = content[: content.rfind(b"\n") + 1]
        self.position += len(content)
        return again, [line for line in map(parse, content.splitlines()) if line is not None]


class FollowedRun:
    """The contents of one out directory so far."""

    def __init__(self, directory: Path, name: str):
        self.directory, self.name = directory, visible(name)
        self.metrics = Lines(directory / metrics.METRICS)
        self.texts = Lines(directory / metrics.SAMPLES)
        self.version = 0  # grows with every change
        self.settings: dict[str, str] = {}
        self.max_iters: float | None = None
        self.samples: list[dict] = []
        self.alerts: list[dict] = []
        self.clear()

    def clear(self) -> None:
        """Forgets the metrics."""
        self.x = {name: array("d") for name in X}
        self.lines: dict[str, array] = {}  # the lines of the values
        self.values: dict[str, array] = {}
        self.cut = False  # whether metrics are left out: more than MOST, or with too long a name

    def update(self) -> None:
        """Reads new lines."""
        again, lines = self.metrics.new()
        if again:
            self.clear()
        for line in lines:
            self.add(line)
        if again or lines:
            self.alerts = alerts.alerts({name: self.points(name, "step") for name in alerts.CURVES})
        texts_again, texts = self.texts.new()
        kept = [] if texts_again else self.samples
        for line in texts:
            if isinstance(line.get("text"), str):
                text = visible(line["text"][:LONGEST_TEXT])
                kept.append({"step": number(line["step"]), "text": text})
        self.samples = kept if len(kept) <= MOST else kept[:10] + kept[10 - MOST :]
        before = self.settings
        self.read_settings()
        if self.settings != before or again or lines or texts_again or texts:
            self.version += 1

    def add(self, line: dict) -> None:
        """Adds the numbers of a line; the losses always, others up to MOST."""
        at = len(self.x["step"])
        for name in X:
            self.x[name].append(number(line.get(name)) or 0.0)
        for name, value in line.items():
            value = number(value)
            if value is None or name in X:
                continue
            full = len(name) > LONGEST or len(self.values) >= MOST
            name = visible(name[:LONGEST])
            if name not in self.values and full and name not in alerts.CURVES:
                self.cut = True
                continue
            self.lines.setdefault(name, array("q")).append(at)
            self.values.setdefault(name, array("d")).append(value)

    def read_settings(self) -> None:
        """Reads the plain values in config.json."""
        path, found = self.directory / checkpoint.CONFIG, {}
        try:
            if path.stat().st_size > MOST_CONFIG:
                raise ValueError(f"{path.name} has more than {MOST_CONFIG:,} bytes")
            for part in read_json(path).values():
                found |= part if isinstance(part, dict) else {}
        except OSError:
            return
        except ValueError as error:
            found = {path.name: f"not read: {error}"}
        self.max_iters = number(found.get("max_iters"))
        plain = [item for item in found.items() if not isinstance(item[1], dict | list)]
        self.settings = {
            visible(name[:LONGEST]): visible(str(value)[:LONGEST]) for name, value in plain[:MOST]
        }

    def points(self, key: str, x: str) -> tuple[np.ndarray, np.ndarray]:
        """All values of `key` over x (step, tokens or train_seconds), both (N,)."""
        if key not in self.values:
            return np.empty(0), np.empty(0)
        return np.array(self.x[x])[np.array(self.lines[key])], np.array(self.values[key])

    def curve(
        self, key: str, x: str, points: int, low: float = -math.inf, high: float = math.inf
    ) -> tuple[list, list]:
        """The finite values of `key` for x from low to high, thinned out to about `points`."""
        xs, ys = self.points(key, x)
        shown = np.isfinite(ys) & np.isfinite(xs)
        xs, ys = xs[shown], ys[shown]
        # with a neighbor on each side, so that the line reaches the edges
        part = slice(max(0, np.searchsorted(xs, low) - 1), np.searchsorted(xs, high, "right") + 1)
        xs, ys = thin(xs[part], ys[part], points)
        return xs.tolist(), ys.tolist()

    def summary(self) -> dict:
        """The run as the page lists it."""
        end = {name: clean(values[-1]) if values else 0 for name, values in self.x.items()}
        steps, losses = alerts.finite({"val_loss": self.points("val_loss", "step")}, "val_loss")
        best = losses.argmin() if len(losses) else None
        return {
            "name": self.name,
            "version": self.version,
            "status": self.status(self.x["step"][-1] if self.x["step"] else 0),
            "behind": self.metrics.behind,
            "end": end,
            "last": {name: clean(values[-1]) for name, values in self.values.items()},
            "cut": self.cut,
            "best_step": None if best is None else steps[best],
            "best": None if best is None else losses[best],
            "settings": self.settings,
            "alerts": self.alerts,
            "samples": len(self.samples),
        }

    def status(self, step: float) -> str:
        """finished at max_iters; training if there was a line in the last minute; else stopped."""
        if self.max_iters is not None and step >= self.max_iters:
            return "finished"
        try:
            age = time.time() - self.metrics.path.stat().st_mtime
        except OSError:
            return "stopped"
        return "training" if age < 60 else "stopped"


def clean(value: float) -> float | None:
    """None for NaN and infinity, which JSON cannot represent."""
    return value if math.isfinite(value) else None


def thin(xs: np.ndarray, ys: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Thins out points (N,) to about `points`: keeps the extremes of points/2 stretches."""
    stretches = max(1, points // 2)
    if len(xs) <= 2 * stretches:
        return xs, ys
    length = -(-len(xs) // stretches)
    padded = np.concatenate((ys, np.full(-len(ys) % length, ys[-1]))).reshape(-1, length)
    starts = np.arange(len(padded)) * length
    kept = np.concatenate(
        (starts + padded.argmin(axis=1), starts + padded.argmax(axis=1), [0, len(xs) - 1])
    )
    kept = np.unique(np.minimum(kept, len(xs) - 1))
    return xs[kept], ys[kept]


class Runs:
    """The runs in some directories, at most two levels below them."""

    def __init__(self, roots: list[str]):
        """Raises ValueError for a root that is not a directory."""
        self.roots = [Path(root) for root in roots]
        for root in self.roots:
            if not root.is_dir():
                raise ValueError(
                    f"{root} is not a directory: "
                    "name out directories, or one that holds some, such as out"
                )
        self.found: dict[int, FollowedRun] = {}  # by a number that is never reused
        self.numbers = count()

    def update(self) -> None:
        """Finds new and deleted runs, and reads new lines of the others."""
        present = dict.fromkeys(directory for root in self.roots for directory in runs_below(root))
        self.found = {number: run for number, run in self.found.items() if run.directory in present}
        known = {run.directory for run in self.found.values()}
        for directory in present:
            if directory not in known:
                self.found[next(self.numbers)] = FollowedRun(directory, str(directory))
        for run in self.found.values():
            run.update()


def runs_below(root: Path, depth: int = 2) -> Iterator[Path]:
    """The out directories at `root` and up to `depth` levels below it."""
    with contextlib.suppress(OSError, ValueError):
        require_regular(root / metrics.METRICS)
        yield root
    if depth:
        with contextlib.suppress(OSError):
            for path in sorted(root.iterdir()):
                if path.is_dir():
                    yield from runs_below(path, depth - 1)
