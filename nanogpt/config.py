"""Settings of a run: dataclass defaults < the recipe < the command line.

Every field of `GPTConfig` and `TrainConfig` is a flag of the same name, `--max_iters 500` or
`--max_iters=500`. Its help text is the comment behind the field. Its type has the choices
or limits: `Annotated[int, 1, 1000]` is an integer from 1 to 1000. --help lists the fields after
KW_ONLY as advanced. An unknown flag or a value that is not allowed is an error, never ignored.
"""

from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Annotated, Any, Literal

from nanogpt.model import GPTConfig, check_fields

Count = Annotated[int, 1, 65_536]
Positive = Annotated[int, 1, 10**9]
Steps = Annotated[int, 0, 10**9]
LastStep = Annotated[int | None, 1, 10**9]
Rate = Annotated[float, 0, 100]
Decay = Annotated[float, 0, 0.999999]
Share = Annotated[float, 0, 1]
Seconds = Annotated[float, 1, 1e6]
Minutes = Annotated[float, 0, 1e7]
Threads = Annotated[int, 0, 1024]
Schedule = Literal["cosine", "linear", "wsd", "constant"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Switch = Literal["auto", "true", "false"]


def setting(default: Any, *ignored_by: str) -> Any:
    """A field, and the comparisons of recorded settings that skip it:

    - resume: a note lists the settings that differ from the checkpoint's
    - compare: `nanogpt compare` lists the settings that differ between runs
    - card: a model card lists the settings
    - config: `--config` repeats the settings of a run
    """
    return field(default=default, metadata={"ignored_by": ignored_by})


def resumable(default: Any, *ignored_by: str) -> Any:
    """A field that a resumed run may change; other notes report the effects."""
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
    max_iters: Steps = resumable(5000)  # optimizer steps; 0 only evaluates
    resume: str = local("none")  # none | auto (last, if any) | last | best | a checkpoint
    init_from: str = resumable("scratch")  # scratch | to fine-tune: a run, directory or Hub model
    seed: Annotated[int, 0, 2**63 - 1] = setting(1337, "compare")  # for weights, batches, dropout
    batch_size: Count = 12  # sequences in a micro-batch
    gradient_accumulation_steps: Count = 1  # micro-batches per step, over all processes
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: Muon for matrices, AdamW for the rest
    learning_rate: Annotated[float, 1e-12, 100] = 1e-3  # AdamW's peak learning rate
    weight_decay: Rate = 0.1  # decoupled; on matrices and embeddings (muon: matrices)
    eval_interval: Positive = incidental(250)  # steps between evaluations and checkpoints
    report_to: str = local("none")  # none | trackio | wandb | tensorboard, or several with commas
    device: Device = resumable("auto", "card")  # auto: the launcher's choice
    precision: Precision = resumable("auto")  # auto: the launcher's, else bf16 if supported
    threads: Threads = incidental(0)  # CPU threads per process; 0: OMP_NUM_THREADS or its share
    time_limit: Minutes = incidental(0)  # wall-clock minutes until the run saves and ends; 0: off
    _: KW_ONLY  # the advanced ones
    # optimizer
    muon_learning_rate: Rate = 0.02  # Muon's peak learning rate; follows the same schedule
    muon_momentum: Decay = 0.95  # Muon's Nesterov momentum
    beta1: Decay = 0.9  # AdamW's decay rate for the mean
    beta2: Decay = 0.95  # AdamW's decay rate for the square; 0.99 if a step has few tokens
    grad_clip: Annotated[float, 0, 1e9] = 1.0  # largest norm of the gradient; 0: no clipping
    lora_rank: Steps = 0  # with init_from: train adapters of this rank, not the weights; 0: off
    # learning rate
    lr_schedule: Schedule = "cosine"  # wsd: constant, then a linear decay
    warmup_iters: Steps = 100  # steps of linear warm-up
    lr_decay_iters: LastStep = resumable(None)  # step at which min_lr is reached; none: max_iters
    train_minutes: Minutes = 0  # train for this long instead of max_iters, decay included; 0: off
    min_lr: Rate = 1e-4  # learning rate at the end (nanoGPT: a tenth of the peak)
    decay_fraction: Share = 0.4  # wsd: fraction of lr_decay_iters spent decaying
    # context
    short_block_iters: Steps = 0  # number of first steps with a short context, which are faster
    short_block_size: Count = 64  # their context in tokens; divides block_size
    # evaluation, logging, checkpoints
    eval_iters: Steps = resumable(0, "compare")  # random batches per evaluation; 0: whole split
    log_interval: Positive = incidental(10)  # steps between lines of metrics.jsonl
    always_save_checkpoint: bool = incidental(True)  # at each evaluation; false: only the best
    keep_checkpoints: Steps = incidental(2)  # newest checkpoints to keep besides the best; 0: all
    sample_tokens: Steps = incidental(100)  # tokens per sample in samples.jsonl; 0: no samples
    require_exportable: bool = incidental(False)  # refuse a model with no class in transformers
    push_to_hub: str | None = local(None)  # USER/NAME: push the best at the end; public if new
    # the machine
    compile: Switch = resumable("auto", "card")  # torch.compile; auto: on CUDA
    deterministic: bool = resumable(False)  # bit-identical repeats on one machine; slower on GPUs
    timeout: Seconds = incidental(600)  # seconds to wait for another process before the run ends

    def __post_init__(self):
        # a recipe may say False, nanoGPT's flag is --compile=False
        self.compile = str(self.compile).lower()
        check_fields(self)
        if self.init_from == "resume":  # nanoGPT's
            raise ValueError("init_from=resume: to resume the run in out_dir, give --resume=auto")


@dataclass
class Actions:
    """What else a recipe can do: flags that a recipe does not set and a run does not record."""

    dry_run: bool = False  # only show the run's parameters, memory and time
    seeds: Annotated[int, 1, 1000] = 1  # train with N seeds, into out_dir-seed…, and compare
    json: bool = False  # print out_dir/result.json as the last line

    def __post_init__(self):
        check_fields(self)


def ignored_by(*uses: str) -> set[str]:
    """The names of the settings that all of these uses ignore; see `setting`."""
    found = set()
    for f in (*fields(GPTConfig), *fields(TrainConfig)):
        if set(uses) <= set(f.metadata.get("ignored_by", ())):
            found.add(f.name)
    return found
