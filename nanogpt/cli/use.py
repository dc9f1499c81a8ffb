"""`nanogpt sample`, `chat`, `playground`, `export`, `page` and `push`."""

import sys
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path

from nanogpt.cli.options import (
    add_number,
    add_shared,
    extra,
    load_run,
    note,
    pick_device,
    show,
    show_json,
)
from nanogpt.data.files import plural
from nanogpt.run.errors import visible, waiting

EXPORTS = {  # formats: their modules, and the options that they take
    "transformers": ("nanogpt.hub.export", ("dtype", "license", "trust_recipe")),
    "onnx": ("nanogpt.extras.page.to_onnx", ("dtype", "license", "trust_recipe")),
    "gguf": ("nanogpt.extras.gguf", ("dtype", "license")),
    "nanogpt": ("nanogpt.hub.nanogpt", ("dtype", "trust_recipe")),
}


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
        choices=("float32", "bfloat16"),
        help="dtype of weights and cache",
    )
    command.add_argument(
        "--compile",
        nargs="?",
        const="true",
        default="auto",
        choices=("auto", "true", "false"),
        help="torch.compile, on a CPU; auto: if it saves more time than it takes",
    )


def sampling_options(args) -> dict:
    """The options of `stream` and `generate` that `add_sampling` adds."""
    return {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "seed")}


def load_for_sampling(args, tokens: int) -> tuple:
    """The model of RUN, compiled for so many tokens if asked for, and its tokenizer."""
    import torch

    from nanogpt.ops import decode

    model, tokenizer, _ = load_run(args, args.RUN, dtype=getattr(torch, args.dtype))
    worthwhile = args.compile == "auto" and decode.is_worth_compiling(model, tokens)
    if worthwhile or args.compile == "true":
        decode.compile_decoding(model)
        note("compiling the model, for 2 to 20 seconds ...")
    return model, tokenizer


