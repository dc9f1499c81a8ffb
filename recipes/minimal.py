"""The loop of `nanogpt.train` in thirty lines of plain Accelerate, for reading and teaching.

    python recipes/minimal.py

It trains the laptop model of recipes/shakespeare.py to the same losses in fp32, up to rounding, but
without checkpoints, flags, metrics, or protection against anything that can go wrong.
"""

from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from shakespeare import LAPTOP as MODEL  # recipes/shakespeare.py
from shakespeare import SHORT as TRAIN

from data_prep import shakespeare
from nanogpt import GPT, GPTConfig, TrainConfig
from nanogpt.data.tokens import TokenDataset
from nanogpt.evaluate import evaluate
from nanogpt.optim import lr_at, make_optimizers, set_learning_rate
from nanogpt.run.parser import OneLineParser


def train(model_config: GPTConfig, config: TrainConfig, accelerator: Accelerator):
    """Trains a model; returns it and the loss of each step, the mean over all processes."""
    # micro-batches are counted over all processes, and each process takes its share
    micro_batches, rest = divmod(config.gradient_accumulation_steps, accelerator.num_processes)
    assert rest == 0, "gradient_accumulation_steps must be a multiple of the number of processes"
    accelerator.gradient_accumulation_steps = micro_batches
    data = TokenDataset(config.data, "train", model_config.block_size)
    torch.manual_seed(config.seed)
    gpt = GPT(replace(model_config, vocab_size=data.meta["vocab_size"]))
    model, *optimizers = accelerator.prepare(gpt, *make_optimizers(gpt, config))

    losses = []
    for step in range(config.max_iters):
        set_learning_rate(optimizers, lr_at(step, config))
        step_loss = torch.zeros((), device=accelerator.device)
        for i in range(micro_batches):
            # a batch is a pure function of the seed and its number: no loader to keep in step
            number = step * config.gradient_accumulation_steps
            number += i * accelerator.num_processes + accelerator.process_index
            x, y = data.batch(config.seed, number * config.batch_size, config.batch_size)  # (B, T)
            # gradients are averaged over the processes at the last micro-batch
            with accelerator.accumulate(model):
                loss = model(x.to(accelerator.device), y.to(accelerator.device))
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), config.grad_clip)
                # Accelerate's wrappers do nothing before the last micro-batch
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            step_loss += loss.detach() / micro_batches
        losses.append(accelerator.reduce(step_loss, "mean"))
        if (step + 1) % 20 == 0:
            accelerator.print(f"step {step + 1}: loss {losses[-1].item():.3f}")
    return gpt, losses


if __name__ == "__main__":
    OneLineParser(description=__doc__).parse_args()  # it has no flags but --help
    accelerator = Accelerator()
    with accelerator.main_process_first():
        if not Path(TRAIN.data, "meta.json").exists():
            shakespeare.prepare(TRAIN.data)
    gpt, _ = train(MODEL, TRAIN, accelerator)
    val_data = TokenDataset(TRAIN.data, "val", MODEL.block_size)
    result = evaluate(gpt, val_data, TRAIN.batch_size, accelerator)
    accelerator.print(f"validation loss {result['val_loss']:.4f}")
