"""Character-level GPT on tiny Shakespeare: the first thing to run.

    python recipes/shakespeare.py  # validation loss 1.50

On a CPU, or a GPU with little memory, it trains a laptop-sized model of 0.77 million parameters:
800 steps, about a minute on two cores that compute in bf16 (two to three on older CPUs). nanoGPT's
settings for the CPU reach 1.90 in 2000 steps. On a GPU it trains a model the size of nanoGPT's baby
GPT (6 layers, 384 channels, context 256); its loss has not been measured yet. LOG.md says how the
settings were found, and what did not help.
"""

from dataclasses import replace

from data_prep import shakespeare
from nanogpt import GPTConfig, TrainConfig
from nanogpt.run.device import gpu_gib
from nanogpt.run.flags import asked_device
from nanogpt.train import main

LAPTOP = GPTConfig.modern(
    block_size=256,
    n_layer=4,
    n_head=4,
    n_embd=128,
    n_inner=320,
    tie_embeddings=False,
    train_temperature=0.9,  # the text is read 1.6 times, which makes models overconfident
)
BABY = GPTConfig.modern(block_size=256, n_layer=6, n_head=6, n_embd=384, dropout=0.2)

SHORT = TrainConfig(
    out_dir="out/shakespeare",
    data="data/shakespeare_char",
    batch_size=8,
    max_iters=800,
    eval_interval=200,
    optimizer="muon",
    muon_momentum=0.9,  # a short run should forget its beginning sooner than with 0.95
    learning_rate=0.01,  # of embeddings, output projection and norms
    beta1=0.8,
    weight_decay=0.0,
    lr_schedule="linear",
    warmup_iters=0,
    min_lr=0.0,
)
LONG = replace(
    SHORT,
    batch_size=64,
    max_iters=2000,
    eval_interval=250,
    muon_momentum=0.95,
    learning_rate=3e-3,
    beta1=0.9,
    weight_decay=0.1,
)
GIB = gpu_gib(asked_device())
if GIB >= 4:
    MODEL, TRAIN = BABY, LONG
    NOTE = f"a model the size of nanoGPT's baby GPT, because there is a GPU with {GIB:.0f} GiB"
else:
    MODEL, TRAIN = LAPTOP, SHORT
    NOTE = "a laptop-sized model, because there is no GPU with 4 GiB of memory"

if __name__ == "__main__":
    main(MODEL, TRAIN, prepare=shakespeare.prepare, note=NOTE)
