"""Settings of a run: dataclass defaults < the recipe < the command line.

Every field of `GPTConfig` and `TrainConfig` is a flag of the same name, `--max_iters 500` or `--max_iters=500`; its
help text is the comment behind the field. An unknown flag or an ill-typed value is an error, never ignored.
"""

import argparse
import dataclasses
import difflib
import inspect
import os
import re
import sys
import types
import typing
from contextlib import contextmanager
from dataclasses import dataclass

from nanogpt.model import GPTConfig


@dataclass
class TrainConfig:
    # the run
    out_dir: str = "out/run"  # directory of this run: config.json, metrics.jsonl, checkpoints
    data: str = "data/shakespeare_char"  # data directory, or a mixture of several: data/a:0.7,data/b:0.3
    resume: str = "none"  # none | auto (the last whole checkpoint, if any) | last | best | a checkpoint directory
    init_from: str = "scratch"  # scratch | a model to fine-tune: an out directory, a transformers directory or Hub name
    seed: int = 1337  # weights, batches and dropout follow from it
    # batches
    batch_size: int = 12  # sequences in a micro-batch
    gradient_accumulation_steps: int = 1  # micro-batches in a step, over all processes together
    max_iters: int = 5000  # optimizer steps; 0 only evaluates
    # optimizer
    optimizer: str = "adamw"  # adamw | muon (Muon for the blocks' matrices, AdamW for the rest)
    learning_rate: float = 1e-3  # peak, of AdamW
    muon_learning_rate: float = 0.02  # peak, of Muon; follows the same schedule
    muon_momentum: float = 0.95  # Nesterov momentum of Muon
    weight_decay: float = 0.1  # decoupled, on matrices (and embeddings, without Muon), not on biases and norms
    beta1: float = 0.9  # AdamW's decay rate of the mean
    beta2: float = 0.95  # AdamW's decay rate of the square; 0.99 where a step has few tokens
    grad_clip: float = 1.0  # largest norm of the gradient; 0 does not clip
    max_bad_steps: int = 5  # this many steps in a row without a finite gradient end the run, at the next log_interval
    max_minutes: float = 0  # wall-clock time after which the run saves and ends, the last save included; 0: no limit
    max_failed_saves: int = 3  # this many checkpoints in a row that cannot be saved end the run
    # learning rate
    lr_schedule: str = "cosine"  # cosine | linear | wsd (stable, then linear at the end) | constant
    warmup_iters: int = 100  # steps of linear warm-up
    lr_decay_iters: int | None = None  # step at which min_lr is reached; none: max_iters
    min_lr: float = 1e-4  # learning rate at the end (nanoGPT: a tenth of the peak)
    decay_fraction: float = 0.4  # wsd: share of lr_decay_iters that decays
    # evaluation, logging, checkpoints
    eval_interval: int = 250  # steps between evaluations, and between checkpoints; the last step always has both
    eval_iters: int = 0  # batches of an evaluation, drawn at random as nanoGPT does; 0: the whole split, exactly
    log_interval: int = 10  # steps between lines of metrics.jsonl
    always_save_checkpoint: bool = True  # save at every evaluation; false: only when it is the best yet
    keep_checkpoints: int = 2  # newest checkpoints kept, besides the best; 0 keeps all
    sample_tokens: int = 100  # tokens of the text that each evaluation writes to samples.jsonl; 0: none
    report_to: str = "none"  # none | trackio | wandb | tensorboard, several with commas; metrics.jsonl always
    exportable: bool = False  # stop at once where no transformers class could hold the model; false: a warning
    push_to_hub: str | None = None  # USER/NAME: export the best there at the end; made at the start, public, if missing
    # the machine
    device: str = "auto"  # auto (what the launcher chose) | cpu | cuda | mps
    precision: str = "auto"  # auto (the launcher's, else bf16 where the device computes in it) | fp32 | bf16 | fp16
    compile: str = "auto"  # auto (on CUDA) | true | false: torch.compile
    dry_run: bool = False  # only show what the run would take: parameters, memory, time
    find_batch_size: bool = False  # only try ever larger batch sizes, until one does not fit into memory
    seeds: int = 1  # that many runs one after the other, with seeds counting up, into out_dir-seed…; then compared
    profile: int = 0  # steps to trace into out_dir/trace.json, after two to warm up
    deterministic: bool = False  # the same bits in every run on one machine; on a GPU some operators get slower
    timeout: float = 600  # seconds that a process waits for another one before it ends the run
    threads: int = 0  # CPU threads of each process; 0: the cores, shared among the processes

    def __post_init__(self):
        choices = {
            "optimizer": ("adamw", "muon"),
            "lr_schedule": ("cosine", "linear", "wsd", "constant"),
            "device": ("auto", "cpu", "cuda", "mps"),
            "precision": ("auto", "fp32", "bf16", "fp16"),
            "compile": ("auto", "true", "false"),
        }
        self.compile = str(self.compile).lower()  # a recipe may say False, nanoGPT's flag is --compile=False
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        at_least = {"batch_size": 1, "gradient_accumulation_steps": 1, "eval_interval": 1, "log_interval": 1}
        at_least |= {"seeds": 1, "max_bad_steps": 1, "max_failed_saves": 1, "timeout": 1, "max_minutes": 0}
        at_least |= dict.fromkeys(
            "max_iters seed eval_iters keep_checkpoints threads warmup_iters profile sample_tokens".split(), 0
        )
        at_least |= dict.fromkeys(("grad_clip", "weight_decay", "min_lr", "muon_learning_rate"), 0)
        for name, least in at_least.items():
            if not getattr(self, name) >= least:  # which catches NaN as well
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be above 0")


