"""Text from a GPT: the default prompt, and sampled tokens decoded into text."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import takewhile

import torch

from nanogpt.model import GPT
from nanogpt.sample import stream
from nanogpt.text.tokenizer import END


def stream_text(
    model: GPT, tokenizer, prompt: list[int], max_new_tokens: int, eos_id: int | None, **options
) -> Iterator[str]:
    """Yields the text that continues the tokens `prompt`, up to the token `eos_id`.

    No piece splits a UTF-8 character. Other options are those of `stream`.
    """
    idx = torch.tensor([prompt], device=model.wte.weight.device)  # (1, T)
    previous = prompt[-8:]
    pending: list[int] = []
    for token in stream(model, idx, max_new_tokens, eos_id=eos_id, **options):
        if token.item() == eos_id:
            break
        pending.append(token.item())
        # decoded together: some tokenizers mark the start of words, and drop the first mark
        before = tokenizer.decode(previous)
        text = tokenizer.decode(previous + pending)
        piece = text[len(before) :] if text.startswith(before) else tokenizer.decode(pending)
        # a character has at most four tokens; after more, the bytes are not UTF-8
        if not piece.endswith("\ufffd") or len(pending) >= 8:
            yield piece
            previous, pending = pending, []
    if pending:
        yield piece


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
    return tokenizer.decode([0]), [0]


def sample_text(model: GPT, tokenizer, start: list[int], max_new_tokens: int, seed: int) -> str:
    """The text of the tokens `start` and of the model's continuation, up to its end.

    Can be called during training: it uses its own random numbers and restores the model's mode.
    """
    idx = torch.tensor([start], device=model.wte.weight.device)  # (1, T)
    whole = model.generate(idx, max_new_tokens, temperature=0.8, top_k=200, seed=seed)
    new = whole[0, len(start) :].tolist()
    ends = {tokenizer.eot_id, tokenizer.special.get(END)}
    continuation = takewhile(lambda token: token not in ends, new)
    return tokenizer.decode([*start, *continuation])
