"""Fine-tunes GPT-2 on tiny Shakespeare, in GPT-2's byte-pair encoding.

    python recipes/finetune_shakespeare.py
    python recipes/finetune_shakespeare.py --init_from=gpt2-medium --out_dir=out/medium

The weights come from the Hub (548 MB for gpt2) or from a directory that --init_from names, and the
data must be prepared with their tokenizer (recipes/README.md shows this for SmolLM2). Of the
model's settings only block_size, dropout, separator, train_temperature and gradient_checkpointing
can be set here; the others are the checkpoint's, and a flag that contradicts them is an error.
GPT-2 has not been measured yet. Without a network, you can fine-tune the second model in the
docstring of recipes/own_text.py; its loss falls slightly, from 1.60:

    python recipes/finetune_shakespeare.py --init_from=out/own_shakespeare \\
        --data=data/shakespeare_char --block_size=128 --dropout=0 --learning_rate=1e-3 \\
        --eval_interval=100  # validation loss 1.58
"""

from functools import partial

from data_prep import shakespeare
from nanogpt import GPTConfig, TrainConfig
from nanogpt.train import main

MODEL = GPTConfig(block_size=256, dropout=0.1)
TRAIN = TrainConfig(
    init_from="gpt2",
    out_dir="out/finetune_shakespeare",
    data="data/shakespeare_gpt2",
    batch_size=4,
    gradient_accumulation_steps=8,  # 8,192 tokens a step
    max_iters=100,  # 2.7 epochs: it overfits soon after
    learning_rate=5e-5,  # small: the weights are good already
    lr_schedule="linear",
    warmup_iters=10,
    min_lr=0.0,
    eval_interval=20,
    log_interval=1,
    always_save_checkpoint=False,
    require_exportable=True,
)

if __name__ == "__main__":
    main(MODEL, TRAIN, prepare=partial(shakespeare.prepare, tokenizer="gpt2"))
