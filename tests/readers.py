"""Programs that continue an export with the model's own 32 greedy tokens, and the shapes of which a test shows it.

The tests of a program are parametrized by its shapes here; docs/publishing.md has the same table.
"""

import dataclasses
import string
from pathlib import Path

import torch
from conversations import talk
from helpers import randomize
from shapes import CASES, CHARACTERS, make_checkpoint

from nanogpt import GPT
from nanogpt.text import chat
from nanogpt.text.tokenizer import END, START, char_tokenizer

SHAPES = {
    "GPT-2": dataclasses.replace(CASES["gpt2"], mlp="gelu_tanh"),
    "Llama": CASES["llama"],
    "Qwen3": CASES["qwen3"],
}
READERS = {
    "transformers' `pipeline`": ("GPT-2", "Llama", "Qwen3"),
    "transformers' `pipeline`, given messages": ("GPT-2", "Llama", "Qwen3"),
    "`transformers serve`": ("GPT-2", "Llama", "Qwen3"),
    "llama.cpp (GGUF in F32)": ("GPT-2", "Llama", "Qwen3"),
    "ONNX Runtime": ("GPT-2", "Llama", "Qwen3"),
    "transformers.js, in Chromium": ("GPT-2", "Llama", "Qwen3"),
}
NEW = 32
PROMPT, MESSAGES = "ROMEO:", talk("who?")


def make_run(out_dir: Path, shape: str, talks: bool = False) -> Path:
    """A model of that shape at character level, which does not repeat itself; one that `talks` answers messages."""
    tokenizer = char_tokenizer("".join(sorted(string.printable[:95] + "\n")) if talks else CHARACTERS)
    tokenizer = tokenizer.with_special([START, END]) if talks else tokenizer
    config = dataclasses.replace(SHAPES[shape], vocab_size=tokenizer.vocab_size, block_size=80)
    write = answer if talks else continuation
    for seed in range(100):
        model = GPT(config).eval()
        randomize(model, seed)
        if len(set(write(model, tokenizer))) >= NEW // 3:
            make_checkpoint(out_dir, config, tokenizer, seed)
            return out_dir
    raise AssertionError("all of them repeat themselves")


def continuation(model: GPT, tokenizer) -> str:
    """What the model writes after PROMPT."""
    ids = torch.from_numpy(tokenizer.encode(PROMPT))[None]
    return tokenizer.decode(model.generate(ids, NEW, temperature=0)[0, ids.size(1) :].tolist())


def answer(model: GPT, tokenizer) -> str:
    """What the model answers to MESSAGES; nothing if it ends early."""
    text = "".join(chat.answer(model, tokenizer, MESSAGES, NEW, temperature=0))
    return text if len(text) == NEW and START not in text else ""
