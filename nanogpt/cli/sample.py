"""`nanogpt sample RUN`: continues a prompt."""

import sys
import time
from argparse import ArgumentParser
from itertools import tee
from pathlib import Path

import torch

from nanogpt.cli.options import (
    TO_UTF8,
    add_device,
    add_json,
    add_run,
    add_sampling,
    load_for_sampling,
    sampling_options,
    show_json,
    utf8,
)
from nanogpt.run.errors import visible
from nanogpt.run.flags import within
from nanogpt.sample import default_prompt, generate, stream, stream_text, until


def add_arguments(command: ArgumentParser) -> None:
    add_run(command)
    add_device(command)
    help = "text to continue; default: a newline, or what else a text begins with"
    command.add_argument("--prompt", type=utf8, metavar="TEXT|FILE:PATH", help=help)
    add_sampling(command, max_new_tokens=500)
    command.add_argument(
        "--num_samples", type=within(int, 1, 10_000), default=1, metavar="N", help="continuations, sampled as one batch"
    )
    command.add_argument("--compile", action="store_true", help="torch.compile: faster on a GPU, for long texts")
    command.add_argument("--ignore_eos", action="store_true", help="continue after the end-of-text token")
    command.add_argument("--stats", action="store_true", help="print tokens per second at the end, on stderr")
    add_json(command)


def read_prompt(prompt: str, tokenizer) -> tuple[str, list[int]]:
    """The text of `--prompt` and its tokens. Raises ValueError if it is empty, or its file is not UTF-8."""
    if prompt.startswith("FILE:"):
        path = prompt[5:]
        try:
            prompt = Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): {TO_UTF8}") from None
    if not prompt:
        raise ValueError("the prompt is empty: give at least one character, such as --prompt ROMEO:")
    return prompt, tokenizer.encode(prompt).tolist()


def run(args) -> None:
    """Streams a single continuation; several are sampled as a batch and printed one after the other."""
    model, tokenizer = load_for_sampling(args)
    device = model.wte.weight.device.type
    prompt, ids = default_prompt(tokenizer) if args.prompt is None else read_prompt(args.prompt, tokenizer)
    context = ids if prompt else []  # the end of a text, which a sample begins with, is not shown
    idx = torch.tensor(ids, device=device).repeat(args.num_samples, 1)
    eos_id = None if args.ignore_eos else tokenizer.eot_id
    options = sampling_options(args) | {"eos_id": eos_id, "compile": args.compile}
    shown = str if args.raw else visible
    start = time.perf_counter()
    if args.num_samples == 1 and not args.json:
        print(shown(prompt), end="", flush=True)
        tokens = (token.item() for token in stream(model, idx, args.max_new_tokens, **options))
        tokens, drawn = tee(until(eos_id, tokens))
        for piece in stream_text(tokenizer, tokens, prompt=context):
            print(shown(piece), end="", flush=True)
        print()
        count = sum(1 for _ in drawn)
    else:
        new = generate(model, idx, args.max_new_tokens, **options)[:, len(ids) :].tolist()
        rows = [list(until(eos_id, row)) for row in new]
        count, texts = sum(map(len, rows)), [tokenizer.decode([*context, *row]) for row in rows]
        if args.json:  # a sample that has ended is shorter by its end-of-text token at least
            ended = [len(row) < args.max_new_tokens for row in rows]
            samples = [{"text": t, "tokens": len(r), "ended": e} for t, r, e in zip(texts, rows, ended, strict=True)]
            show_json({"run": args.RUN, "prompt": prompt, "samples": samples})
        else:
            print(*(f"{shown(text)}\n{'-' * 40}" for text in texts), sep="\n")
    if args.stats:
        seconds = time.perf_counter() - start
        speed = f"{count:,} tokens in {seconds:.2f} s: {count / seconds:,.0f} tokens/s"
        print(f"{speed} ({device}, {args.dtype})", file=sys.stderr)
