r"""Conversations as tokens, in the format ChatML, and a model's answers to them.

    <|im_start|>user
    What is 2 + 2?<|im_end|>
    <|im_start|>assistant
    4<|im_end|>

A message is {"role": "system", "user" or "assistant", "content": its text}. White space around the
content is dropped. `START` and `END` are special tokens, which no text can spell. `TEMPLATE`
renders the same text in transformers.
"""

from collections.abc import Iterator

import numpy as np

from nanogpt.model import GPT
from nanogpt.text.generate import stream_text
from nanogpt.text.tokenizer import END, START

ROLES = ("system", "user", "assistant")
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def can_chat(tokenizer) -> bool:
    return {START, END} <= tokenizer.special.keys()


def render(tokenizer, messages: list[dict]) -> np.ndarray:
    """The tokens of a conversation, int64."""
    ids: list[int] = []
    newline = tokenizer.encode("\n")
    for message in messages:
        text = tokenizer.encode(f"{message['role']}\n{message['content'].strip()}")
        ids += [tokenizer.special[START], *text, tokenizer.special[END], *newline]
    return np.array(ids, dtype=np.int64)


def answer_begin(tokenizer) -> list[int]:
    """The tokens after which an answer follows."""
    return [tokenizer.special[START], *tokenizer.encode("assistant\n").tolist()]


def prompt(tokenizer, messages: list[dict], length: int) -> np.ndarray:
    """The tokens of a conversation up to the next answer, at most `length`.

    Drops the oldest questions and their answers until the rest fits; the system's message stays.
    Raises ValueError if the last message is too long.
    """
    first = messages[:1] if messages[0]["role"] == "system" else []
    rest = messages[len(first) :]
    while True:
        ids = np.concatenate([render(tokenizer, first + rest), answer_begin(tokenizer)])
        if len(ids) <= length:
            return ids
        if len(rest) < 3:
            raise ValueError(f"the message is too long: {len(ids)} tokens of {length} at most")
        rest = rest[2:]


def answer(
    model: GPT, tokenizer, messages: list[dict], max_new_tokens: int, **options
) -> Iterator[str]:
    """Yields the answer to a conversation in pieces; `options` as `nanogpt.sample.stream`.

    The conversation may fill at least half of the context; the answer may fill the rest. Raises
    ValueError at the first piece, see `prompt`.
    """
    block_size, end = model.config.block_size, tokenizer.special[END]
    ids = prompt(tokenizer, messages, block_size - min(max_new_tokens, block_size // 2))
    room = min(max_new_tokens, block_size - len(ids))
    yield from stream_text(model, tokenizer, ids.tolist(), room, eos_id=end, **options)
