"""Settings of a run: dataclass defaults < the recipe < the command line.

Every field of `GPTConfig` and `TrainConfig` is a flag of the same name, `--max_iters 500` or `--max_iters=500`; its
help text is the comment behind the field, its choices or limits are in its type: `Annotated[int, 1, 1000]` is an
integer from 1 to 1000. --help lists the fields after KW_ONLY as advanced. An unknown flag or a value that is not
allowed is an error, never ignored.
"""

import argparse
import dataclasses
import difflib
import inspect
import io
import json
import os
import re
import select
import signal
import sys
import textwrap
import threading
import time
import types
import typing
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import psutil
import torch

from nanogpt.model import GPTConfig, check_fields, declared

PATIENCE = 10  # seconds that other processes leave the main one to report what all of them found

Count = Annotated[int, 1, 65_536]
Steps = Annotated[int, 0, 10**9]
Rate = Annotated[float, 0, 100]
Decay = Annotated[float, 0, 0.999999]


@dataclass
class TrainConfig:
    out_dir: str = "out/run"  # directory of this run: config.json, metrics.jsonl, checkpoints
    data: str = "data/shakespeare_char"  # data directory, also at a URL, or a mixture of several: data/a:0.7,data/b:0.3
    resume: str = "none"  # none | auto (the last intact checkpoint, if any) | last | best | a checkpoint directory
    init_from: str = "scratch"  # scratch | a model to fine-tune: an out directory, a transformers directory or Hub name
    seed: Annotated[int, 0, 2**63 - 1] = 1337  # determines weights, batches and dropout
    max_iters: Steps = 5000  # optimizer steps; 0 only evaluates
    batch_size: Count = 12  # sequences in a micro-batch
    gradient_accumulation_steps: Count = 1  # micro-batches in a step, over all processes together
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: Muon for the blocks' matrices, AdamW for the rest
    learning_rate: Annotated[float, 1e-12, 100] = 1e-3  # peak, of AdamW
    weight_decay: Rate = 0.1  # decoupled; by Muon on matrices in the blocks, by AdamW on all matrices and embeddings
    eval_interval: Annotated[int, 1, 10**9] = 250  # steps between evaluations, and checkpoints; always at the last step
    report_to: str = "none"  # none | trackio | wandb | tensorboard, several with commas; metrics.jsonl always
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: the launcher's choice
    _: KW_ONLY  # the advanced ones
    # optimizer
    muon_learning_rate: Rate = 0.02  # peak, of Muon; follows the same schedule
    muon_momentum: Decay = 0.95  # Nesterov momentum of Muon
    beta1: Decay = 0.9  # AdamW's decay rate of the mean
    beta2: Decay = 0.95  # AdamW's decay rate of the square; 0.99 where a step has few tokens
    grad_clip: Annotated[float, 0, 1e9] = 1.0  # largest norm of the gradient; 0 does not clip
    max_bad_steps: Annotated[int, 1, 10**9] = 5  # stop after this many steps in a row without a finite gradient
    # learning rate
    lr_schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"  # wsd: stable, then linear at the end
    warmup_iters: Steps = 100  # steps of linear warm-up
    lr_decay_iters: Annotated[int | None, 1, 10**9] = None  # step at which min_lr is reached; none: max_iters
    train_minutes: Annotated[float, 0, 1e7] = 0  # minutes of training that the run and its decay take; 0: max_iters
    min_lr: Rate = 1e-4  # learning rate at the end (nanoGPT: a tenth of the peak)
    decay_fraction: Annotated[float, 0, 1] = 0.4  # wsd: share of lr_decay_iters that decays
    # context
    short_block_iters: Steps = 0  # first steps, which read windows in pieces: less context, less time
    short_block_size: Count = 64  # tokens in such a piece; divides block_size
    # evaluation, logging, checkpoints
    eval_iters: Steps = 0  # batches of an evaluation, drawn at random as nanoGPT does; 0: the whole split, exactly
    log_interval: Annotated[int, 1, 10**9] = 10  # steps between lines of metrics.jsonl
    always_save_checkpoint: bool = True  # save at every evaluation; false: only when it is the best yet
    keep_checkpoints: Steps = 2  # newest checkpoints kept, besides the best; 0 keeps all
    max_failed_saves: Annotated[int, 1, 10**9] = 3  # stop after this many failed saves in a row
    max_minutes: Annotated[float, 0, 1e7] = 0  # wall-clock time after which the run saves and ends; 0: no limit
    sample_tokens: Steps = 100  # tokens of the text that each evaluation writes to samples.jsonl; 0: none
    exportable: bool = False  # refuse a model that fits no class of transformers; false: a warning
    push_to_hub: str | None = None  # USER/NAME: push the best at the end; a missing repository is created, public
    # the machine
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: the launcher's, else bf16 where supported
    compile: Literal["auto", "true", "false"] = "auto"  # torch.compile; auto: on CUDA
    deterministic: bool = False  # the same bits in every run on one machine; on a GPU some operators get slower
    timeout: Annotated[float, 1, 1e6] = 600  # seconds that a process waits for another one before it ends the run
    threads: Annotated[int, 0, 1024] = 0  # CPU threads of each process; 0: the cores, shared among the processes

    def __post_init__(self):
        self.compile = str(self.compile).lower()  # a recipe may say False, nanoGPT's flag is --compile=False
        check_fields(self)


