"""A model for a text of your own, sized to the text and to the machine.

    python -m data_prep.text my_notes/ --out data/mine
    accelerate launch recipes/own_text.py --data data/mine

The model is the largest of five that has no more parameters than the text has tokens and that suits the machine:
without a GPU at most 0.8 million parameters besides the embeddings, with one as much as its memory allows. It is
trained until it has seen 20 tokens for each parameter (Hoffmann et al. 2022), but four epochs at most, after which
repetition gains little (Muennighoff et al. 2023), and without a GPU 2,000 steps at most. A flag overrides any of this.

What to expect of a megabyte of English by characters, on a CPU:

    accelerate launch recipes/own_text.py --data=data/shakespeare_char --max_iters=200  # validation loss 1.73
"""

from nanogpt import GPTConfig, TrainConfig
from nanogpt.config import recorded, settings_parser, user_errors
from nanogpt.data.mixture import read_shares
from nanogpt.data.tokens import read_meta
from nanogpt.runtime.device import gpu_gib
from nanogpt.train import main

MODERN = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "qk_norm": True}
# (GiB of GPU memory it takes, layers, heads, channels, context), the smallest first
SIZES = [(0, 2, 2, 64, 64), (0, 4, 4, 128, 64), (4, 6, 6, 384, 256), (12, 8, 8, 512, 512), (24, 12, 12, 768, 1024)]


def parameters(layers: int, channels: int, vocab_size: int) -> int:
    """Roughly: twelve square matrices in each layer, and the embeddings, which are tied."""
    return 12 * layers * channels**2 + vocab_size * channels


def size(tokens: int, vocab_size: int, gib: float) -> tuple[GPTConfig, TrainConfig, str]:
    """The model and the settings for so many training tokens on a GPU with that much memory, or 0 without one."""
    fitting = [s for s in SIZES if s[0] <= gib and parameters(s[1], s[3], vocab_size) <= tokens]
    _, n_layer, n_head, n_embd, block_size = (fitting or SIZES[:1])[-1]
    model = GPTConfig(**MODERN, n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=block_size)
    count = parameters(n_layer, n_embd, vocab_size)
    batch_size = 32 if n_embd <= 128 else 64 if block_size <= 256 else 16
    accumulation = 1 if block_size <= 256 else 8
    steps = min(20 * count, 4 * tokens) // (batch_size * accumulation * block_size)
    steps = max(min(steps, 2000 if gib == 0 else 20_000), 20)
    train = TrainConfig(
        out_dir="out/own_text",
        batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_iters=steps,
        eval_interval=max(steps // 5, 1),
        optimizer="muon",
        muon_momentum=0.9 if steps < 2000 else 0.95,
        learning_rate=0.01 if n_embd <= 128 else 3e-3,
        beta1=0.8 if steps < 2000 else 0.9,
        lr_schedule="linear",
        warmup_iters=0,
        min_lr=0.0,
        weight_decay=0.0 if n_embd <= 128 else 0.1,
    )
    note = f"about {count:,} parameters for {tokens:,} tokens, " + (f"{gib:.0f} GiB of GPU memory" if gib else "no GPU")
    return model, train, note


if __name__ == "__main__":
    model, train, _ = size(0, 1, 0)
    given = settings_parser(model, train, __doc__).parse_args()
    with user_errors():
        repeated = recorded(given.config) if given.config else {}
        data = given.data or repeated.get("data", "data/mine")
        metas = [read_meta(directory) for directory in read_shares(data)]
        tokens = sum(meta["splits"]["train"]["tokens"] for meta in metas)
        model, train, note = size(tokens, metas[0]["vocab_size"], gpu_gib())
    train.data = data
    main(model, train, note=note)
