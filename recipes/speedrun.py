"""The tiny Shakespeare speedrun: the lowest loss in 2, 15 or 60 minutes on two CPU cores.

    make speedrun TRACK=2  # seeds 1, 2 and 3, or:
    python recipes/speedrun.py --track=2 --seed=1 --seeds=3

Rules and records are in docs/speedrun.md. The learning rate follows the clock, so that an entry
uses its whole time on any machine; a faster one takes more steps. At the end the models are
evaluated again, in fp32, and a row for the table is printed. To try an idea, pass flags or change
the track.
"""

import json
import os
import statistics
from dataclasses import replace
from datetime import date
from pathlib import Path

import shakespeare_best
import torch

from data_prep import shakespeare
from nanogpt.checkpoint import load_configs
from nanogpt.data.tokens import TokenDataset
from nanogpt.evaluate import evaluate
from nanogpt.hub.load import load
from nanogpt.run.errors import user_errors
from nanogpt.run.flags import settings_parser
from nanogpt.train import main

DATA = "data/shakespeare_char"
VALIDATION = 111_540  # characters of nanoGPT's validation split

# the entry is recipes/shakespeare_best.py; evaluated at the start and at the end
TRAIN = replace(shakespeare_best.TRAIN, eval_interval=1_000_000, log_interval=1)
SMALL = replace(shakespeare_best.MODEL, train_temperature=0.9)
LARGE = replace(SMALL, n_layer=5, n_head=5, n_embd=160, n_inner=416, train_temperature=0.83)
# A longer track reads the text more often, so it needs more weight decay and a lower temperature
TRACKS = {
    2: (SMALL, replace(TRAIN, short_block_iters=450, muon_learning_rate=0.014)),
    15: (LARGE, replace(TRAIN, short_block_iters=2000, weight_decay=0.4)),
    60: (
        replace(LARGE, train_temperature=0.78),
        replace(TRAIN, short_block_iters=8000, weight_decay=0.5),
    ),
}


def row(runs: list[Path], minutes: float) -> str:
    """The row of an entry's runs for the table, or a ValueError that names the rule they break."""
    losses, seconds = [], []
    for run in runs:
        model = load(run / "last")[0]
        val_data = TokenDataset(DATA, "val", model.config.block_size)
        if val_data.token_count != VALIDATION:
            raise ValueError(f"{DATA} is not nanoGPT's split of the original text")
        seconds.append(json.loads((run / "result.json").read_text())["train_seconds"])
        if seconds[-1] > 60 * minutes + 1:
            raise ValueError(f"{run} took {seconds[-1]:.0f} s")
        losses.append(evaluate(model, val_data, batch_size=16)["val_loss"])
    each = ", ".join(f"{loss:.4f}" for loss in losses)
    return (
        f"| {date.today()} | **{statistics.median(losses):.4f}** ({each}) | "
        f"{statistics.median(seconds):.0f} s | {os.cpu_count()} cores, torch {torch.__version__} |"
    )


if __name__ == "__main__":
    parser = settings_parser(SMALL, TRAIN)
    text = "minutes of training (default: 2)"
    parser.add_argument("--track", type=int, choices=TRACKS, default=2, help=text)
    given = vars(parser.parse_args())
    track = given.pop("track")
    flags = [f"--{name}={value}" for name, value in given.items()]
    model, train = TRACKS[track]
    train = replace(train, train_minutes=float(track), out_dir=f"out/speedrun-{track}")
    runs = main(model, train, prepare=shakespeare.prepare, argv=flags)
    with user_errors():
        if runs and os.environ.get("RANK", "0") == "0":
            print(row(runs, load_configs(runs[0])[1].train_minutes))