# settings that never change what a step computes: a resumed run, a comparison and a model card pass over them
INCIDENTAL = set(
    "out_dir resume max_bad_steps max_minutes max_failed_saves eval_interval log_interval always_save_checkpoint "
    "keep_checkpoints sample_tokens report_to exportable push_to_hub dry_run find_batch_size seeds profile timeout "
    "threads".split()
)


def field_help(cls: type) -> dict[str, str]:
    """The comment behind each field of a dataclass, by field name: one source for readers and for --help."""
    lines = re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(cls), flags=re.MULTILINE)
    return dict(lines)


def read_value(text: str, kind: type) -> object:
    """`text` from the command line as a value of a field's type. Raises ValueError if it is none."""
    if isinstance(kind, types.UnionType):  # X | None
        if text.lower() == "none":
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("expected true or false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"expected {'an integer' if kind is int else 'a number'}") from None


class OneLineParser(argparse.ArgumentParser):
    """An argparse whose errors are one line, and which suggests the flag that was probably meant."""

    def error(self, message: str) -> typing.NoReturn:
        unknown = re.match(r"unrecognized arguments: (--?\w+)", message)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(unknown[1], flags, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            message = f"unknown flag {unknown[1]}: {hint}--help lists them all"
        fail(message)


def parse(model: GPTConfig, train: TrainConfig, argv: list[str], description: str) -> tuple[GPTConfig, TrainConfig]:
    """The recipe's two configurations with the command line laid over them."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(description=description, formatter_class=formatter, allow_abbrev=False)
    for config in (model, train):
        help_of, kinds = field_help(type(config)), typing.get_type_hints(type(config))
        group = parser.add_argument_group(type(config).__name__)
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            text = f"{help_of[field.name]} (default: {value})".replace("%", "%%")
            flag_alone = {"nargs": "?", "const": "true"} if kinds[field.name] is bool or field.name == "compile" else {}
            group.add_argument(f"--{field.name}", metavar=short(kinds[field.name]), help=text, **flag_alone)
    given = {name: text for name, text in vars(parser.parse_args(argv)).items() if text is not None}
    changed = []
    for config in (model, train):
        kinds, values = typing.get_type_hints(type(config)), {}
        for name in given.keys() & kinds.keys():
            try:
                values[name] = read_value(given[name], kinds[name])
            except ValueError as error:
                parser.error(f"--{name}={given[name]}: {error}")
        changed.append(dataclasses.replace(config, **values))
    return tuple(changed)


def short(kind: type) -> str:
    return kind.__name__.upper() if isinstance(kind, type) else str(kind).split(" ")[0].upper()


def fail(message: object, code: int = 2) -> typing.NoReturn:
    """One line on stderr, from the main process alone, and the exit code; 2: the user has something to change."""
    if isinstance(message, OSError) and message.filename:
        message = f"{message.filename}: {message.strerror}"
    if os.environ.get("RANK", "0") == "0":
        message = " ".join(str(message).splitlines())
        print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


@contextmanager
def user_errors(stopped: str = ""):
    """Around what depends on the user: ValueError and OSError become one line and exit code 2, Ctrl-C becomes 130.

    `stopped` is what to say to a Ctrl-C that says nothing itself.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        fail(error)
    except KeyboardInterrupt as interrupt:
        stopped = str(interrupt) or stopped
        print(stopped and f"\n{stopped}", file=sys.stderr)
        sys.exit(130)
