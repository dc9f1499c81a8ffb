"""Settings of a run: dataclass defaults < the recipe < the command line.

Every field of `GPTConfig` and `TrainConfig` is a flag of the same name, `--max_iters 500` or `--max_iters=500`; its
help text is the comment behind the field, its choices or limits are in its type: `Annotated[int, 1, 1000]` is an
integer from 1 to 1000. --help lists the fields after KW_ONLY as advanced. An unknown flag or a value that is not
allowed is an error, never ignored.
"""

import dataclasses
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

from nanogpt.model import check_fields

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
        if self.init_from == "resume":  # nanoGPT's
            raise ValueError("init_from=resume: to resume the run in out_dir, give --resume=auto")


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


# of a run's config.json, what --config leaves to the recipe and the command line: also what publishes
NOT_REPEATED = {"out_dir", "resume", "push_to_hub", "report_to", *(field.name for field in dataclasses.fields(Actions))}
