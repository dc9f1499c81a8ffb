"""nanoGPT's character-level Shakespeare, setting for setting: the classic baseline to compare with.

    python recipes/shakespeare_nanogpt.py

GPT-2 family, AdamW, cosine: 10.65M parameters, 5000 steps, validation loss about 1.47 on a GPU
(nanoGPT's README). On a CPU, nanoGPT's own smaller settings, 2000 steps:

    python recipes/shakespeare_nanogpt.py --device=cpu --compile=False --eval_iters=20 \\
        --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 \\
        --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0  # validation loss 1.91
"""

from data_prep import shakespeare
from nanogpt import GPTConfig, TrainConfig
from nanogpt.run.device import gpu_gib
from nanogpt.run.flags import asked_device
from nanogpt.train import main

MODEL = GPTConfig(block_size=256, n_layer=6, n_head=6, n_embd=384, dropout=0.2)
TRAIN = TrainConfig(
    out_dir="out/shakespeare_nanogpt",
    data="data/shakespeare_char",
    batch_size=64,
    max_iters=5000,
    learning_rate=1e-3,
    min_lr=1e-4,
    warmup_iters=100,
    beta2=0.99,  # a step has few tokens
    eval_interval=250,
    eval_iters=200,
    always_save_checkpoint=False,  # it overfits in the end: keep the best
    # nanoGPT uses bf16 only on a GPU
    precision="auto" if gpu_gib(asked_device()) else "fp32",
)

if __name__ == "__main__":
    main(MODEL, TRAIN, prepare=shakespeare.prepare)
