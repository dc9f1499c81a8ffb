"""Follows runs on disk: reads their files again when they have changed."""

import math
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from nanogpt import checkpoint
from nanogpt.data.files import read_json
from nanogpt.extras.dashboard import alerts
from nanogpt.run import metrics
from nanogpt.run.errors import visible

X = ("step", "tokens", "train_seconds")
FILES = (metrics.METRICS, metrics.SAMPLES, metrics.RESULT)
QUIET = 600  # seconds without a line, from which on a run counts as stopped


class FollowedRun:
    """The contents of one out directory so far."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.version = ""  # times and sizes of FILES when they were read
        self.written = 0.0  # when metrics.jsonl was
        self.lines: list[dict] = []  # of metrics.jsonl
        self.samples: list[dict] = []  # of samples.jsonl
        self.facts: dict = {}  # what the page lists of them

    def update(self) -> None:
        """Reads the files if they have changed, and the settings with them."""
        files = [self.directory / name for name in FILES]
        with suppress(OSError):  # a file is being replaced, or was removed
            stats = [files[0].stat(), *(file.stat() for file in files[1:] if file.exists())]
            version = str([(stat.st_mtime, stat.st_size) for stat in stats])
            if version != self.version:
                self.lines, self.samples = metrics.read(files[0]), metrics.read(files[1])
                self.facts = self.describe()
                self.version, self.written = version, stats[0].st_mtime

    def describe(self) -> dict:
        """What the page lists of the run, except for what the clock changes."""
        steps, losses = alerts.finite(*self.points("val_loss", "step"))
        best, best_step = min(zip(losses, steps, strict=True), default=(None, None))
        names = dict.fromkeys(name for line in self.lines for name in line)
        settings = {}
        for key, part in self.read_json(checkpoint.CONFIG).items():
            if isinstance(part, dict):
                own = key in ("class", "optimizers")
                settings |= {key: part.get("name")} if own else part
        curves = {name: self.points(name, "step") for name in alerts.CURVES}
        return {
            "step": self.lines[-1]["step"] if self.lines else 0,
            "metrics": [name for name in names if name not in (*X, "text")],
            "best": best,
            "best_step": best_step,
            "settings": {k: str(v) for k, v in settings.items() if not isinstance(v, dict | list)},
            "alerts": alerts.find_alerts(curves),
            "samples": len(self.samples),
            "reason": self.read_json(metrics.RESULT).get("reason"),
        }

    def read_json(self, name: str) -> dict:
        """A JSON file of the run; empty if it has none."""
        with suppress(ValueError):
            return read_json(self.directory / name)
        return {}

    def points(self, key: str, x: str) -> alerts.Curve:
        """All values of `key` over x (step, tokens or train_seconds), both (N,)."""
        found = [(line.get(x, 0), line[key]) for line in self.lines if key in line]
        table = np.array(found, dtype=float).reshape(-1, 2)
        return table[:, 0], table[:, 1]

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
        recent = time.time() - self.written < QUIET
        status = self.facts["reason"] or ("training" if recent else "stopped")
        return {"version": self.version, "status": status, **self.facts}


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
        self.found: dict[str, FollowedRun] = {}  # by the name of the directory

    def update(self) -> None:
        """Finds new and deleted runs, and reads new lines of the others."""
        before, self.found = self.found, {}
        for root in self.roots:
            for pattern in ("", "*/", "*/*/"):
                for file in sorted(root.glob(pattern + metrics.METRICS)):
                    name = visible(str(file.parent))
                    self.found[name] = before.get(name) or FollowedRun(file.parent)
        for run in self.found.values():
            run.update()
        self.found = {name: run for name, run in self.found.items() if run.facts}  # readable ones
