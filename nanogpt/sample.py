"""Sampling from a GPT, one token at a time, with a key-value cache.

ids = generate(model, prompt, max_new_tokens=100, temperature=0.8, top_k=50, seed=1)
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import takewhile

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanogpt.cache import KVCache, StaticKVCache
from nanogpt.data.tokenizer import END
from nanogpt.model import GPT


def filter_logits(
    logits: torch.Tensor, top_k: int | None = None, top_p: float | None = None
) -> torch.Tensor:
    """Keeps the `top_k` largest logits (B, V), and the likeliest that sum to `top_p`; -inf else.

    The likeliest token is always kept. top_p is nucleus sampling (Holtzman et al. 2020).
    """
    if top_k and top_k < logits.size(-1):
        kth = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None and top_p < 1.0:
        ordered, order = logits.sort(descending=True)
        probs = ordered.softmax(-1)
        beyond = probs.cumsum(-1) - probs > top_p  # more likely tokens already exceed top_p
        logits = logits.masked_fill(beyond.scatter(1, order, beyond), -torch.inf)
    return logits


def draw(logits: torch.Tensor, temperature: float, top_k, top_p, generator=None) -> torch.Tensor:
    """The next token (B, 1) for logits (B, V). ValueError, on a CPU, if they are not finite."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    probs = filter_logits(logits / temperature, top_k, top_p).softmax(-1)
    try:
        return torch.multinomial(probs, 1, generator=generator)
    except RuntimeError:
        if logits.isfinite().all():
            raise
        raise ValueError("the model's logits are not finite: its training has diverged") from None


def sampling_kernels(device: torch.device) -> AbstractContextManager:
    """On CUDA, attention without cuDNN, which plans a new kernel for every context length."""
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(kernels) if device.type == "cuda" else nullcontext()


def next_logits(model: GPT, idx: torch.Tensor, cache: KVCache | None) -> torch.Tensor:
    """Logits (B, V) of the token after idx (B, T), which continues what is in the cache."""
    return model(idx, cache=cache, logits_to_keep=1)[:, -1].float()


