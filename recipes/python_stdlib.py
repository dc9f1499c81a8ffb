"""A BPE model on Python's standard library and manual: more text, and no network needed.

    python recipes/python_stdlib.py

5.9 million parameters, a byte-pair encoding of 4096 tokens, 2.8 epochs of 9.6 MB. After 1,800 steps
(19 minutes on two cores of a CPU that computes in bf16) the validation loss is 2.7578, or 1.119
bits per byte. LOG.md has the curve, and how the settings were found. A smaller model:

    python recipes/python_stdlib.py --n_layer=2 --n_head=2 --n_embd=64 --block_size=64 \\
        --max_iters=100 --out_dir=out/python_small  # validation loss 5.48
"""

from data_prep import python_stdlib
from nanogpt import GPTConfig, TrainConfig
from nanogpt.train import main

MODEL = GPTConfig.modern(block_size=256, n_layer=6, n_head=4, n_embd=256)
TRAIN = TrainConfig(
    out_dir="out/python_stdlib",
    data="data/python_stdlib",
    batch_size=16,
    max_iters=1800,
    eval_interval=300,
    optimizer="muon",
    learning_rate=0.01,  # of embeddings and norms
    weight_decay=0.0,
    lr_schedule="linear",
    warmup_iters=0,
    min_lr=0.0,
)

if __name__ == "__main__":
    main(MODEL, TRAIN, prepare=python_stdlib.prepare)
