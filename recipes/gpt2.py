"""GPT-2 (124M) from scratch on OpenWebText, with the settings of nanoGPT's config/train_gpt2.py.

    python -m data_prep.openwebtext   # 18 GB of tokens, once
    accelerate launch --config_file accelerate_configs/ddp.yaml recipes/gpt2.py   # eight GPUs
    python recipes/gpt2.py            # one GPU, the same steps

A step has 480 sequences of 1,024 tokens on any number of GPUs; 600,000 steps are 295 billion
tokens. nanoGPT reports a validation loss of about 2.85 after about four days on eight A100 40GB;
the run has not been repeated here. The larger sizes, with the learning rates of GPT-3 (Brown et al.
2020, table 2.1), may need --gradient_checkpointing=True or accelerate_configs/fsdp2.yaml:

    medium  --n_layer=24 --n_head=16 --n_embd=1024 --learning_rate=3e-4 --min_lr=3e-5
    large   --n_layer=36 --n_head=20 --n_embd=1280 --learning_rate=2.5e-4 --min_lr=2.5e-5
    XL      --n_layer=48 --n_head=25 --n_embd=1600 --learning_rate=2e-4 --min_lr=2e-5

On a CPU, with the characters of recipes/shakespeare.py:

    python recipes/gpt2.py --data=data/shakespeare_char --n_layer=4 --n_head=4 --n_embd=128 \\
        --block_size=64 --gradient_accumulation_steps=1 --learning_rate=1e-3 --min_lr=1e-4 \\
        --max_iters=200 --warmup_iters=20 --eval_interval=100  # validation loss 2.46
"""

from nanogpt import GPTConfig, TrainConfig
from nanogpt.train import main

MODEL = GPTConfig(block_size=1024, n_layer=12, n_head=12, n_embd=768)
TRAIN = TrainConfig(
    out_dir="out/gpt2",
    data="data/openwebtext",
    batch_size=12,
    gradient_accumulation_steps=40,  # 12 x 40 x 1,024 tokens; shared among the processes
    max_iters=600_000,
    learning_rate=6e-4,
    min_lr=6e-5,
    warmup_iters=2000,
    eval_interval=1000,
    eval_iters=200,
)

if __name__ == "__main__":
    main(MODEL, TRAIN)