@dataclass
class Actions:
    """What else a recipe can do. These are flags only: a recipe does not set them and a run does not record them."""

    dry_run: bool = False  # only show what the run would take: parameters, memory, time
    price: Annotated[float, 0, 1e6] = 0  # dollars an hour of the machine, for dry_run's cost; 0: not known
    find_batch_size: bool = False  # only try ever larger batch sizes, until one does not fit into memory
    seeds: Annotated[int, 1, 1000] = 1  # train this many seeds, counting up, into out_dir-seed…, and compare them
    profile: Steps = 0  # trace this many steps into out_dir/trace.json, after two steps of warm-up
    json: bool = False  # print out_dir/result.json as the last line

    def __post_init__(self):
        check_fields(self)


# settings that never change what a step computes: resuming, comparisons and model cards ignore them
INCIDENTAL = set(
    "out_dir resume max_bad_steps max_minutes max_failed_saves eval_interval log_interval always_save_checkpoint "
    "keep_checkpoints sample_tokens report_to exportable push_to_hub timeout threads".split()
) | {field.name for field in dataclasses.fields(Actions)}  # earlier versions recorded them

# of a run's config.json, what --config leaves to the recipe and the command line
NOT_REPEATED = {"out_dir", "resume", *(field.name for field in dataclasses.fields(Actions))}


@lru_cache
def field_help(cls: type) -> dict[str, str]:
    """The comment behind each field of a dataclass, by field name: one source for readers and for --help."""
    found = dict.fromkeys((field.name for field in dataclasses.fields(cls)), "")
    for base in reversed(cls.__mro__):
        with suppress(OSError, TypeError):  # without source: typed at a prompt, or built in
            source = textwrap.dedent(inspect.getsource(base))
            found |= re.findall(r"^    (\w+): .*?  # (.*)$", source, flags=re.MULTILINE)
    return {field.name: found[field.name] for field in dataclasses.fields(cls)}


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


def within(kind: type, low: float, high: float):
    """For argparse's `type=`: numbers of that kind from `low` to `high`."""

    def read(text: str):
        try:
            value = read_value(text, kind)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text:.40}: {error}") from None
        if not low <= value <= high:  # which catches NaN as well
            raise argparse.ArgumentTypeError(f"{text:.40}: must be from {low} to {high}")
        return value

    return read


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows the default of an option, where it has one and its help does not say it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        said = action.default in (None, False, argparse.SUPPRESS) or "default" in action.help
        return action.help if said or not action.option_strings else f"{action.help} (default: %(default)s)"


