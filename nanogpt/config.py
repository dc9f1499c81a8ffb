"""Settings of a run: dataclass defaults < the recipe < the command line.

Every field of `GPTConfig` and `TrainConfig` is a flag of the same name, `--max_iters 500` or `--max_iters=500`; its
help text is the comment behind the field, its choices or limits are in its type: `Annotated[int, 1, 1000]` is an
integer from 1 to 1000. --help lists the fields after KW_ONLY as advanced. An unknown flag or a value that is not
allowed is an error, never ignored.
"""

from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Annotated, Any, Literal

from nanogpt.model import GPTConfig, check_fields

Count = Annotated[int, 1, 65_536]
Steps = Annotated[int, 0, 10**9]
Positive = Annotated[int, 1, 10**9]
Rate = Annotated[float, 0, 100]
Minutes = Annotated[float, 0, 1e7]
Decay = Annotated[float, 0, 0.999999]


def setting(default: Any, *ignored_by: str) -> Any:
    """A field that some uses of a run's recorded settings ignore.

    "resume" and "compare" do not report that it differs, "card" does not list it, and "config" (--config, which repeats
    a run) leaves it to the recipe and the command line.
    """
    return field(default=default, metadata={"ignored_by": ignored_by})


def resumable(default: Any, *ignored_by: str) -> Any:
    """A field that may differ when a run is resumed: its effect is reported elsewhere, or concerns only the start."""
    return setting(default, "resume", *ignored_by)


def incidental(default: Any) -> Any:
    """A field that never changes what a step computes."""
    return resumable(default, "compare", "card")


def local(default: Any) -> Any:
    """A field of one run on one machine: where it writes, what it publishes."""
    return resumable(default, "compare", "card", "config")


