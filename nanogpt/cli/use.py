"""`nanogpt sample`, `chat`, `playground`, `export`, `page` and `push`."""

import sys
import time
from argparse import ArgumentParser
from itertools import tee
from pathlib import Path

from nanogpt.cli.options import (
    TO_UTF8,
    add_number,
    add_shared,
    extra,
    note,
    pick_device,
    show,
    show_json,
    utf8,
)
from nanogpt.data.files import plural
from nanogpt.run.errors import visible, waiting


def add_sampling(command: ArgumentParser, max_new_tokens: int) -> None:
    """Adds the arguments that `nanogpt sample` and `nanogpt chat` share."""
    add_shared(command, "RUN", "--checkpoint", "--device", "--trust_recipe")
    add_number(command, "--max_new_tokens", int, 1, 10**7, max_new_tokens, "tokens to add")
    add_number(command, "--temperature", float, 0, 1000, 0.8, "0 takes the most likely token")
    add_number(command, "--top_k", int, 0, 2**24, 200, "only the N most likely tokens; 0: all")
    top_p = "only the most likely tokens whose probabilities sum to N"
    add_number(command, "--top_p", float, 0, 1, 1.0, top_p)
    add_number(command, "--seed", int, 0, 2**63 - 1, None, "the same seed gives the same text")
    command.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "int8"),
        help="dtype of weights and cache; int8: only the weights",
    )
    command.add_argument(
        "--raw", action="store_true", help="print control characters as they are, ESC included"
    )


def sampling_options(args) -> dict:
    """The options of `stream` and `generate` that `add_sampling` adds."""
    return {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "seed")}


def load_for_sampling(args) -> tuple:
    """The model of RUN (with packed weights if on a CPU) and its tokenizer."""
    import torch

    from nanogpt.hub.load import load
    from nanogpt.ops import cpu

    int8 = args.dtype == "int8"
    dtype = torch.float32 if int8 else getattr(torch, args.dtype)
    device = pick_device(args.device)
    options = {"say": note, "trust_recipe": args.trust_recipe}
    model, tokenizer, _ = load(args.RUN, device, dtype, args.checkpoint, **options)
    return cpu.pack(model, int8), tokenizer


def add_sample(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt sample`."""
    add_sampling(command, max_new_tokens=500)
    command.add_argument(
        "--prompt",
        type=utf8,
        metavar="TEXT|FILE:PATH",
        help="text to continue; default: what a text begins with, usually a newline",
    )
    add_number(command, "--num_samples", int, 1, 10_000, 1, "continuations, sampled as one batch")
    command.add_argument("--compile", action="store_true", help="torch.compile, for long texts")
    command.add_argument("--ignore_eos", action="store_true", help="continue after the end of text")
    command.add_argument("--stats", action="store_true", help="print tokens per second on stderr")
    add_shared(command, "--json")


def run_sample(args) -> None:
    """Streams a single continuation; prints several, sampled as one batch, when all are done."""
    import torch

    from nanogpt.sample import default_prompt, generate, stream, stream_text, until

    model, tokenizer = load_for_sampling(args)
    device = model.wte.weight.device.type
    if args.prompt is None:
        prompt, ids = default_prompt(tokenizer)
    else:
        prompt, ids = read_prompt(args.prompt, tokenizer)
    context = ids if prompt else []  # an end-of-text token that a sample begins with is not shown
    idx = torch.tensor(ids, device=device).repeat(args.num_samples, 1)
    eos_id = None if args.ignore_eos else tokenizer.eot_id
    options = sampling_options(args) | {"eos_id": eos_id, "compile": args.compile}
    shown = str if args.raw else visible
    start = time.perf_counter()
    if args.num_samples == 1 and not args.json:
        print(shown(prompt), end="", flush=True)
        drawn = (token.item() for token in stream(model, idx, args.max_new_tokens, **options))
        tokens, counted = tee(until(eos_id, drawn))
        for piece in stream_text(tokenizer, tokens, prompt=context):
            print(shown(piece), end="", flush=True)
        print()
        count = sum(1 for _ in counted)
    else:
        with waiting(f"sampling {plural(args.num_samples, 'text')}", note):
            new = generate(model, idx, args.max_new_tokens, **options)[:, len(ids) :]
        rows = [list(until(eos_id, row)) for row in new.tolist()]
        count, samples = sum(map(len, rows)), []
        for row in rows:
            ended = len(row) < args.max_new_tokens  # by an end-of-text token, which is cut off
            text = tokenizer.decode([*context, *row])
            samples.append({"text": text, "tokens": len(row), "ended": ended})
            if not args.json:
                print(shown(text), "-" * 40, sep="\n")
        if args.json:
            show_json({"run": args.RUN, "prompt": prompt, "samples": samples})
    if args.stats:
        seconds = time.perf_counter() - start
        speed = f"{count:,} tokens in {seconds:.2f} s: {count / seconds:,.0f} tokens/s"
        print(f"{speed} ({device}, {args.dtype})", file=sys.stderr)


def read_prompt(prompt: str, tokenizer) -> tuple[str, list[int]]:
    """The text of `--prompt` and its tokens. Raises ValueError if it is empty or not UTF-8."""
    if prompt.startswith("FILE:"):
        path = prompt[5:]
        try:
            prompt = Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): {TO_UTF8}") from None
    if not prompt:
        raise ValueError("the prompt is empty: give at least a character, such as --prompt ROMEO:")
    return prompt, tokenizer.encode(prompt).tolist()


def add_chat(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt chat`."""
    add_sampling(command, max_new_tokens=200)
    command.add_argument(
        "--system", type=utf8, metavar="TEXT", help="the system's message, before the first one"
    )


def run_chat(args) -> None:
    """Answers line by line until Ctrl-D; piped lines are the messages of one conversation.

    The oldest exchanges are dropped when the context is full.
    """
    from nanogpt.chat import answer, require

    model, tokenizer = load_for_sampling(args)
    require(tokenizer, args.RUN)
    shown = str if args.raw else visible
    terminal = sys.stdin.isatty()
    messages = [{"role": "system", "content": args.system}] if args.system else []
    if terminal:
        note("each line is a message; Ctrl-D ends")
    while (line := read_line(terminal)) is not None:
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        pieces = []
        options = sampling_options(args)
        try:
            for piece in answer(model, tokenizer, messages, args.max_new_tokens, **options):
                print(shown(piece), end="", flush=True)
                pieces.append(piece)
        except ValueError as error:  # too long, or a character that the model does not know
            if not terminal:
                raise
            note(str(error))
            messages.pop()
            continue
        print(flush=True)
        messages.append({"role": "assistant", "content": "".join(pieces)})


def read_line(terminal: bool) -> str | None:
    """The next line of stdin; None at its end. Raises ValueError if it is not UTF-8."""
    try:
        line = input("> " if terminal else "").removeprefix("\ufeff")  # byte order mark
        line.encode()  # in the C locale, bytes that are not ASCII become surrogates
        return line
    except UnicodeError:
        raise ValueError(f"the messages on stdin are not UTF-8 text: {TO_UTF8}") from None
    except EOFError:
        if terminal:
            print()
        return None


def add_playground(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt playground`."""
    add_shared(command, "RUNS", "--checkpoint", "--device", "--port")


def run_playground(args) -> None:
    """Serves the playground until it is interrupted."""
    serve = extra("playground").serve
    serve(args.RUNS, pick_device(args.device), args.port, which=args.checkpoint)


def add_export_options(command: ArgumentParser, target: str | None, *more_dtypes: str) -> None:
    """Adds the arguments of commands that export a RUN; `target` describes --to, or is None."""
    add_shared(command, "RUN", "--checkpoint")
    if target:
        command.add_argument(
            "--to", "--out", required=True, metavar="PATH", help=f"{target}, which must not exist"
        )
    command.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16", *more_dtypes),
        help="dtype of the stored weights" + ("; q8_0 is for GGUF only" if more_dtypes else ""),
    )
    command.add_argument(
        "--license", default="unknown", help="for the model card, such as mit or apache-2.0"
    )


