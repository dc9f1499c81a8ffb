"""Follows runs on disk: reads their files again when they have changed.

>>> runs = Runs(["out"])  # doctest: +SKIP
>>> runs.update()  # doctest: +SKIP
>>> runs.found[0].curve("train_loss", "tokens", points=600)  # doctest: +SKIP
"""

import math
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np

from nanogpt import checkpoint
from nanogpt.data.files import read_json
from nanogpt.extras.dashboard import alerts
from nanogpt.run import metrics
from nanogpt.run.errors import visible

X = ("step", "tokens", "train_seconds")
FILES = (metrics.METRICS, metrics.SAMPLES)


class FollowedRun:
    """The contents of one out directory so far."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.stamps: list[tuple[float, int]] = []  # times and sizes of FILES when they were read
        self.version = 0  # grows with every change
        self.lines: list[dict] = []  # of metrics.jsonl
        self.metrics: list[str] = []  # the names in them
        self.samples: list[dict] = []
        self.settings: dict[str, str] = {}
        self.max_iters = math.inf
        self.alerts: list[dict] = []

    def update(self) -> None:
        """Reads the files if they have changed, and the settings with them."""
        stamps = [stamp(self.directory / name) for name in FILES]
        if stamps == self.stamps:
            return
        self.stamps, self.version = stamps, self.version + 1
        try:
            self.lines, texts = (metrics.read(self.directory / name) for name in FILES)
        except OSError:  # it is being replaced, or was removed
            return
        names = dict.fromkeys(name for line in self.lines for name in line)
        self.metrics = [name for name in names if name not in (*X, "text")]
        self.samples = [{"step": line["step"], "text": line.get("text", "")} for line in texts]
        self.alerts = alerts.alerts({name: self.points(name, "step") for name in alerts.CURVES})
        found = {}
        with suppress(OSError, ValueError):  # a copy of a run may lack it
            for key, part in read_json(self.directory / checkpoint.CONFIG).items():
                if isinstance(part, dict):
                    own = key in ("class", "optimizers")
                    found |= {key: part.get("name")} if own else part
        self.max_iters = metrics.number(found.get("max_iters")) or math.inf
        self.settings = {k: str(v) for k, v in found.items() if not isinstance(v, dict | list)}

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
        steps, losses = alerts.finite(*self.points("val_loss", "step"))
        best = losses.argmin() if len(losses) else None
        last = self.lines[-1] if self.lines else {}
        end = {name: last.get(name, 0) for name in X}
        status = "training" if time.time() - self.stamps[0][0] < 60 else "stopped"
        if end["step"] >= self.max_iters:
            status = "finished"
        return {
            "name": visible(str(self.directory)),
            "version": self.version,
            "status": status,
            "end": end,
            "metrics": self.metrics,
            "best_step": None if best is None else steps[best],
            "best": None if best is None else losses[best],
            "settings": self.settings,
            "alerts": self.alerts,
            "samples": len(self.samples),
        }


def stamp(path: Path) -> tuple[float, int]:
    """Time and size of a file; zeros if there is none."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime, status.st_size


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
        present: dict[Path, None] = {}
        for root in self.roots:
            for pattern in ("", "*/", "*/*/"):
                files = sorted(root.glob(pattern + metrics.METRICS))
                present |= {file.parent: None for file in files if file.is_file()}
        self.found = {number: run for number, run in self.found.items() if run.directory in present}
        known = {run.directory for run in self.found.values()}
        for directory in present:
            if directory not in known:
                self.found[next(self.numbers)] = FollowedRun(directory)
        for run in self.found.values():
            run.update()
