"""Compares sampling with 124M parameters with llama.cpp and ONNX Runtime, in turns.

    # llama-cpp-python is compiled, for some minutes
    pip install -e '.[gguf,onnx]' -c constraints.txt llama-cpp-python
    python benchmarks/sampling.py

All read one random model of GPT-2's shape from files that `nanogpt export` writes, and add 256
tokens to 8, one by one, on as many threads: in fp32, in bf16 (ONNX Runtime has none on a CPU) and
with 8 bits (llama.cpp's Q8_0). Each line is the median over the rounds: tokens/s of both, and this
package's speed as a multiple of the other's with its quartiles. Packages that are not installed are
omitted. The load tells how busy the machine was before.
"""

import argparse
import importlib.util
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch
import transformers

from nanogpt import load
from nanogpt.extras import gguf
from nanogpt.extras.bench import interleave
from nanogpt.extras.page import to_onnx
from nanogpt.ops.decode import compile_decoding
from nanogpt.run.device import default_threads
from nanogpt.text.tokenizer import BPETokenizer

PROMPT = [0] * 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": "q8_0"}  # to_gguf's names


def make_model(folder: Path, **sizes: int) -> None:
    """An untrained GPT-2 in transformers' format; `sizes` are those of GPT2Config."""
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(folder)
    BPETokenizer.get("gpt2").save(folder)


def here(folder: Path, precision: str, tokens: int) -> Callable[[], None]:
    model = load(folder)[0].eval()
    model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    compiled = compile_decoding(model, int8=precision == "int8")
    return lambda: compiled.generate(torch.tensor([PROMPT]), tokens, temperature=0)


def llama_cpp(folder: Path, precision: str, tokens: int, threads: int) -> Callable[[], None]:
    """llama.cpp, spared the choice of each next token."""
    import llama_cpp

    file = folder / precision / "model.gguf"
    gguf.export(folder, file, dtype=DTYPES[precision], say=lambda text: None)
    size = {"n_ctx": len(PROMPT) + tokens, "n_threads": threads, "n_threads_batch": threads}
    model = llama_cpp.Llama(str(file), **size, verbose=False)

    def run() -> None:
        model.reset()
        model.eval(PROMPT)
        for _ in range(tokens - 1):
            model.eval([0])

    return run


def onnx_runtime(folder: Path, tokens: int, threads: int) -> Callable[[], None]:
    import onnxruntime

    model, options = load(folder)[0].eval(), onnxruntime.SessionOptions()
    to_onnx.write(model, folder / "model.onnx")
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "model.onnx", options)
    nothing = np.zeros((1, model.config.kv_heads, 0, model.config.head_size), np.float32)
    empty = dict.fromkeys(to_onnx.cache_names(model.config, "past_key_values"), nothing)

    def run() -> None:
        ids, read, past = np.array([PROMPT]), 0, empty
        for _ in range(tokens):
            logits, *present = session.run(None, to_onnx.feed(ids, read, past))
            read, past = ids.shape[1], dict(zip(past, present, strict=True))
            ids = np.concatenate([ids, logits[:, -1:].argmax(-1)], axis=1)

    return run


def compare(folder: Path, rounds: int, tokens: int) -> Iterator[str]:
    """A line for each precision and other program that is installed; `folder` has the model."""
    threads = default_threads(1)
    torch.set_num_threads(threads)
    for precision in DTYPES:
        others = {}
        if importlib.util.find_spec("llama_cpp"):
            others["llama.cpp"] = llama_cpp(folder, precision, tokens, threads)
        if precision == "fp32" and importlib.util.find_spec("onnxruntime"):
            others["ONNX Runtime"] = onnx_runtime(folder, tokens, threads)
        if others:
            contenders = {"ours": here(folder, precision, tokens)} | others
            seconds = interleave(contenders, rounds, torch.device("cpu"))
            for name in others:
                ratios = [b / a for a, b in zip(seconds["ours"], seconds[name], strict=True)]
                low, median, high = statistics.quantiles(ratios, n=4)
                rates = [tokens / statistics.median(seconds[each]) for each in ("ours", name)]
                yield (
                    f"{precision}: {rates[0]:.1f} tokens/s, {name} {rates[1]:.1f}: "
                    f"{median:.2f} times its speed ({low:.2f} to {high:.2f})"
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="default: 9")
    args = parser.parse_args()
    if not any(map(importlib.util.find_spec, ("llama_cpp", "onnxruntime"))):
        sys.exit("error: neither llama-cpp-python nor onnxruntime is installed")
    clock = psutil.cpu_freq()
    speed = f", {clock.current:.0f} MHz" if clock else ""
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores{speed}")
    with TemporaryDirectory() as directory:
        make_model(Path(directory))
        for line in compare(Path(directory), args.rounds, tokens=256):
            print(line, flush=True)


if __name__ == "__main__":
    main()
