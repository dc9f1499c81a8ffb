"""A chat model, trained on conversations; the loss counts only the assistant's tokens.

    python recipes/chat.py  # validation loss 0.02
    nanogpt chat out/chat

The made-up conversations of data_prep/chat_tasks.py need no network. Two other seeds ended at 0.14
and 0.17, because they had not learned to add yet (LOG.md). docs/chat.md fine-tunes a model on your
own conversations.
"""

from dataclasses import replace

from shakespeare import SHORT

from data_prep import chat_tasks
from nanogpt import GPTConfig
from nanogpt.train import main

MODEL = GPTConfig.modern(block_size=chat_tasks.BLOCK, n_layer=3, n_head=4, n_embd=96, n_inner=256)
TRAIN = replace(  # Muon and the learning rates of recipes/shakespeare.py
    SHORT,
    out_dir="out/chat",
    data="data/chat_tasks",
    batch_size=16,
    max_iters=1000,
    eval_interval=200,
    require_exportable=True,
)

if __name__ == "__main__":
    main(MODEL, TRAIN, prepare=chat_tasks.prepare)