@torch.inference_mode()
def stream(
    model: GPT,
    idx: torch.Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    eos_id: int | None = None,
    use_cache: bool = True,
    compile: bool = False,
) -> Iterator[torch.Tensor]:
    """Continues the prompts idx (B, T); yields the next token of each (B,) as soon as it is drawn.

    The end-of-text token `eos_id` ends a sample, which repeats it from then on; the stream ends
    with the last sample. Temperature 0 takes the likeliest token. The same seed draws the same
    tokens on the same device. Raises ValueError at the first token if the prompt is empty, and on a
    CPU if the logits are not finite.

    When the context is full, its older half is dropped and the newer half is read again from
    position 0. (Dropping single tokens, as nanoGPT does, takes a full pass for each token.)
    `use_cache=False` reads the context again for every token, with the same result, for tests.

    `compile` compiles the step for one token, once, for a GPU; the prompt is read without it. On a
    CPU use `nanogpt.ops.decode.compile_decoding`.
    """
    if idx.size(1) == 0:
        raise ValueError("the prompt is empty: give at least one token")
    block_size = model.config.block_size
    generator = None if seed is None else torch.Generator(idx.device).manual_seed(seed)
    context = idx[:, -block_size:]
    batch, weight = idx.size(0), model.wte.weight
    # compile_decoding and run.device.compile_model replace a block's forward
    blocks_are_compiled = "forward" in vars(model.h[0])
    cache, read = None, next_logits
    if use_cache and compile and not blocks_are_compiled:
        cache = StaticKVCache(model.config, batch, weight.device, weight.dtype)
        # on a GPU one CUDA graph instead of hundreds of launches, which take longer than the
        # kernels of a small model
        read = torch.compile(next_logits, mode="reduce-overhead", dynamic=False)
    elif use_cache:
        room = min(block_size, context.size(1) + max_new_tokens)
        cache = KVCache(model.config, batch, weight.device, weight.dtype, room)
    unread = context
    ended = torch.zeros(idx.size(0), dtype=torch.bool, device=idx.device)
    for _ in range(max_new_tokens):
        if context.size(1) > block_size:
            context = unread = context[:, -max(1, block_size // 2) :]
            if cache is not None:
                cache.clear()
        # torch.compile specializes on 0 and 1: first compile when two tokens are in the cache
        single_token = unread.size(1) == 1 and context.size(1) > 2
        mode = nullcontext()
        if (compile or blocks_are_compiled) and not single_token:
            mode = torch.compiler.set_stance("force_eager")
        with sampling_kernels(idx.device), mode:
            logits = read(model, unread if use_cache else context, cache)
        unread = draw(logits, temperature, top_k, top_p, generator)
        if eos_id is not None:
            unread = unread.masked_fill(ended[:, None], eos_id)
            ended |= unread[:, 0] == eos_id
        context = torch.cat((context, unread), dim=1)
        yield unread[:, 0]
        if eos_id is not None and ended.all():
            return


def generate(model: GPT, idx: torch.Tensor, max_new_tokens: int, **options) -> torch.Tensor:
    """The prompts idx (B, T) with max_new_tokens appended: (B, T + max_new_tokens).

    Options are those of `stream`. With `eos_id` there are fewer if all samples end earlier;
    `until` removes the repeated end-of-text tokens.
    """
    training = model.training
    model.eval()
    try:
        new = list(stream(model, idx, max_new_tokens, **options))
    finally:
        model.train(training)
    return torch.cat((idx, torch.stack(new, dim=1)), dim=1) if new else idx


def until(eos_id: int | None, tokens: Iterable[int]) -> Iterator[int]:
    """The tokens before the first end-of-text token, or all of them."""
    return takewhile(lambda token: token != eos_id, tokens)


def stream_text(tokenizer, tokens: Iterator[int], prompt: Sequence[int] = ()) -> Iterator[str]:
    """The text of tokens that continue `prompt`, in pieces that never split a UTF-8 character.

    Tokens are decoded together with those of the previous piece, because some tokenizers mark the
    start of words and drop the first mark.
    """
    previous, pending = [int(token) for token in prompt[-8:]], []
    for token in tokens:
        pending.append(token)
        piece = decode_after(tokenizer, previous, pending)
        # a character has at most four tokens; after more, the bytes are not UTF-8
        if not piece.endswith("\ufffd") or len(pending) >= 8:
            yield piece
            previous, pending = pending, []
    if pending:
        yield decode_after(tokenizer, previous, pending)


def decode_after(tokenizer, previous: list[int], pending: list[int]) -> str:
    """The text that the tokens `pending` add to `previous`."""
    before, text = tokenizer.decode(previous), tokenizer.decode(previous + pending)
    return text[len(before) :] if text.startswith(before) else tokenizer.decode(pending)


def default_prompt(tokenizer) -> tuple[str, list[int]]:
    """The default prompt: a newline, or else the end-of-text token, or else the first token.

    Returns its text and its tokens.
    """
    with suppress(ValueError):  # a vocabulary without newline
        ids = tokenizer.encode("\n").tolist()
        if "\n" in tokenizer.decode(ids):  # some drop white space, or read it as unknown
            return "\n", ids
    if tokenizer.eot_id is not None:
        return "", [tokenizer.eot_id]
    plain = (i for i in range(tokenizer.vocab_size) if i not in tokenizer.special.values())
    first = next((i for i in plain if tokenizer.decode([i])), 0)
    return tokenizer.decode([first]), [first]


def sample_text(
    model: GPT,
    tokenizer,
    start: np.ndarray,
    max_new_tokens: int,
    seed: int,
    check: Callable[[], object] = lambda: None,
) -> str:
    """The text of the tokens `start` (T,) and of the model's continuation, up to its end.

    Can be called during training: it uses its own random numbers and restores the model's mode.
    `check` is called after each token; an exception from it ends the sample.
    """
    idx = torch.from_numpy(start.astype(np.int64)).to(model.wte.weight.device)[None]
    training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):  # every length would be compiled again
            # no eos_id: all processes call `check` equally often
            drawn = stream(model, idx, max_new_tokens, temperature=0.8, top_k=200, seed=seed)
            new = []
            for token in drawn:
                check()
                new.append(token.item())
    finally:
        model.train(training)
    ends = {tokenizer.eot_id, tokenizer.special.get(END)}
    continuation = takewhile(lambda token: token not in ends, new)
    return tokenizer.decode([*start.tolist(), *continuation])
