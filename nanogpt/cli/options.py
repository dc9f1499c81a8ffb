"""Options that several commands share."""

import json
import runpy
import sys
from argparse import REMAINDER, ArgumentParser, ArgumentTypeError
from pathlib import Path

from nanogpt.data.files import plain
from nanogpt.run.errors import visible
from nanogpt.run.flags import within

TO_UTF8 = "convert it, for instance with iconv -f WINDOWS-1252 -t UTF-8"
SEEDS = within(int, 0, 2**63 - 1)  # numbers that torch and numpy take as a seed


def add_run(command: ArgumentParser) -> None:
    command.add_argument("RUN", help="an out directory (best, else last), a checkpoint in one, or a transformers model")
    add_checkpoint(command)


def add_checkpoint(command: ArgumentParser) -> None:
    command.add_argument("--checkpoint", metavar="WHICH", help="best, last or step-N; default: best, else last")


def add_recipe(command: ArgumentParser) -> None:
    command.add_argument("RECIPE", help="a recipe, such as recipes/shakespeare.py")
    command.add_argument("FLAGS", nargs=REMAINDER, help="its flags, such as --n_layer=8")


def require_recipe(recipe: str) -> None:
    if Path(recipe).suffix != ".py" or not Path(recipe).is_file():
        raise ValueError(f"{recipe} is not a Python file: name a recipe, such as recipes/shakespeare.py")


def run_recipe(recipe: str, flags: list[str]) -> None:
    """Runs a recipe as `python RECIPE flags` does, in this process."""
    sys.argv = [recipe, *flags]
    sys.path.insert(0, str(Path(recipe).resolve().parent))
    try:
        runpy.run_path(recipe, run_name="__main__")
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}") from None


def add_sampling(command: ArgumentParser, max_new_tokens: int) -> None:
    """Adds what `sampling_options` reads, and what else `nanogpt sample` and `nanogpt chat` share."""
    command.add_argument(
        "--max_new_tokens", type=within(int, 1, 10**7), default=max_new_tokens, metavar="N", help="tokens to add"
    )
    command.add_argument(
        "--temperature", type=within(float, 0, 1000), default=0.8, metavar="T", help="0 takes the most likely token"
    )
    command.add_argument(
        "--top_k", type=within(int, 0, 2**24), default=200, metavar="K", help="only the K most likely tokens; 0 is off"
    )
    command.add_argument(
        "--top_p", type=within(float, 0, 1), default=1.0, metavar="P", help="only the most likely, of probability P"
    )
    command.add_argument("--seed", type=SEEDS, metavar="N", help="the same seed gives the same text")
    dtypes = ("float32", "bfloat16", "int8")
    command.add_argument("--dtype", default="float32", choices=dtypes, help="of weights and cache; int8: weights alone")
    command.add_argument("--raw", action="store_true", help="print control characters as they are, ESC included")


def sampling_options(args) -> dict:
    return {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "seed": args.seed}


def load_for_sampling(args) -> tuple:
    """The model, on a CPU with its weights packed, and the tokenizer of RUN; `args` are those of `add_sampling`."""
    import torch

    from nanogpt.hub.load import load
    from nanogpt.ops.cpu import pack

    int8, device = args.dtype == "int8", pick_device(args.device)
    dtype = torch.float32 if int8 else getattr(torch, args.dtype)
    model, tokenizer, _ = load(args.RUN, device, dtype, args.checkpoint, say=note)
    return pack(model, int8), tokenizer


def utf8(text: str) -> str:
    """For argparse's `type=`: text without a byte order mark; bytes that are not UTF-8 are an error."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentTypeError(f"{text:.40}: must be UTF-8 text: {TO_UTF8}") from None
    return text.removeprefix("\ufeff")


def add_json(command: ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print the result as one line of JSON")


def add_device(command: ArgumentParser) -> None:
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")


def add_port(command: ArgumentParser) -> None:
    command.add_argument("--port", type=within(int, 0, 65_535), metavar="N", help="local port; default: a free one")


def pick_device(name: str) -> str:
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [device for device, there in available.items() if there]
    if name == "auto":
        return present[0]
    if name not in present:
        raise ValueError(f"device={name!r} is not one of {', '.join(present)}, which this machine has")
    return name


def show(text: str) -> None:
    """Prints text of unknown origin, with control characters made visible."""
    print(visible(text), flush=True)


def show_json(value: object) -> None:
    """Prints a result for programs: one line of JSON in ASCII."""
    print(json.dumps(plain(value)), flush=True)


def note(text: str) -> None:
    print(f"note: {visible(text)}", file=sys.stderr)


def add_export_options(command: ArgumentParser, *more_dtypes: str) -> None:
    dtypes = ("float32", "bfloat16", "float16", *more_dtypes)
    command.add_argument("--dtype", default="float32", choices=dtypes, help="of weights; q8_0 is for GGUF alone")
    command.add_argument("--license", default="unknown", help="for the model card, such as mit or apache-2.0")


def export_options(args) -> dict:
    import torch

    dtype = args.dtype if args.dtype == "q8_0" else getattr(torch, args.dtype)
    return {"which": args.checkpoint, "dtype": dtype, "license": args.license}
