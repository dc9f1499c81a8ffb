"""A model for your own text, sized to the text and to the machine.

    python -m data_prep.text my_notes/ --out data/mine
    python recipes/own_text.py --data data/mine

It chooses the depth, and recipes/pretrain.py derives the rest: 2 to 12 layers (at most 4 without a
GPU), and no more parameters than the text has tokens, unless it is too short for two layers. The
model sees 20 tokens per parameter (Hoffmann et al. 2022), but at most four epochs (more repetition
gains little; Muennighoff et al. 2023) and, without a GPU, at most four million tokens. A flag
overrides any of this. On a CPU:

    python recipes/own_text.py --data=data/shakespeare_char --max_iters=200 \\
        --out_dir=out/own_shakespeare  # validation loss 1.60
"""

from dataclasses import replace

from pretrain import TOKENS_PER_PARAMETER, measure, shape, training

from nanogpt import GPTConfig, TrainConfig
from nanogpt.hub.weights import on_meta
from nanogpt.run.device import gpu_gib
from nanogpt.run.errors import user_errors
from nanogpt.run.flags import parse
from nanogpt.train import main

EPOCHS = 4
WITHOUT_GPU = 4e6  # tokens: minutes


def size(tokens: int, vocab_size: int, gib: float) -> tuple[GPTConfig, TrainConfig, str]:
    """Model, settings and a note for so many training tokens, on a GPU with `gib` GiB (0: none)."""
    deepest, aspect_ratio, room, most = 4, 32, tokens, WITHOUT_GPU
    if gib >= 4:
        # weights, gradients and moments, 16 bytes for each parameter, take a tenth of the memory
        deepest, aspect_ratio, room, most = 12, 64, min(tokens, gib * 2**30 / 160), float("inf")
    for depth in range(deepest, 1, -1):
        model = shape(depth, aspect_ratio)
        with_vocabulary = replace(model, vocab_size=vocab_size)
        count = on_meta(with_vocabulary).get_num_params()
        if count <= room:
            break
    seen = min(TOKENS_PER_PARAMETER * count, EPOCHS * tokens, most)
    train = training(with_vocabulary, seen / count, gib)
    train.out_dir, train.data = "out/own_text", "data/mine"
    machine = f"{gib:.0f} GiB of GPU memory" if gib else "no GPU"
    return model, train, f"{count:,} parameters for {tokens:,} tokens, {machine}"


if __name__ == "__main__":
    model, train, _ = size(1, 1, 0)
    with user_errors():
        asked = parse(model, train)[1]
        vocab_size, tokens = measure(asked.data)
        model, train, note = size(tokens, vocab_size, gpu_gib(asked.device))
    main(model, train, note=note)
