"""Draws the curves in runs' `metrics.jsonl` as a picture, or as characters for a terminal.

nanogpt plot out/a out/b --out curves.png
"""

import io
from pathlib import Path

import numpy as np

from nanogpt.run import metrics

DOTS = np.array(
    [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]]
)  # of a Braille character, by row and column


def points(run: Path, key: str) -> list[tuple[float, float]]:
    """(tokens, value) of the metric `key` of a run."""
    lines = metrics.read(Path(run) / metrics.METRICS)
    return [(line["tokens"], line[key]) for line in lines if {"tokens", key} <= line.keys()]


def curves(runs: list[Path], out: Path | io.BytesIO, **options) -> bool:
    """Draws the losses of out directories over tokens; returns False if there are none.

    Training loss is thin, validation loss thick, with a colour for each run. The losses of the first twentieth, which
    would flatten the rest, are cut off if they are higher. The suffix of `out` selects the format.
    Raises ValueError for one that matplotlib does not support.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    drawn, late = False, []
    for number, run in enumerate(runs):
        for key, label, width in (("train_loss", "training", 0.8), ("val_loss", "validation", 2.0)):
            line = points(run, key)
            if line:
                drawn = True
                late += [
                    loss for tokens, loss in line if tokens > line[-1][0] / 20 and np.isfinite(loss)
                ]
                name = (
                    label if len(runs) == 1 else f"{Path(run).name}, {label}".replace("$", r"\$")
                )  # no formula
                axes.plot(*zip(*line, strict=True), color=f"C{number}", linewidth=width, label=name)
    if drawn:
        axes.set_xlabel("tokens")
        axes.set_ylabel("loss, nats per token")
        if len(late) > 20:
            axes.set_ylim(top=1.02 * max(late))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        figure.savefig(out, **options)
    return drawn


def pixels(run: Path) -> np.ndarray:
    """The curves of one run as a picture (height, width, 3) in uint8, for trackers."""
    buffer = io.BytesIO()
    curves([run], buffer, format="raw", facecolor="white")
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(540, 960, 4)[:, :, :3]


def text(run: Path, width: int = 72, height: int = 12) -> str:
    """The losses of one run over its tokens in Braille characters, `width` by `height`; "" if there are too few.

    Training loss is drawn as dots, validation loss as a line.
    """
    dots, lines = points(run, "train_loss"), points(run, "val_loss")
    both = np.array(dots + lines, dtype=float).reshape(-1, 2)
    both = both[np.isfinite(both).all(axis=1)]
    if len(both) < 2:
        return ""
    (left, bottom), (right, top) = both.min(axis=0), both.max(axis=0)
    columns, rows = 2 * width, 4 * height  # in dots
    grid = np.zeros((rows, columns), dtype=bool)
    xs = np.linspace(left, right, columns)
    if len(lines) > 1:  # a line: a dot in every column between the evaluations
        x, y = np.array(lines, dtype=float).T
        inside = (xs >= x[0]) & (xs <= x[-1])
        both = np.concatenate(
            (np.array(dots, dtype=float).reshape(-1, 2), np.c_[xs, np.interp(xs, x, y)][inside])
        )
    across = (both[:, 0] - left) / max(right - left, 1e-9) * (columns - 1)
    down = (top - both[:, 1]) / max(top - bottom, 1e-9) * (rows - 1)
    finite = np.isfinite(across) & np.isfinite(down)
    grid[down[finite].round().astype(int), across[finite].round().astype(int)] = True
    cells = grid.reshape(height, 4, width, 2).transpose(0, 2, 1, 3)  # (height, width, 4, 2)
    codes = (cells * DOTS).sum(axis=(2, 3)) + 0x2800
    labels = [f"{top:8.3f} "] + [" " * 9] * (height - 2) + [f"{bottom:8.3f} "]
    drawing = [label + "".join(map(chr, row)) for label, row in zip(labels, codes, strict=True)]
    axis = f"{left:,.0f}".ljust(width - len(f"{right:,.0f} tokens")) + f"{right:,.0f} tokens"
    return "\n".join([*drawing, " " * 9 + axis])
