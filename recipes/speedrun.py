"""The tiny Shakespeare speedrun: the lowest loss in 2, 15 or 60 minutes on two CPU cores.

    make speedrun TRACK=2  # seeds 1, 2 and 3, or:
    python recipes/speedrun.py --track=2 --seed=1 --seeds=3

Rules and records are in docs/speedrun.md. The learning rate follows the clock, so an entry uses its
whole time on any machine; a faster machine takes more steps. At the end the models are evaluated
again, in fp32, and a row for the table is printed. To try an idea, pass flags or change the track.

For the hour, two models of the 15-minute track are trained first. Then a third learns from the text
and from their predictions (Hinton et al. 2015), in the time that is left.
"""

import json
import os
import statistics
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import shakespeare_best
import torch
from distill import Student, mean_probabilities

from data_prep import shakespeare
from nanogpt import GPT, TrainConfig
from nanogpt.data.tokens import TokenDataset
from nanogpt.evaluate import evaluate
from nanogpt.hub.load import load
from nanogpt.run.errors import user_errors
from nanogpt.run.flags import parse, settings_parser
from nanogpt.text.directories import open_data
from nanogpt.train import main

DATA = "data/shakespeare_char"
VALIDATION = 111_540  # characters of nanoGPT's validation split

# the entry is recipes/shakespeare_best.py; evaluated at the start and at the end
TRAIN = replace(shakespeare_best.TRAIN, device="cpu", eval_interval=1_000_000, log_interval=1)
SMALL = replace(shakespeare_best.MODEL, train_temperature=0.9)
LARGE = replace(SMALL, n_layer=5, n_head=5, n_embd=160, n_inner=416, train_temperature=0.83)
# A longer track reads the text more often, so it needs more weight decay and a lower temperature
TRACKS = {
    2: (SMALL, replace(TRAIN, short_block_iters=450, muon_learning_rate=0.014)),
    15: (LARGE, replace(TRAIN, short_block_iters=2000, weight_decay=0.4)),
    60: (LARGE, replace(TRAIN, short_block_iters=3500, weight_decay=0.4)),
}
TEACHERS = 2  # for the hour, each trained for a quarter of it
PREFIX = 64  # the first characters of a window, by which it is found in the text


class HourStudent(Student):
    weight = 0.6  # LOG.md


class Predictions:
    """Models' predictions for a text, computed once; call it with windows (B, T) of the text."""

    def __init__(self, models: list[GPT], data: TokenDataset):
        """For a split of N tokens, read in windows that overlap by half."""
        batches = data.whole_split(32, stride=data.block_size // 2)
        soft = [mean_probabilities(models, x)[y != -1].half() for x, y in batches]
        self.soft = torch.cat(soft)  # (N - 1, V)
        tokens = np.array(data.tokens, dtype=np.int64)
        prefixes = np.lib.stride_tricks.sliding_window_view(tokens, PREFIX)
        # of equal ones the first, after which there is room for any window
        places = reversed(range(len(prefixes)))
        self.places = {hash(prefixes[place].tobytes()): place for place in places}

    def __call__(self, idx: torch.Tensor) -> torch.Tensor:
        """Probabilities (B, T, V) in fp32. ValueError if a window is not in the text."""
        hashes = [hash(prefix.tobytes()) for prefix in idx[:, :PREFIX].cpu().numpy()]
        if not self.places.keys() >= {*hashes}:
            raise ValueError(f"a window is not in the text, or has fewer than {PREFIX} tokens")
        starts = torch.tensor([self.places[each] for each in hashes])
        return self.soft[starts[:, None] + torch.arange(idx.size(1))].float().to(idx.device)


def train_student(asked: TrainConfig, seed: int, flags: list[str]) -> tuple[Path, float]:
    """Trains a seed's teachers and their student; returns the student's run, and all seconds."""
    out_dir = f"{asked.out_dir}-seed{seed}"
    own = [f"--train_minutes={asked.train_minutes / 4}", f"--out_dir={out_dir}-teacher"]
    own += [f"--seed={10 * seed + 1}", f"--seeds={TEACHERS}"]
    runs = main(*TRACKS[15], prepare=shakespeare.prepare, argv=[*flags, *own])
    teachers = [load(run / "last")[0] for run in runs]
    start = time.perf_counter()
    data = open_data(DATA, "train", teachers[0].config.block_size)
    HourStudent.teach = Predictions(teachers, data)
    seconds = sum(map(train_seconds, runs)) + time.perf_counter() - start
    left = max(asked.train_minutes - seconds / 60, 1e-3)
    own = [f"--train_minutes={left}", f"--out_dir={out_dir}", f"--seed={seed}", "--seeds=1"]
    argv = [*flags, *own]
    (run,) = main(*TRACKS[60], prepare=shakespeare.prepare, argv=argv, make_model=HourStudent)
    return run, seconds + train_seconds(run)


def train_seconds(run: Path) -> float:
    return json.loads((run / "result.json").read_text())["train_seconds"]


def row(runs: dict[Path, float], minutes: float) -> str:
    """The row for an entry's runs and their seconds, or a ValueError that names the broken rule."""
    losses = []
    for run, seconds in runs.items():
        model = load(run / "last")[0]
        val_data = open_data(DATA, "val", model.config.block_size)
        if val_data.token_count != VALIDATION:
            raise ValueError(f"{DATA} is not nanoGPT's split of the original text")
        if seconds > 60 * minutes + 1:
            raise ValueError(f"{run} took {seconds:.0f} s")
        losses.append(evaluate(model, val_data, batch_size=16)["val_loss"])
    each = ", ".join(f"{loss:.4f}" for loss in losses)
    loss, seconds = statistics.median(losses), statistics.median(runs.values())
    return (
        f"| {minutes:g} minutes | {date.today()} | **{loss:.4f}** ({each}) | {seconds:.0f} s | "
        f"{torch.get_num_threads()} threads, torch {torch.__version__} | what is new |"
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
    with user_errors():
        _, asked, actions, _ = parse(model, train, flags)
        hour = track == 60 and not actions.dry_run
        if hour and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError("--track=60 runs in one process only: start it without a launcher")
    if hour:
        seeds = range(asked.seed, asked.seed + actions.seeds)
        runs = dict(train_student(asked, seed, flags) for seed in seeds)
    else:
        found = main(model, train, prepare=shakespeare.prepare, argv=flags)
        runs = {run: train_seconds(run) for run in found}
    with user_errors():
        if runs and os.environ.get("RANK", "0") == "0":
            print(row(runs, asked.train_minutes))
