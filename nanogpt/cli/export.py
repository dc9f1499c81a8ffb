"""`nanogpt export RUN --to PATH`: for transformers, with or without ONNX, for llama.cpp, or for nanoGPT."""

from argparse import ArgumentParser

from nanogpt.cli.options import add_export_options, add_run, export_options, show
from nanogpt.extras import gguf
from nanogpt.extras.page import to_onnx
from nanogpt.hub.export import export
from nanogpt.run.errors import waiting


def add_arguments(command: ArgumentParser) -> None:
    add_run(command)
    command.add_argument(
        "--to", "--out", required=True, metavar="PATH", help="the directory or file, which must not exist yet"
    )
    what = "transformers: a directory; onnx: the same with onnx/model.onnx; gguf: a file for llama.cpp, the default "
    what += "where PATH ends in .gguf; nanogpt: a ckpt.pt without optimizer state"
    command.add_argument("--format", choices=("transformers", "onnx", "gguf", "nanogpt"), help=what)
    add_export_options(command, "q8_0")


def run(args) -> None:
    format = args.format or ("gguf" if args.to.endswith(".gguf") else "transformers")
    if args.dtype == "q8_0" and format != "gguf":
        raise ValueError("dtype=q8_0 is for GGUF alone: add --format gguf, or choose bfloat16")
    with waiting(f"exporting {args.RUN}", show):
        if format == "gguf":
            gguf.export(args.RUN, args.to, say=show, **export_options(args))
        elif format == "onnx":
            to_onnx.export(args.RUN, args.to, say=show, **export_options(args))
        else:
            export(args.RUN, args.to, format=format, say=show, **export_options(args))