class OneLineParser(argparse.ArgumentParser):
    """An argparse whose errors are one line, and which suggests the flag that was probably meant.

    In the names of flags, _ and - are the same.
    """

    def __init__(self, **options):
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False} | options)

    def parse_known_args(self, args=None, namespace=None):
        args, rest = list(sys.argv[1:] if args is None else args), []
        if "--" in args:
            args, rest = args[: args.index("--")], args[args.index("--") :]
        args = [re.sub(r"(?<=\w)-", "_", name) + equals + value for name, equals, value in map(split_flag, args)]
        namespace, unknown = super().parse_known_args(args + rest, namespace)
        if unknown:  # reported here, so that a sub-command suggests its own flags
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str) -> typing.NoReturn:
        """Exits with code 2 and one line."""
        if unknown := re.match(r"unrecognized arguments: (--?[\w-]+)", message):
            message = f"unknown flag {unknown[1]}: {nearest(unknown[1], self._option_string_actions)}"
        elif unknown := re.match(r"argument COMMAND: invalid choice: '(.*)' \(choose", message, re.DOTALL):
            commands = next(action.choices for action in self._actions if action.dest == "command")
            message = f"unknown command {unknown[1]}: {nearest(unknown[1], commands)}"
        fail(re.sub(r"^argument (--\w+): (?=.*: (expected|must))", r"\1=", message, flags=re.DOTALL))


def split_flag(word: str) -> tuple[str, str, str]:
    """A flag's name, = and value; of any other word an empty name."""
    return word.partition("=") if word.startswith("--") else ("", "", word)


def nearest(word: str, known) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}? --help lists them all" if near else "--help lists them all"


def settings_parser(model_config: GPTConfig, train: TrainConfig, description: str) -> OneLineParser:
    """The parser of a recipe: a flag for each field, those after KW_ONLY and the actions in groups of their own."""
    parser = OneLineParser(usage="%(prog)s [--SETTING VALUE …]", description=description)
    parser.add_argument("--config", metavar="FILE", help="repeat a run: its config.json, before the flags given here")
    groups = [parser.add_argument_group(title) for title in ("settings", "advanced settings", "actions")]
    for config in (model_config, train, Actions()):
        help_of, kinds = field_help(type(config)), declared(type(config))
        for field in dataclasses.fields(config):
            (kind, limits), value = kinds[field.name], getattr(config, field.name)
            default = "" if value is None else f" (default: {value})"
            text = f"{help_of[field.name]}{default}".strip().replace("%", "%%")
            flag_alone = {"nargs": "?", "const": "true"} if kind is bool or field.name == "compile" else {}
            metavar = short(kind, limits)
            group = groups[2 if isinstance(config, Actions) else int(bool(field.kw_only))]
            group.add_argument(f"--{field.name}", metavar=metavar, help=text, **flag_alone)
    return parser


def parse(
    model_config: GPTConfig, train: TrainConfig, argv: list[str], description: str
) -> tuple[GPTConfig, TrainConfig, Actions]:
    """The recipe's two configurations, overridden by --config and the command line, and the actions asked for."""
    parser = settings_parser(model_config, train, description)
    given = {name: text for name, text in vars(parser.parse_args(argv)).items() if text is not None}
    repeated, changed = recorded(given["config"]) if "config" in given else {}, []
    for config in (model_config, train, Actions()):
        kinds = declared(type(config))
        values = {name: repeated[name] for name in repeated.keys() & kinds.keys()}
        for name in given.keys() & kinds.keys():
            try:
                values[name] = read_value(given[name], kinds[name][0])
            except ValueError as error:
                parser.error(f"--{name}={given[name]:.80}: {error}")
            if name in ("out_dir", "data", "init_from", "resume"):
                values[name] = os.path.expanduser(values[name])  # the shell leaves --data=~/x as it is
            if name == "out_dir":
                values[name] = str(Path(values[name]))  # without a / at its end
        changed.append(dataclasses.replace(config, **values))
    return tuple(changed)


