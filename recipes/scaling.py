"""Scaling law: trains small models of several sizes, and predicts the loss of a larger one.

    python recipes/scaling.py            # writes out/scaling/scaling.json
    python recipes/scaling.py --check    # also trains the larger model, and compares

Each size (a rung) is a model of recipes/pretrain.py. All have 20 tokens per parameter and the same
context, because the loss depends on both. Seeds differ by up to 1%, so each rung but the last is
the mean of three (--seeds). A finished run is reused, and an interrupted one resumes. Other flags
go to every run, such as --data, or --aspect_ratio=64 on a GPU. The text is Python's standard
library, tokenized by bytes.

The law is L(C) = E + A C^-alpha with an irreducible loss E (Hoffmann et al. 2022). Three rungs do
not determine E, so with three it is 0: the power law of Kaplan et al. (2020). Do not trust it too
far: for four times the compute of the last rung, the ladders in LOG.md missed the loss by 0.3% to
4.3%, and it says nothing about runs that read their text more than four times (Muennighoff et al.
2023).
"""

import json
import os
from pathlib import Path

import numpy as np
import pretrain
import torch

from data_prep import python_stdlib
from nanogpt import TrainConfig, checkpoint
from nanogpt.hub.weights import on_meta
from nanogpt.run.errors import user_errors
from nanogpt.run.flags import settings_parser

DATA, OUT_DIR = "data/python_bytes", "out/scaling"
DEPTHS, ASPECT_RATIO, CONTEXT = "2,3,4,5", 12, 128  # for a CPU


def fit(compute: np.ndarray, losses: np.ndarray) -> tuple[float, float, float]:
    """(E, A, alpha) that minimize the squared relative errors, with E from a grid.

    For each E, a straight line through the logarithms gives A and alpha.
    """
    floors = np.linspace(0, 0.999 * losses.min(), 10_000 if len(losses) > 3 else 1)
    slopes, intercepts = np.polyfit(np.log(compute), np.log(losses[:, None] - floors), 1)
    fitted = floors + np.exp(intercepts) * compute[:, None] ** slopes  # (rungs, floors)
    best = np.square(np.log(fitted / losses[:, None])).sum(0).argmin()
    return float(floors[best]), float(np.exp(intercepts[best])), float(-slopes[best])


def train(depth: int, seeds: int, out_dir: str, flags: list[str]) -> dict:
    """Trains a rung's runs that are not finished; returns their mean loss and the compute."""
    own = [f"--depth={depth}", f"--seeds={seeds}", f"--out_dir={out_dir}/depth-{depth}"]
    torch.compiler.reset()  # dynamo keeps the graphs of a few sizes only
    runs = pretrain.run([*own, "--resume=auto", *flags])
    if not runs:
        raise ValueError("a dry run has no loss: plan a rung with recipes/pretrain.py --dry_run")
    results = [json.loads((run / "result.json").read_text()) for run in runs]
    flops = on_meta(checkpoint.load_configs(runs[0])[0]).flops_per_token()
    if any(result["val_loss"] is None for result in results):
        raise ValueError(f"{out_dir}/depth-{depth} diverged: lower --learning_rate")
    loss = float(np.mean([result["val_loss"] for result in results]))
    return {"depth": depth, "val_loss": loss, "compute": results[0]["tokens"] * flops}


def run() -> None:
    defaults = TrainConfig(data=DATA, out_dir=OUT_DIR)
    parser = settings_parser(pretrain.shape(2, ASPECT_RATIO), defaults)
    parser.add_argument("--depths", default=DEPTHS, metavar="N,N,N", help="depths of the models")
    parser.add_argument("--check", action="store_true", help="also train the predicted model")
    # evaluations take longer than the smallest runs
    parser.set_defaults(data=DATA, out_dir=OUT_DIR, block_size=CONTEXT, eval_interval=10**6)
    parser.set_defaults(seeds=3)  # of each rung but the last, which has one
    given, flags = pretrain.read_flags(parser, ASPECT_RATIO)
    given.data, given.out_dir = map(os.path.expanduser, (given.data, given.out_dir))
    ours = ("--depths", "--check", "--out_dir", "--seeds")
    flags = [f for f in flags if f.split("=")[0] not in ours]
    flags.append(f"--aspect_ratio={given.aspect_ratio}")
    with user_errors():
        depths = [int(word) for word in given.depths.split(",") if word.isdecimal()]
        rising = given.depths.split(",") == [str(n) for n in sorted({*depths})]
        if len(depths) < 3 or not rising or depths[-1] > 64:  # as --depth of pretrain.py
            raise ValueError(f"--depths={given.depths} must be three or more, rising to 64 at most")
        if given.data == DATA and not Path(DATA, "meta.json").exists():
            if int(os.environ.get("WORLD_SIZE", 1)) > 1:
                raise ValueError(f"{DATA} is missing: start in one process first, which makes it")
            python_stdlib.prepare(DATA, tokenizer="bytes")
        vocab_size, _ = pretrain.measure(given.data)
        ladder = [*flags, f"--tokens_per_parameter={given.tokens_per_parameter}"]
        rungs = [train(depth, int(given.seeds), given.out_dir, ladder) for depth in depths[:-1]]
        rungs.append(train(depths[-1], 1, given.out_dir, ladder))
        law = fit(*(np.array([rung[key] for rung in rungs]) for key in ("compute", "val_loss")))
        print("L(C) = {:.4f} + {:.4g} C^-{:.4f}".format(*law))
        compute, check = 4 * rungs[-1]["compute"], None
        if given.check:  # compute grows with the sixth power of the depth
            depth = max(depths[-1] + 1, round(depths[-1] * 4 ** (1 / 6)))
            model = pretrain.shape(depth, given.aspect_ratio)
            model.vocab_size, model.block_size = vocab_size, int(given.block_size)
            gpt = on_meta(model)
            tokens = compute / gpt.flops_per_token() / gpt.get_num_params()
            more = [*flags, f"--tokens_per_parameter={tokens}"]
            check = train(depth, 1, given.out_dir, more)
            compute = check["compute"]
        loss = law[0] + law[1] * compute ** -law[2]
        print(f"{compute:.3g} operations: {loss:.4f}")
        if check:
            print(f"trained: {check['val_loss']:.4f}, {check['val_loss'] / loss - 1:+.2%}")
        found = {"rungs": rungs, "law": law, "compute": compute, "val_loss": loss, "check": check}
        checkpoint.write_json(Path(given.out_dir, "scaling.json"), found)


if __name__ == "__main__":
    run()