@dataclass
class TrainConfig:
    out_dir: str = local(
        "out/run"
    )  # directory of this run: config.json, metrics.jsonl, checkpoints
    data: str = resumable(
        "data/shakespeare_char", "card"
    )  # directory, URL, or a mixture: data/a:0.7,data/b:0.3
    resume: str = local(
        "none"
    )  # none | auto (the last intact checkpoint, if any) | last | best | a checkpoint
    init_from: str = resumable(
        "scratch"
    )  # scratch | what to fine-tune: a run, a transformers directory or Hub name
    seed: Annotated[int, 0, 2**63 - 1] = setting(
        1337, "compare"
    )  # determines weights, batches and dropout
    max_iters: Steps = resumable(5000)  # optimizer steps; 0 only evaluates
    batch_size: Count = 12  # sequences in a micro-batch
    gradient_accumulation_steps: Count = 1  # micro-batches in a step, over all processes together
    optimizer: Literal["adamw", "muon"] = (
        "adamw"  # muon: Muon for the blocks' matrices, AdamW for the rest
    )
    learning_rate: Annotated[float, 1e-12, 100] = 1e-3  # peak, of AdamW
    weight_decay: Rate = (
        0.1  # decoupled; by Muon on matrices in the blocks, by AdamW on all matrices and embeddings
    )
    eval_interval: Positive = incidental(
        250
    )  # steps between evaluations, and checkpoints; always at the last step
    report_to: str = local(
        "none"
    )  # none | trackio | wandb | tensorboard, several with commas; metrics.jsonl always
    device: Literal["auto", "cpu", "cuda", "mps"] = resumable(
        "auto", "card"
    )  # auto: the launcher's choice
    _: KW_ONLY  # the advanced ones
    # optimizer
    muon_learning_rate: Rate = 0.02  # peak, of Muon; follows the same schedule
    muon_momentum: Decay = 0.95  # Nesterov momentum of Muon
    beta1: Decay = 0.9  # AdamW's decay rate of the mean
    beta2: Decay = 0.95  # AdamW's decay rate of the square; 0.99 where a step has few tokens
    grad_clip: Annotated[float, 0, 1e9] = 1.0  # largest norm of the gradient; 0 does not clip
    # learning rate
    lr_schedule: Literal["cosine", "linear", "wsd", "constant"] = (
        "cosine"  # wsd: stable, then linear at the end
    )
    warmup_iters: Steps = 100  # steps of linear warm-up
    lr_decay_iters: Annotated[int | None, 1, 10**9] = resumable(
        None
    )  # step with min_lr; none: max_iters
    train_minutes: Minutes = 0  # train for so long instead of max_iters, decay included; 0: off
    min_lr: Rate = 1e-4  # learning rate at the end (nanoGPT: a tenth of the peak)
    decay_fraction: Annotated[float, 0, 1] = 0.4  # wsd: share of lr_decay_iters that decays
    # context
    short_block_iters: Steps = (
        0  # first steps, which read windows in pieces: less context, less time
    )
    short_block_size: Count = 64  # tokens in such a piece; divides block_size
    # evaluation, logging, checkpoints
    eval_iters: Steps = resumable(
        0, "compare"
    )  # random batches of an evaluation; 0: the whole split, exactly
    log_interval: Positive = incidental(10)  # steps between lines of metrics.jsonl
    always_save_checkpoint: bool = incidental(
        True
    )  # save at every evaluation; false: only when it is the best yet
    keep_checkpoints: Steps = incidental(
        2
    )  # newest checkpoints kept, besides the best; 0 keeps all
    time_limit: Minutes = incidental(
        0
    )  # minutes of wall-clock time after which the run saves and ends; 0: no limit
    sample_tokens: Steps = incidental(
        100
    )  # tokens of the text that each evaluation writes to samples.jsonl; 0: none
    require_exportable: bool = incidental(
        False
    )  # refuse a model that fits no class of transformers; false: a warning
    push_to_hub: str | None = local(
        None
    )  # USER/NAME: push the best at the end; creates the repository, public
    # the machine
    precision: Literal["auto", "fp32", "bf16", "fp16"] = resumable(
        "auto"
    )  # auto: the launcher's, else bf16 if it can
    compile: Literal["auto", "true", "false"] = resumable(
        "auto", "card"
    )  # torch.compile; auto: on CUDA
    deterministic: bool = resumable(
        False
    )  # the same bits in every run on one machine; slower on a GPU
    timeout: Annotated[float, 1, 1e6] = incidental(
        600
    )  # seconds to wait for another process before the run ends
    threads: Annotated[int, 0, 1024] = incidental(
        0
    )  # CPU threads of a process; 0: OMP_NUM_THREADS, else its share

    def __post_init__(self):
        self.compile = str(
            self.compile
        ).lower()  # a recipe may say False, nanoGPT's flag is --compile=False
        check_fields(self)
        if self.init_from == "resume":  # nanoGPT's
            raise ValueError("init_from=resume: to resume the run in out_dir, give --resume=auto")


@dataclass
class Actions:
    """What else a recipe can do. These are flags only: a recipe does not set them and a run does not record them."""

    dry_run: bool = False  # only show what the run would take: parameters, memory, time
    price: Annotated[float, 0, 1e6] = (
        0  # dollars an hour of the machine, for dry_run's cost; 0: not known
    )
    seeds: Annotated[int, 1, 1000] = (
        1  # train this many seeds, counting up, into out_dir-seed…, and compare them
    )
    profile: Steps = 0  # trace this many steps into out_dir/trace.json, after two steps of warm-up
    json: bool = False  # print out_dir/result.json as the last line

    def __post_init__(self):
        check_fields(self)


GONE = {
    "max_bad_steps",
    "max_failed_saves",
    "max_minutes",
    "exportable",
    "find_batch_size",
}  # of earlier versions


def ignored_by(*uses: str) -> set[str]:
    """The names of the settings that all of these uses ignore; see `setting`."""
    every = (*fields(GPTConfig), *fields(TrainConfig))
    found = {f.name for f in every if {*uses} <= {*f.metadata.get("ignored_by", ())}}
    return (
        found | {f.name for f in fields(Actions)} | GONE
    )  # earlier versions recorded actions, too
