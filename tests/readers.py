"""Programs that continue an export with the model's own 32 greedy tokens, and the shapes of which a test shows it.

The tests of a program are parametrized by its shapes here; tests/docs/test_readers.py compares docs/publishing.md with
this table.
"""

import dataclasses
import string
from pathlib import Path

import torch
from conversations import talk
from shapes import CASES, CHARACTERS, make_checkpoint

from nanogpt import chat
from nanogpt.data.tokenizer import START, CharTokenizer
from nanogpt.generate import generate
from nanogpt.hub.load import load

SHAPES = {"GPT-2": "gpt2, biases, tanh", "Llama": "llama", "Qwen3": "qwen3"}  # in tests/shapes.py
READERS = {
    "transformers' `pipeline`": ("GPT-2", "Llama", "Qwen3"),
    "transformers' `pipeline`, given messages": ("GPT-2", "Llama", "Qwen3"),
    "`transformers serve`": ("GPT-2", "Llama", "Qwen3"),
    "llama.cpp (GGUF in F32)": ("GPT-2", "Llama", "Qwen3"),
}
NEW = 32
PROMPT = "ROMEO:"


def table() -> str:
    """READERS as Markdown."""
    lines = [["reader", *SHAPES], ["---"] * (len(SHAPES) + 1)]
    lines += [
        [name, *("yes" if shape in able else "not supported" for shape in SHAPES)] for name, able in READERS.items()
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def make_run(out_dir: Path, shape: str, talks: bool = False) -> Path:
    """A model of that shape at character level; one that `talks` has the tokens of conversations."""
    tokenizer = CharTokenizer("".join(sorted(string.printable[:95] + "\n")) if talks else CHARACTERS)
    tokenizer = chat.add_tokens(tokenizer) if talks else tokenizer
    config = dataclasses.replace(CASES[SHAPES[shape]], vocab_size=tokenizer.vocab_size, block_size=80)
    make_checkpoint(out_dir, config, tokenizer)
    return out_dir


def continuation(run: Path) -> str:
    """What the model writes after PROMPT."""
    model, tokenizer, _ = load(run)
    ids = torch.from_numpy(tokenizer.encode(PROMPT))[None]
    return tokenizer.decode(generate(model, ids, NEW, temperature=0)[0, ids.size(1) :].tolist())


def question(run: Path) -> tuple[list[dict], str]:
    """Messages to which the model writes an answer that does not end before NEW tokens, and the answer."""
    model, tokenizer, _ = load(run)
    for text in string.ascii_letters:
        answer = "".join(chat.answer(model, tokenizer, talk(text), NEW, temperature=0))
        if len(answer) == NEW and START not in answer:
            return talk(text), answer
    raise AssertionError("every answer ends early")
