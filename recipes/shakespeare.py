"""Character-level GPT on tiny Shakespeare: the first thing to run.

    accelerate launch recipes/shakespeare.py

On a CPU, or a GPU with little memory, a laptop-sized model.
"""

from data_prep import shakespeare
from nanogpt import GPTConfig, TrainConfig
from nanogpt.launch import gpu_gib
from nanogpt.train import main

MODERN = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "qk_norm": True}
LAPTOP = GPTConfig(**MODERN, block_size=64, n_layer=4, n_head=4, n_embd=128, n_inner=320)
BABY = GPTConfig(**MODERN, block_size=256, n_layer=6, n_head=6, n_embd=384, dropout=0.2)

memory = gpu_gib()
if memory >= 4:
    MODEL, NOTE = BABY, f"baby GPT: there is a GPU with {memory:.0f} GiB"
    TRAIN = TrainConfig(batch_size=64, max_iters=2000)
else:
    MODEL, NOTE = LAPTOP, "laptop size: there is no GPU" if memory == 0 else "laptop size: the GPU has little memory"
    TRAIN = TrainConfig(
        batch_size=32,
        max_iters=600,
        optimizer="muon",
        learning_rate=3e-3,
        muon_learning_rate=0.02,
        lr_schedule="linear",
        min_lr=0.0,
        warmup_iters=0,
        weight_decay=0.0,
        beta2=0.99,
        eval_interval=200,
        out_dir="out/shakespeare",
    )

if __name__ == "__main__":
    main(MODEL, TRAIN, prepare=shakespeare.prepare, note=NOTE)