def add_sample(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt sample`."""
    add_sampling(command, max_new_tokens=500)
    command.add_argument(
        "--prompt",
        metavar="TEXT|FILE:PATH",
        help="text to continue; default: what a text begins with, usually a newline",
    )
    add_number(command, "--num_samples", int, 1, 10_000, 1, "continuations, sampled as one batch")
    add_shared(command, "--json")


def run_sample(args) -> None:
    """Streams a single continuation; prints several, sampled as one batch, when all are done."""
    import torch

    from nanogpt.sample import default_prompt, generate, stream_text

    # several texts of a large model are matmuls, which compiling makes no faster
    alone = args.num_samples == 1
    model, tokenizer = load_for_sampling(args, args.max_new_tokens if alone else 0)
    eos_id = tokenizer.eot_id
    if args.prompt is None:
        prompt, ids = default_prompt(tokenizer)
    else:
        prompt = read_prompt(args.prompt)
        ids = tokenizer.encode(prompt).tolist()
    options = sampling_options(args) | {"eos_id": eos_id}
    if args.num_samples == 1 and not args.json:
        print(visible(prompt), end="", flush=True)
        for piece in stream_text(model, tokenizer, ids, args.max_new_tokens, **options):
            print(visible(piece), end="", flush=True)
        print()
        return
    context = ids if prompt else []  # an end-of-text token that a sample begins with is not shown
    idx = torch.tensor(ids, device=model.wte.weight.device).repeat(args.num_samples, 1)
    with waiting(f"sampling {plural(args.num_samples, 'text')}", note):
        new = generate(model, idx, args.max_new_tokens, **options)[:, len(ids) :]
    samples = []
    for row in new.tolist():
        tokens = row[: row.index(eos_id)] if eos_id in row else row
        text = tokenizer.decode([*context, *tokens])
        ended = len(tokens) < args.max_new_tokens  # by an end-of-text token, which is cut off
        samples.append({"text": text, "tokens": len(tokens), "ended": ended})
        if not args.json:
            show(f"{text}\n{'-' * 40}")
    if args.json:
        show_json({"run": args.RUN, "prompt": prompt, "samples": samples})


def read_prompt(prompt: str) -> str:
    """The text of `--prompt`. Raises ValueError if it is empty or not UTF-8."""
    if prompt.startswith("FILE:"):
        try:
            prompt = Path(prompt[5:]).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{prompt[5:]} is not UTF-8 text: convert it with iconv") from None
    if not prompt:
        raise ValueError("the prompt is empty: give at least a character, such as --prompt ROMEO:")
    return prompt


def add_chat(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt chat`."""
    add_sampling(command, max_new_tokens=200)
    command.add_argument(
        "--system", metavar="TEXT", help="the system's message, before the first one"
    )


def run_chat(args) -> None:
    """Answers line by line until Ctrl-D; piped lines are the messages of one conversation.

    The oldest exchanges are dropped when the context is full.
    """
    from nanogpt.chat import answer, require

    model, tokenizer = load_for_sampling(args, args.max_new_tokens)
    require(tokenizer, args.RUN)
    messages = [{"role": "system", "content": args.system}] if args.system else []
    if sys.stdin.isatty():
        note("each line is a message; Ctrl-D ends")
    for line in read_lines():
        messages.append({"role": "user", "content": line})
        pieces = []
        options = sampling_options(args)
        try:
            for piece in answer(model, tokenizer, messages, args.max_new_tokens, **options):
                print(visible(piece), end="", flush=True)
                pieces.append(piece)
        except ValueError as error:  # too long, or a character that the model does not know
            note(str(error))
            messages.pop()
            continue
        print(flush=True)
        messages.append({"role": "assistant", "content": "".join(pieces)})


def read_lines():
    """Yields the lines of stdin that are not blank, with a prompt on a terminal."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt)
        except EOFError:
            return
        if line.strip():
            yield line


def add_playground(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt playground`."""
    add_shared(command, "RUNS", "--checkpoint", "--device", "--trust_recipe", "--port")


def run_playground(args) -> None:
    """Serves the playground until it is interrupted."""
    options = {"which": args.checkpoint, "trust_recipe": args.trust_recipe}
    extra("playground").serve(args.RUNS, pick_device(args.device), args.port, **options)


def add_export_options(command: ArgumentParser) -> None:
    """Adds the arguments of commands that export a RUN."""
    add_shared(command, "RUN", "--checkpoint", "--trust_recipe")
    command.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16", "q8_0"),
        help="dtype of the stored weights; q8_0 is for GGUF only",
    )
    command.add_argument(
        "--license", default="unknown", help="for the model card, such as mit or apache-2.0"
    )


def export_options(args, format: str = "transformers") -> dict:
    """The options of an export in a format."""
    import torch

    if args.dtype == "q8_0" and format != "gguf":
        raise ValueError("dtype=q8_0 is for GGUF only: add --format gguf, or choose bfloat16")
    dtype = args.dtype if args.dtype == "q8_0" else getattr(torch, args.dtype)
    options = {"dtype": dtype, "license": args.license, "trust_recipe": args.trust_recipe}
    taken = {name: options[name] for name in EXPORTS[format][1]}
    return {"which": args.checkpoint, "say": show, **taken}


def add_export(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt export`."""
    add_export_options(command)
    add_shared(command, "--to")
    command.add_argument(
        "--format",
        choices=EXPORTS,
        help="transformers: a directory; onnx: the same with onnx/model.onnx; gguf: a file for "
        "llama.cpp, the default if PATH ends in .gguf; nanogpt: a ckpt.pt without optimizer state",
    )


def run_export(args) -> None:
    """Writes an export in the given format."""
    format = args.format or ("gguf" if args.to.endswith(".gguf") else "transformers")
    options = export_options(args, format)
    with waiting(f"exporting {args.RUN}", show):
        import_module(EXPORTS[format][0]).export(args.RUN, args.to, **options)


def add_page(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt page`."""
    add_export_options(command)
    add_shared(command, "--to")
    command.add_argument("--prompt", metavar="TEXT", help="the page's first prompt")


def run_page(args) -> None:
    """Writes a page that runs the model in the browser."""
    options = export_options(args)
    with waiting(f"writing a page of {args.RUN}", show):
        extra("page.to_page").write(args.RUN, args.to, prompt=args.prompt, **options)


def add_push(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt push`."""
    add_export_options(command)
    command.add_argument("REPO", metavar="USER/NAME", help="the repository; created if needed")
    command.add_argument("--private", action="store_true", help="make a new repository private")


def run_push(args) -> None:
    """Exports a run and pushes it to the Hub."""
    from nanogpt.hub.export import push

    with waiting(f"exporting {args.RUN}", show):
        push(args.RUN, args.REPO, private=args.private, **export_options(args))
