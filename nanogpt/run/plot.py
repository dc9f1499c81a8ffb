"""Draws the curves in runs' `metrics.jsonl` as a picture.

nanogpt plot out/a out/b --out curves.png
"""

from pathlib import Path

from nanogpt.run import metrics


def curves(runs: list[Path], out: Path) -> bool:
    """Draws the losses of out directories over tokens; returns False if there are none.

    Training loss is thin, validation loss thick, with a color for each run. The suffix of `out`
    selects the format; matplotlib raises ValueError for one that it does not know.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for number, run in enumerate(runs):
        lines = [line for line in metrics.read(run / metrics.METRICS) if "tokens" in line]
        name = "" if len(runs) == 1 else str(run).replace("$", r"\$") + ", "  # no formula
        for key, label, width in (("train_loss", "training", 0.8), ("val_loss", "validation", 2.0)):
            points = [(line["tokens"], line[key]) for line in lines if key in line]
            if points:
                tokens, losses = zip(*points, strict=True)
                axes.plot(tokens, losses, color=f"C{number}", linewidth=width, label=name + label)
    if not axes.lines:
        return False
    axes.set(xlabel="tokens", ylabel="loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(out)
    return True
