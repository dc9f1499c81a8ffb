"""The arguments of each command. Imports no torch: --help does not wait."""

from argparse import REMAINDER

from nanogpt.run.parser import within


def number(flag: str, kind: type, low: float, high: float, default, help: str) -> tuple[str, dict]:
    """An argument for a number from `low` to `high`."""
    help = help if default is None else f"{help} (default: {default})"
    options = {"type": within(kind, low, high), "default": default, "metavar": "N", "help": help}
    return flag, options


def choice(flag: str, choices: str, help: str, **options) -> tuple[str, dict]:
    """An argument that is one of `choices`, by default the first."""
    words = choices.split()
    help = f"{help} (default: {words[0]})"
    return flag, {"choices": words, "default": words[0], "help": help, **options}


def text(flag: str, metavar: str, help: str, **options) -> tuple[str, dict]:
    return flag, {"metavar": metavar, "help": help, **options}


def switch(flag: str, help: str) -> tuple[str, dict]:
    return flag, {"action": "store_true", "help": help}


WHAT = "an out directory (best, else last), a checkpoint in one, or a transformers model"
OWN_CLASS = "the Python file that defines the RUN's own class (make_model); it is executed"
EXPORTS = {  # formats: their modules, and the options that they take
    "transformers": ("nanogpt.hub.export", ("dtype", "license", "trust_recipe")),
    "onnx": ("nanogpt.extras.page.to_onnx", ("dtype", "license", "trust_recipe")),
    "gguf": ("nanogpt.extras.gguf", ("dtype", "license")),
    "nanogpt": ("nanogpt.hub.nanogpt", ("dtype", "trust_recipe")),
    "adapter": ("nanogpt.hub.lora", ()),
}
FORMAT = (
    "onnx: transformers' files and onnx/model.onnx; gguf, the default for a .gguf: for llama.cpp; "
    "nanogpt: a ckpt.pt without optimizer state; adapter: what --lora_rank trained, for peft"
)
RUN = text("RUN", "RUN", WHAT)
RUNS = text("RUNS", "RUN", f"one or several; each is {WHAT}", nargs="+")
OUT_DIRS = text("RUN", "RUN", "out directories", nargs="+")
PROCESSES = number("--processes", int, 1, 1024, 1, "each on its own GPU; without GPUs, on the CPU")
RECIPE = text("RECIPE", "RECIPE", "a recipe, such as recipes/shakespeare.py")
FLAGS = text("FLAGS", "FLAGS", "its flags, such as --n_layer=8", nargs=REMAINDER)
DEVICE = text("--device", "DEVICE", "auto, cpu, cuda or mps (default: auto)", default="auto")
TRUST = text("--trust_recipe", "FILE", OWN_CLASS)
PRECISIONS = "auto fp32 bf16 fp16"
JSON = switch("--json", "print the result as one line of JSON")
TO = text("--to", "PATH", "where to write; must not exist", required=True)
PORT = number("--port", int, 0, 65_535, None, "local port")
SAMPLING = [
    RUN,
    DEVICE,
    TRUST,
    number("--temperature", float, 0, 1000, 0.8, "0 takes the most likely token"),
    number("--top_k", int, 0, 2**24, 200, "only the N most likely tokens; 0: all"),
    number("--top_p", float, 0, 1, 1.0, "only the likeliest tokens whose probabilities sum to N"),
    number("--seed", int, 0, 2**63 - 1, None, "the same seed gives the same text"),
    choice("--dtype", "float32 bfloat16 int8", "of weights and cache; int8: weights only, on CPUs"),
    choice("--compile", "auto true false", "auto: if it saves time", nargs="?", const="true"),
]
EXPORTING = [
    RUN,
    TRUST,
    choice("--dtype", "float32 bfloat16 float16 q8_0", "of the weights; q8_0 is for GGUF only"),
    text("--license", "NAME", "for the model card, such as mit", default="unknown"),
]

ARGUMENTS = {
    "train": [PROCESSES, RECIPE, FLAGS],
    "plan": [JSON, RECIPE, FLAGS],
    "import-nanogpt": [
        text("CKPT", "CKPT", "nanoGPT's ckpt.pt"),
        text("--data", "DIR", "the data it was trained on", required=True),
        text("--out_dir", "DIR", "the run to write", default="out/from_nanogpt"),
    ],
    "sample": [
        *SAMPLING,
        number("--max_new_tokens", int, 1, 10**7, 500, "tokens to add"),
        text("--prompt", "TEXT|FILE:PATH", "text to continue (default: the beginning of a text)"),
        number("--num_samples", int, 1, 10_000, 1, "continuations, sampled as one batch"),
        JSON,
    ],
    "chat": [
        *SAMPLING,
        number("--max_new_tokens", int, 1, 10**7, 200, "the longest answer, in tokens"),
        text("--system", "TEXT", "a system message, before the first question"),
    ],
    "playground": [RUNS, DEVICE, TRUST, PORT],
    "export": [*EXPORTING, TO, text("--format", "FORMAT", FORMAT, choices=EXPORTS)],
    "page": [*EXPORTING, TO, text("--prompt", "TEXT", "the page's first prompt")],
    "push": [
        *EXPORTING,
        text("REPO", "USER/NAME", "the repository; created if needed"),
        switch("--private", "make a new repository private"),
    ],
    "eval": [
        RUNS,
        DEVICE,
        TRUST,
        choice("--precision", PRECISIONS, "of the loss; auto: the fastest on CUDA, else fp32"),
        JSON,
        text("--data", "DIR", "a data directory (default: the run's)"),
        choice("--split", "val train", "which split"),
        number("--batch_size", int, 1, 4096, 32, "sequences at a time; 4,096 tokens or more"),
        number("--stride", int, 1, 10**6, None, "also the loss over windows every N tokens"),
        text("--tasks", "A,B", "tasks from lm_eval instead (pip install -e '.[eval]')"),
        number("--limit", int, 1, 10**9, None, "only the first N examples of each task"),
    ],
    "compare": [OUT_DIRS, JSON],
    "plot": [OUT_DIRS, text("--out", "FILE", "a .png, .svg or .pdf", default="curves.png")],
    "dashboard": [
        text("OUT", "OUT", "out directories, or their parent", nargs="*", default=["out"]),
        PORT,
    ],
    "check-data": [
        text("DIR", "DIR", "a data directory"),
        number("--block_size", int, 1, 2**24, 256, "context of the model to be trained"),
        number("--parameters", int, 1, 10**13, 771_712, "of the model to be trained"),
        JSON,
    ],
    "bench": [
        DEVICE,
        choice("--precision", PRECISIONS, "auto: as in training"),
        JSON,
        choice("--model", "classic laptop baby gpt2", "what to measure"),
        number("--batch_size", int, 1, 4096, None, "sequences; default: the model's own"),
        number("--rounds", int, 1, 1000, 5, "rounds; the median is shown"),
        switch("--profile", "only list the slowest operators of a training step"),
    ],
}