def export_options(args) -> dict:
    """The options of an export that `add_export_options` adds."""
    import torch

    dtype = args.dtype if args.dtype == "q8_0" else getattr(torch, args.dtype)
    return {"which": args.checkpoint, "dtype": dtype, "license": args.license, "say": show}


def add_export(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt export`."""
    add_export_options(command, "the directory or file", "q8_0")
    command.add_argument(
        "--format",
        choices=("transformers", "onnx", "gguf", "nanogpt", "adapter"),
        help="transformers: a directory; onnx: the same with onnx/model.onnx; gguf: a file for "
        "llama.cpp, the default if PATH ends in .gguf; nanogpt: a ckpt.pt without optimizer state; "
        "adapter: only the weights that --lora_rank trained, for peft",
    )


def run_export(args) -> None:
    """Writes an export in the given format."""
    format = args.format or ("gguf" if args.to.endswith(".gguf") else "transformers")
    if args.dtype == "q8_0" and format != "gguf":
        raise ValueError("dtype=q8_0 is for GGUF only: add --format gguf, or choose bfloat16")
    options = export_options(args)
    with waiting(f"exporting {args.RUN}", show):
        if format == "gguf":
            extra("gguf").export(args.RUN, args.to, **options)
        elif format == "onnx":
            extra("page.to_onnx").export(args.RUN, args.to, **options)
        elif format == "adapter":
            from nanogpt.hub.adapter import export as export_adapter

            export_adapter(args.RUN, args.to, which=args.checkpoint, say=show)
        else:
            from nanogpt.hub.export import export

            export(args.RUN, args.to, format=format, **options)


def add_page(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt page`."""
    add_export_options(command, "the directory")
    command.add_argument("--prompt", type=utf8, metavar="TEXT", help="the page's first prompt")


def run_page(args) -> None:
    """Writes a page that runs the model in the browser."""
    with waiting(f"writing a page of {args.RUN}", show):
        write = extra("page.to_page").write
        write(args.RUN, args.to, prompt=args.prompt, **export_options(args))


def add_push(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt push`."""
    add_export_options(command, None)
    command.add_argument("REPO", metavar="USER/NAME", help="the repository; created if needed")
    command.add_argument("--private", action="store_true", help="make a new repository private")
    command.add_argument("--revision", metavar="BRANCH", help="a branch to push to; default: main")


def run_push(args) -> None:
    """Exports a run and pushes it to the Hub."""
    from nanogpt.hub.export import push

    where = {"private": args.private, "revision": args.revision}
    with waiting(f"exporting {args.RUN}", show):
        push(args.RUN, args.REPO, **where, **export_options(args))
