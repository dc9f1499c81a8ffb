"""Pretraining with one setting, the number of layers, from which everything else follows.

    python -m data_prep.fineweb_edu                          # the default data, 20 GB of tokens
    nanogpt plan recipes/pretrain.py --depth=12              # memory and time
    python recipes/pretrain.py --depth=12                    # 124 million parameters, as GPT-2

`shape` derives the model from the depth, `training` the training from the model; any other flag
overrides them. --data names any data directory, or a mixture. Several GPUs take the same steps.
Depth 12 has not been measured yet. On a CPU, with the characters of recipes/shakespeare.py:

    python recipes/pretrain.py --depth=2 --aspect_ratio=32 --tokens_per_parameter=5 \\
        --data=data/shakespeare_char  # validation loss 1.84
"""

import math
from argparse import Namespace
from dataclasses import replace

from nanogpt import GPTConfig, TrainConfig
from nanogpt.hub.weights import on_meta
from nanogpt.run.device import gpu_gib
from nanogpt.run.errors import user_errors
from nanogpt.run.flags import parse, settings_parser
from nanogpt.run.parser import OneLineParser, within
from nanogpt.text.directories import load_meta, read_shares
from nanogpt.train import main

DATA, VOCABULARY = "data/fineweb_edu", 50257  # GPT-2's tokens
DEPTH, ASPECT_RATIO, TOKENS_PER_PARAMETER = 12, 64, 20.0


def shape(depth: int, aspect_ratio: int = ASPECT_RATIO) -> GPTConfig:
    """The model with `depth` layers: norms, positions and MLP as in Qwen3 (2025).

    - width: `aspect_ratio` channels per layer, by default 64 (nanochat; 12 x 64 is GPT-2's 768)
    - heads: one per layer, so a head has `aspect_ratio` channels, by default GPT-2's 64
    - context: the power of two nearest to the width, up to nanochat's 2,048: attention adds about
      a sixth to the matmuls of the blocks, T / (6 C), up to depth 32
    """
    width = aspect_ratio * depth
    context = min(2048, 2 ** round(math.log2(width)))
    return GPTConfig.modern(n_layer=depth, n_head=depth, n_embd=width, block_size=context)


def training(
    model: GPTConfig, tokens_per_parameter: float = TOKENS_PER_PARAMETER, gib: float = 0
) -> TrainConfig:
    """The training of a model with its vocabulary, on a GPU with `gib` GiB, or 0 without one.

    - tokens: 20 for each parameter, embeddings included (Hoffmann et al. 2022)
    - batch: 0.292 C^0.3271 tokens for C operations in all (DeepSeek LLM 2024, equation 1), in
      sequences, whose number is `rounded`; dividing it into micro-batches does not change a step
    - Muon for the blocks' matrices: 0.02 at any width, because its updates change outputs by the
      same amount at any width (Jordan 2024); less momentum in short runs, which forget their
      beginning sooner (LOG.md: 0.85 in 200 steps, 0.9 in 600)
    - AdamW for the rest: 0.01 at 128 channels (LOG.md), falling with the square root of the width
    - schedule: linear to zero (Bergsma et al. 2025), without warm-up (LOG.md)
    """
    gpt = on_meta(model)
    tokens = tokens_per_parameter * gpt.get_num_params()
    batch = 0.292 * (gpt.flops_per_token() * tokens) ** 0.3271
    batch_size, accumulation = rounded(batch / model.block_size), 1
    steps = max(1, round(tokens / (batch_size * model.block_size)))
    most = 65_536 if gib >= 40 else 16_384 if gib else 4_096  # tokens in a micro-batch
    while batch_size * model.block_size > most and batch_size % 2 == 0:
        batch_size, accumulation = batch_size // 2, 2 * accumulation
    return TrainConfig(
        out_dir="out/pretrain",
        data=DATA,
        batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_iters=steps,
        eval_interval=min(500, math.ceil(steps / 5)),  # a killed run resumes from the last one
        optimizer="muon",
        muon_learning_rate=0.02,
        muon_momentum=min(0.95, max(0.8, 1 - 2.5 / math.sqrt(steps))),
        learning_rate=0.01 * math.sqrt(128 / model.n_embd),
        beta1=0.8,  # nanochat
        beta2=0.95,
        weight_decay=0.1 if model.n_embd > 128 else 0.0,  # not tuned above 128 channels (LOG.md)
        lr_schedule="linear",
        warmup_iters=0,
        min_lr=0.0,
    )


def rounded(sequences: float) -> int:
    """Rounds to 4, 5, 6 or 7 times a power of two, which most numbers of GPUs can share evenly."""
    unit = 2 ** max(0, math.floor(math.log2(sequences / 4)))
    return max(4, round(sequences / unit) * unit)


def measure(data: str) -> tuple[int, int]:
    """The vocabulary size and training tokens of a data directory or a mixture, or a ValueError."""
    metas = [load_meta(directory) for directory in read_shares(data)]
    return metas[0]["vocab_size"], sum(meta["splits"]["train"]["tokens"] for meta in metas)


def read_flags(parser: OneLineParser, aspect_ratio: int, argv=None) -> tuple[Namespace, list[str]]:
    """Parses the command line with three more flags; returns all values, and the other flags."""
    dials = {
        "depth": (within(int, 1, 64), DEPTH, "layers; everything else follows from it"),
        "aspect_ratio": (within(int, 2, 1024), aspect_ratio, "channels per layer"),
        "tokens_per_parameter": (within(float, 1e-3, 1e6), TOKENS_PER_PARAMETER, "to train on"),
    }
    group = parser.add_argument_group("dials")
    for name, (kind, default, text) in dials.items():
        group.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=text)
    given = parser.parse_args(argv)
    return given, [f"--{k}={v}" for k, v in vars(given).items() if k not in dials]


def run(argv: list[str] | None = None, **options) -> list:
    """Reads the command line, then trains or plans. Options and result as in `train.main`."""
    shown = training(replace(shape(DEPTH), vocab_size=VOCABULARY))
    given, flags = read_flags(settings_parser(shape(DEPTH), shown), ASPECT_RATIO, argv)
    with user_errors():
        base = shape(given.depth, given.aspect_ratio)
        model, asked, *_ = parse(base, TrainConfig(data=DATA), flags)
        model.vocab_size = model.vocab_size or measure(asked.data)[0]
        train = training(model, given.tokens_per_parameter, gpu_gib(asked.device))
    return main(base, train, argv=flags, **options)


if __name__ == "__main__":
    run()
