"""Loss on held-out tokens: over the whole split, or nanoGPT's estimate from random batches."""

import math
from collections.abc import Callable, Iterator

import torch

from nanogpt.data.tokens import Batch, TokenDataset, to_device
from nanogpt.model import GPT


def random_batches(
    data: TokenDataset, batch_size: int, eval_iters: int, seed: int, process: int, processes: int
) -> Iterator[Batch]:
    """This process's share of `eval_iters` batches drawn by `seed`."""
    # the same number on every process, as sharded models require; surplus ones have targets of -1
    for i in range(process, processes * math.ceil(eval_iters / processes), processes):
        x, y = data.batch(seed, i * batch_size, batch_size)
        yield x, (y if i < eval_iters else torch.full_like(y, -1))


@torch.no_grad()
def evaluate(
    model: GPT,
    data: TokenDataset,
    batch_size: int,
    accelerator=None,
    eval_iters: int = 0,
    seed: int = 0,
    check: Callable[[], object] = lambda: None,
    stride: int = 0,
) -> dict[str, float]:
    """`val_loss` in nats per token, `val_perplexity` and `val_bpb`, bits per byte of text.

    With eval_iters=0 every token of the split is predicted exactly once, from the tokens before it
    in its window of block_size: batch size and number of processes do not matter. Windows start
    every `stride` tokens (0: block_size; see `TokenDataset.whole_split`). With eval_iters > 0 it is
    the mean over that many batches drawn by `seed`, as in nanoGPT: faster, but noisy. The processes
    of an `accelerate.Accelerator` share the batches, and all get the result; `check` is called
    before each batch, equally often on all processes. The forward pass runs in the model's
    precision: bf16 changed the loss by 1e-4 at most (LOG.md).
    """
    device, process, processes = model.wte.weight.device, 0, 1
    if accelerator is not None:
        process, processes = accelerator.process_index, accelerator.num_processes
    if eval_iters:
        batches = random_batches(data, batch_size, eval_iters, seed, process, processes)
    else:
        # without a backward pass more sequences fit, and they use the cores better
        sequences = max(batch_size, 4096 // data.block_size)
        batches = data.whole_split(sequences, process, processes, stride)
    training = model.training
    model.eval()
    losses, targets = [torch.zeros((), device=device)], 0
    try:
        for x, y in batches:
            check()
            targets += (y != -1).sum().item()  # on the host
            losses.append(model(*to_device((x, y), device), reduction="sum"))
    finally:
        model.train(training)
    # the host waits for the device only here
    total = torch.tensor([sum(torch.stack(losses).tolist()), targets], dtype=torch.float64)
    if processes > 1:
        total = accelerator.reduce(total.to(device))
    nats, targets = total.tolist()
    loss = nats / targets
    bits_per_byte = loss / math.log(2) / data.bytes_per_token
    return {"val_loss": loss, "val_perplexity": math.exp(min(loss, 700)), "val_bpb": bits_per_byte}
