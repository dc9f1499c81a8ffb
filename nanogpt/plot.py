"""Curves of runs as a picture, from their `metrics.jsonl`."""

from pathlib import Path

from nanogpt import tracking


def curves(runs: list[Path], out: Path) -> bool:
    """Draws the losses of out directories over the tokens trained on; whether there was anything to draw.

    Training loss is thin, validation loss thick, a colour for each run. The suffix of `out` picks the format.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    drawn = False
    for number, run in enumerate(runs):
        lines = tracking.read(Path(run) / "metrics.jsonl")
        for key, label, width in (("train_loss", "training", 0.8), ("val_loss", "validation", 2.0)):
            points = [(line["tokens"], line[key]) for line in lines if key in line]
            if points:
                drawn = True
                name = label if len(runs) == 1 else f"{Path(run).name}, {label}"
                axes.plot(*zip(*points, strict=True), color=f"C{number}", linewidth=width, label=name)
    if drawn:
        axes.set_xlabel("tokens")
        axes.set_ylabel("loss, nats per token")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        figure.savefig(out)
    return drawn