def recorded(path: str) -> dict:
    """The settings in a run's config.json, or in that of an out directory. Raises ValueError where there are none."""
    file = Path(path, "config.json") if Path(path).is_dir() else Path(path)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        settings = {**found["model"], **found["train"]}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{file} is not a run's configuration ({type(error).__name__}: {error})") from None
    return {name: value for name, value in settings.items() if name not in NOT_REPEATED}


def short(kind: type, limits: tuple = ()) -> str:
    """A type as --help shows it: its choices, or its name."""
    if kind is str and limits:
        return "|".join(limits)
    return kind.__name__.upper() if isinstance(kind, type) else str(kind).split(" ")[0].upper()


def visible(text: str) -> str:
    """`text` for a terminal or a page: what is not shown or moves other text, but for newline and tab, becomes \\x1b.

    These are control characters such as ESC, the marks of writing direction, and halves of surrogate pairs.
    """
    hidden = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
    return re.sub(hidden, lambda match: ascii(match[0])[1:-1] if match[0] != "\r" else r"\x0d", text)


def fail(message: object, code: int = 2) -> typing.NoReturn:
    """One line on stderr, from the main process alone, and the exit code; 2: the user has something to change."""
    if isinstance(message, OSError) and message.filename:
        message = f"{message.filename}: {message.strerror}"
    line = visible(" ".join(str(message).split("\n")))
    line = f"error: {line if len(line) < 1000 else line[:1000] + '…'}"
    rank, torchrun = os.environ.get("RANK", "0"), os.environ.get("TORCHELASTIC_ERROR_FILE")
    if rank != "0" and torchrun and code == 2:
        time.sleep(PATIENCE)  # the main process has the same to say, and when it ends this one is ended as well
        line, rank = f"error: process {rank}: {line.removeprefix('error: ')}", "0"
    if rank == "0":
        print(line, file=sys.stderr, flush=True)
        if torchrun and code == 2:  # what the launcher prints last
            with suppress(OSError):
                Path(torchrun).write_text(json.dumps({"message": line, "timestamp": int(time.time())}))
    if code == 2 and (launcher := lone_launcher()):
        launcher.terminate()
    sys.exit(code)


def lone_launcher() -> psutil.Process | None:
    """`accelerate launch`, where it started this process alone: it would print a traceback below a user's mistake."""
    with suppress(psutil.Error):
        parent = psutil.Process().parent()
        if "ACCELERATE_MIXED_PRECISION" in os.environ and "RANK" not in os.environ and parent:
            words = [Path(word).name for word in parent.cmdline()[:3]]
            if words[1:] == ["accelerate", "launch"] or words[1:2] == ["accelerate-launch"]:
                return parent
    return None


def out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: on CUDA by its own type of error, on the CPU and MPS by the text."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        text in str(error) for text in ("out of memory", "can't allocate memory", "not enough memory")
    )


def reader_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads any more."""
    poll = select.poll()
    with suppress(OSError, ValueError):  # stdout is no file
        poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))


@contextmanager
def waiting(what: str, say=None):
    """Around what may take long and prints nothing: says what it is, on stderr, after one and a half seconds."""
    timer = threading.Timer(1.5, say or (lambda text: print(text, file=sys.stderr)), [f"{what} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def user_errors(stopped: str = ""):
    """Around what depends on the user: ValueError, OSError and too little memory become one line and exit code 2.

    Ctrl-C becomes 130, with `stopped` as what to say if it says nothing itself; a reader that is gone (`| head`)
    becomes 141, as in a shell. From here on, characters that stdout cannot show are escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError as error:
        if not reader_is_gone():  # another pipe, or a connection
            fail(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        sys.exit(128 + signal.SIGPIPE)
    except (ValueError, OSError) as error:
        fail(error)
    except ModuleNotFoundError as error:  # of what only some commands need
        fail(f"the package {error.name} is not installed: pip install {error.name}")
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        fail("out of memory: choose a smaller model, batch or number of samples")
    except KeyboardInterrupt as interrupt:
        stopped = str(interrupt) or stopped
        print(stopped and f"\n{stopped}", file=sys.stderr)
        sys.exit(130)
