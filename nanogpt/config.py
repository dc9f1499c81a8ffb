"""Settings of a run: dataclass defaults < the recipe < --config < other flags.

Every field of `GPTConfig` and `TrainConfig` is a flag of the same name, `--max_iters 500` or
`--max_iters=500`. Its help text is the comment after the field. Its type gives the choices
or limits: `Annotated[int, 1, 1000]` is an integer from 1 to 1000. --help lists the fields after
KW_ONLY as advanced. An unknown flag or a value that is not allowed is an error, never ignored.
"""

from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Annotated, Any, Literal

from nanogpt.model import GPTConfig, check_fields

Positive = Annotated[int, 1, 65_536]
Natural = Annotated[int, 0, 10**9]
Steps = Annotated[int, 1, 10**9]
LastStep = Annotated[int | None, 1, 10**9]
LR = Annotated[float, 0, 100]
Beta = Annotated[float, 0, 0.999999]
Fraction = Annotated[float, 0, 1]
Seconds = Annotated[float, 1, 1e6]
Minutes = Annotated[float, 0, 1e7]
Threads = Annotated[int, 0, 1024]
Schedule = Literal["cosine", "linear", "wsd", "constant"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Switch = Literal["auto", "true", "false"]

# Recorded settings have four readers, each of which skips some fields (`ignored_by`):
# - resume: a note lists the settings that differ from the checkpoint's
# - compare: `nanogpt compare` lists the settings that differ between runs
# - card: a model card lists the settings
# - config: `--config` repeats the settings of a run


def setting(default: Any, *ignored_by: str) -> Any:
    """A field that these readers skip."""
    return field(default=default, metadata={"ignored_by": ignored_by})


def resumable(default: Any, *ignored_by: str) -> Any:
    """A field that a resumed run may change without a note."""
    return setting(default, "resume", *ignored_by)


def incidental(default: Any) -> Any:
    """A field that never changes what a step computes."""
    return resumable(default, "compare", "card")


def local(default: Any) -> Any:
    """A field of one run on one machine: where it writes, what it publishes."""
    return resumable(default, "compare", "card", "config")


@dataclass
class TrainConfig:
    out_dir: str = local("out/run")  # the run's directory: config.json, metrics.jsonl, checkpoints
    data: str = resumable("data/shakespeare_char", "card")  # directory, URL or mixture: a:0.7,b:0.3
    max_iters: Natural = 5000  # optimizer steps; 0: only evaluate
    resume: str = local("none")  # none | auto (last, if any) | last | best | a checkpoint
    init_from: str = resumable("scratch")  # scratch | to fine-tune: a run, directory or Hub model
    seed: Annotated[int, 0, 2**63 - 1] = setting(1337, "compare")  # for weights, batches, dropout
    batch_size: Positive = 12  # sequences in a micro-batch
    gradient_accumulation_steps: Positive = 1  # micro-batches per step, over all processes
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: Muon for matrices, AdamW for the rest
    learning_rate: Annotated[float, 1e-12, 100] = 1e-3  # AdamW's peak rate; see muon_learning_rate
    muon_learning_rate: LR = 0.02  # Muon's peak rate for the blocks' matrices; same schedule
    weight_decay: Annotated[float, 0, 100] = 0.1  # matrices and embeddings; muon: blocks' matrices
    eval_interval: Steps = incidental(250)  # steps between evaluations and checkpoints
    report_to: str = local("none")  # none | trackio | wandb | tensorboard, or several with commas
    device: Device = resumable("auto", "card")  # auto: the launcher's choice
    precision: Precision = resumable("auto")  # auto: the launcher's bf16 or fp16, else the fastest
    threads: Threads = incidental(0)  # CPU threads per process; 0: OMP_NUM_THREADS or its share
    time_limit: Minutes = local(0)  # save and end before this many wall-clock minutes; 0: off
    _: KW_ONLY  # the advanced ones
    # optimizer
    muon_momentum: Beta = 0.95  # Muon's Nesterov momentum
    beta1: Beta = 0.9  # AdamW's decay rate for the mean
    beta2: Beta = 0.95  # AdamW's decay rate for the square; 0.99 if a step has few tokens
    grad_clip: Annotated[float, 0, 1e9] = 1.0  # largest gradient norm; 0: no clipping
    lora_rank: Natural = 0  # with init_from: train adapters of this rank, not the weights; 0: off
    # learning rate
    lr_schedule: Schedule = "cosine"  # wsd: constant, then a linear decay
    warmup_iters: Natural = 100  # steps of linear warm-up
    lr_decay_iters: LastStep = None  # step at which min_lr is reached; none: max_iters
    train_minutes: Minutes = 0  # train for this long instead of max_iters, decay included; 0: off
    min_lr: LR = 1e-4  # final learning rate (nanoGPT: a tenth of the peak)
    decay_fraction: Fraction = 0.4  # wsd: fraction of lr_decay_iters spent decaying
    # context
    short_block_iters: Natural = 0  # first steps that use a short context, to save time
    short_block_size: Positive = 64  # the short context in tokens; must divide block_size
    # evaluation, logging, checkpoints
    eval_iters: Natural = resumable(0, "compare")  # random batches per evaluation; 0: whole split
    log_interval: Steps = incidental(10)  # steps between lines of metrics.jsonl
    always_save_checkpoint: bool = incidental(True)  # save at each evaluation; false: best and last
    keep_checkpoints: Natural = incidental(2)  # newest checkpoints to keep besides the best; 0: all
    sample_tokens: Natural = incidental(100)  # tokens per sample in samples.jsonl; 0: no samples
    require_exportable: bool = incidental(False)  # refuse models that transformers cannot load
    push_to_hub: str | None = local(None)  # USER/NAME: push the best at the end; public if new
    # the machine
    compile: Switch = resumable("auto", "card")  # torch.compile; auto: if it saves time
    deterministic: bool = resumable(False)  # bit-identical runs on one machine; slower on GPUs
    timeout: Seconds = incidental(600)  # seconds to wait for another process before the run ends

    def __post_init__(self):
        # a recipe may say False, nanoGPT's flag is --compile=False
        self.compile = str(self.compile).lower()
        check_fields(self)
        if self.init_from == "resume":  # nanoGPT's
            raise ValueError("init_from=resume: to resume the run in out_dir, give --resume=auto")
        if self.min_lr > self.learning_rate and self.lr_schedule != "constant":
            raise ValueError(
                f"min_lr={self.min_lr} is above learning_rate={self.learning_rate}: lower min_lr"
            )


def ignored_by(*readers: str) -> set[str]:
    """The names of the settings that all of these readers skip."""
    every = (*fields(GPTConfig), *fields(TrainConfig))
    return {f.name for f in every if {*readers} <= {*f.metadata.get("ignored_by", ())}}
