"""`nanogpt sample`, `chat`, `playground`, `export`, `page` and `push`."""

import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import torch

from nanogpt.chat import answer, require
from nanogpt.cli.options import extra, load_run, note, pick_device, show, show_json
from nanogpt.hub.export import push
from nanogpt.ops import decode
from nanogpt.run.errors import plural, visible, waiting
from nanogpt.sample import default_prompt, generate, stream_text

EXPORTS = {  # formats: their modules, and the options that they take
    "transformers": ("nanogpt.hub.export", ("dtype", "license", "trust_recipe")),
    "onnx": ("nanogpt.extras.page.to_onnx", ("dtype", "license", "trust_recipe")),
    "gguf": ("nanogpt.extras.gguf", ("dtype", "license")),
    "nanogpt": ("nanogpt.hub.nanogpt", ("dtype", "trust_recipe")),
    "adapter": ("nanogpt.hub.adapter", ()),
}


def sampling_options(args) -> dict:
    """The options of `stream_text` and `generate` of a command."""
    return {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "seed")}


def load_for_sampling(args, tokens: int) -> tuple:
    """The model of RUN, compiled if asked for or if `tokens` are many, and its tokenizer."""
    int8 = args.dtype == "int8"
    dtype = torch.float32 if int8 else getattr(torch, args.dtype)
    model, tokenizer, _ = load_run(args, args.RUN, dtype=dtype)
    worthwhile = args.compile == "auto" and decode.is_worth_compiling(model, tokens)
    if int8 or worthwhile or args.compile == "true":
        decode.compile_decoding(model, int8, whole=tokens >= decode.MANY)
        note("compiling the model, which takes up to a minute the first time ...")
    return model, tokenizer


def run_sample(args) -> None:
    """Streams a single continuation; prints several, sampled as one batch, when all are done."""
    alone = args.num_samples == 1
    # several texts of a large model are matmuls, which compiling makes no faster
    model, tokenizer = load_for_sampling(args, args.max_new_tokens if alone else 0)
    eos_id = tokenizer.eot_id
    if args.prompt is None:
        prompt, ids = default_prompt(tokenizer)
    else:
        prompt = read_prompt(args.prompt)
        ids = tokenizer.encode(prompt).tolist()
    options = sampling_options(args) | {"eos_id": eos_id}
    if alone and not args.json:
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


def run_chat(args) -> None:
    """Answers line by line until Ctrl-D; piped lines are the messages of one conversation.

    The oldest exchanges are dropped when the context is full.
    """
    model, tokenizer = load_for_sampling(args, args.max_new_tokens)
    require(tokenizer, args.RUN)
    messages = [{"role": "system", "content": args.system}] if args.system else []
    if sys.stdin.isatty():
        note("each line is a message; Ctrl-D ends")
    for line in filter(str.strip, read_lines()):  # without blank ones
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
    """Yields the lines of stdin, with a prompt on a terminal."""
    with suppress(EOFError):
        while True:
            yield input("> " if sys.stdin.isatty() else "")


def run_playground(args) -> None:
    """Serves the playground until it is interrupted."""
    device = pick_device(args.device)
    extra("playground").serve(args.RUNS, device, args.port, trust_recipe=args.trust_recipe)


def export_options(args, format: str = "transformers") -> dict:
    """The options of an export in a format."""
    if args.dtype == "q8_0" and format != "gguf":
        raise ValueError("dtype=q8_0 is for GGUF only: add --format gguf, or choose bfloat16")
    dtype = args.dtype if args.dtype == "q8_0" else getattr(torch, args.dtype)
    options = {"dtype": dtype, "license": args.license, "trust_recipe": args.trust_recipe}
    taken = {name: options.pop(name) for name in EXPORTS[format][1]}
    for name, value in options.items():
        if value not in (None, "unknown", torch.float32):  # the defaults
            raise ValueError(f"--format {format} does not take --{name}: leave it out")
    return {"say": show, **taken}


def run_export(args) -> None:
    """Writes an export in the given format."""
    format = args.format or ("gguf" if args.to.endswith(".gguf") else "transformers")
    options = export_options(args, format)
    with waiting(f"exporting {args.RUN}", show):
        import_module(EXPORTS[format][0]).export(args.RUN, args.to, **options)


def run_page(args) -> None:
    """Writes a page that runs the model in the browser."""
    options = export_options(args)
    with waiting(f"writing a page of {args.RUN}", show):
        extra("page.to_page").write(args.RUN, args.to, prompt=args.prompt, **options)


def run_push(args) -> None:
    """Exports a run and pushes it to the Hub."""
    with waiting(f"exporting {args.RUN}", show):
        push(args.RUN, args.REPO, private=args.private, **export_options(args))
