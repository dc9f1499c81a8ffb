"""Follows runs on disk. Each line of their files is read once, while the files grow.

>>> runs = Runs(["out"])  # doctest: +SKIP
>>> runs.update()  # doctest: +SKIP
>>> runs.found[0].curve("train_loss", "tokens", points=600)  # doctest: +SKIP
"""

import math
import os
import time
from array import array
from itertools import count
from pathlib import Path

import numpy as np

from nanogpt import checkpoint
from nanogpt.data.files import read_json
from nanogpt.extras.dashboard import alerts
from nanogpt.run import metrics
from nanogpt.run.errors import visible

X = ("step", "tokens", "train_seconds")


class Lines:
    """The objects in a growing file of JSON lines; lines that are not JSON are skipped."""

    def __init__(self, path: Path):
        self.path = path
        self.inode: int | None = None
        self.position = 0

    def new(self) -> tuple[bool, list[dict]]:
        """Whether the file was replaced (the run was resumed), and its new objects."""
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                replaced = self.inode not in (None, status.st_ino) or status.st_size < self.position
                if replaced:
                    self.position = 0
                file.seek(self.position)
                content = file.read()
        except OSError:  # it is being replaced, or was removed
            return False, []
        self.inode = status.st_ino
        whole = content[: content.rfind(b"\n") + 1]
        self.position += len(whole)
        lines = map(metrics.parse, whole.splitlines())
        return replaced, [line for line in lines if line is not None]


class FollowedRun:
    """The contents of one out directory so far."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.metrics = Lines(directory / metrics.METRICS)
        self.texts = Lines(directory / metrics.SAMPLES)
        self.version = 0  # grows with every change
        self.end = dict.fromkeys(X, 0.0)  # the latest values
        self.rows: dict[str, array] = {}  # of each metric: X and its value, one after the other
        self.settings: dict[str, str] = {}
        self.max_iters = math.inf
        self.samples: list[dict] = []
        self.alerts: list[dict] = []

    def update(self) -> None:
        """Reads new lines, and the settings with them."""
        replaced, lines = self.metrics.new()
        if replaced:
            self.rows = {}
        for line in lines:
            self.add(line)
        texts_replaced, texts = self.texts.new()
        if texts_replaced:
            self.samples = []
        self.samples += [{"step": line["step"], "text": line.get("text", "")} for line in texts]
        if replaced or lines or texts:
            self.version += 1
            self.alerts = alerts.alerts({name: self.points(name, "step") for name in alerts.CURVES})
            self.read_settings()

    def add(self, line: dict) -> None:
        """Adds the numbers of a line."""
        self.end = {name: line.get(name, 0.0) for name in X}
        for name, value in line.items():
            number = metrics.number(value)
            if name not in X and number is not None:
                self.rows.setdefault(name, array("d")).extend((*self.end.values(), number))

    def read_settings(self) -> None:
        """Reads the plain values in config.json."""
        try:
            parts = read_json(self.directory / checkpoint.CONFIG)
        except (OSError, ValueError):  # a copy of a run may lack it
            return
        found = {}
        for part in parts.values():
            found.update(part if isinstance(part, dict) else {})
        self.max_iters = metrics.number(found.get("max_iters")) or math.inf
        self.settings = {k: str(v) for k, v in found.items() if not isinstance(v, dict | list)}

    def points(self, key: str, x: str) -> alerts.Curve:
        """All values of `key` over x (step, tokens or train_seconds), both (N,)."""
        table = np.array(self.rows.get(key, ())).reshape(-1, len(X) + 1)
        return table[:, X.index(x)], table[:, -1]

    def curve(
        self, key: str, x: str, points: int, low: float = -math.inf, high: float = math.inf
    ) -> tuple[list, list]:
        """The finite values of `key` for x from low to high, thinned out to about `points`."""
        xs, ys = alerts.finite(*self.points(key, x))
        # with a neighbor on each side, so that the line reaches the edges
        part = slice(max(0, np.searchsorted(xs, low) - 1), np.searchsorted(xs, high, "right") + 1)
        xs, ys = thin(xs[part], ys[part], points)
        return xs.tolist(), ys.tolist()

    def summary(self) -> dict:
        """The run as the page lists it."""
        steps, losses = alerts.finite(*self.points("val_loss", "step"))
        best = losses.argmin() if len(losses) else None
        return {
            "name": visible(str(self.directory)),
            "version": self.version,
            "status": self.status(),
            "end": self.end,
            "metrics": list(self.rows),
            "best_step": None if best is None else steps[best],
            "best": None if best is None else losses[best],
            "settings": self.settings,
            "alerts": self.alerts,
            "samples": len(self.samples),
        }

    def status(self) -> str:
        """finished at max_iters; training if there was a line in the last minute; else stopped."""
        if self.end["step"] >= self.max_iters:
            return "finished"
        try:
            age = time.time() - self.metrics.path.stat().st_mtime
        except OSError:
            return "stopped"
        return "training" if age < 60 else "stopped"


def thin(xs: np.ndarray, ys: np.ndarray, points: int) -> alerts.Curve:
    """Thins out points (N,) to about `points`: keeps the extremes of points/2 stretches."""
    stretches = max(1, points // 2)
    if len(xs) <= 2 * stretches:
        return xs, ys
    kept = {0, len(xs) - 1}
    for part in np.array_split(np.arange(len(xs)), stretches):
        kept.add(part[ys[part].argmin()])
        kept.add(part[ys[part].argmax()])
    places = sorted(kept)
    return xs[places], ys[places]


class Runs:
    """The runs in some directories, at most two levels below them."""

    def __init__(self, roots: list[str]):
        """Raises ValueError for a root that is not a directory."""
        self.roots = [Path(root) for root in roots]
        for root in self.roots:
            if not root.is_dir():
                raise ValueError(f"{root} is not a directory: name out directories or their parent")
        self.found: dict[int, FollowedRun] = {}  # by a number that is never reused
        self.numbers = count()

    def update(self) -> None:
        """Finds new and deleted runs, and reads new lines of the others."""
        present = []
        for root in self.roots:
            for pattern in ("", "*/", "*/*/"):
                files = sorted(root.glob(pattern + metrics.METRICS))
                present += [file.parent for file in files if file.is_file()]
        self.found = {number: run for number, run in self.found.items() if run.directory in present}
        known = {run.directory for run in self.found.values()}
        for directory in dict.fromkeys(present):
            if directory not in known:
                self.found[next(self.numbers)] = FollowedRun(directory)
        for run in self.found.values():
            run.update()
