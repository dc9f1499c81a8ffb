"""Prepares a run's first step: the launcher's device, the data, the model, the files it writes."""

import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from nanogpt import checkpoint, optim, rundir
from nanogpt.checkpoint import State
from nanogpt.config import TrainConfig
from nanogpt.data.files import write_json
from nanogpt.data.meta import SPLITS
from nanogpt.data.tokens import TokenDataset
from nanogpt.hub import lora, weights
from nanogpt.hub.export import check_publishing
from nanogpt.hub.load import check_tokenizer, load_for_training, make_room
from nanogpt.model import GPT, GPTConfig, Ops
from nanogpt.ops import sharded
from nanogpt.ops.cpu import CPU
from nanogpt.ops.loss import chunked_loss
from nanogpt.run import console, device, guard, resume
from nanogpt.run.agree import Peers
from nanogpt.run.errors import waiting
from nanogpt.run.metrics import RESULT, Metrics
from nanogpt.run.provenance import code_hash, git_commit, own_code
from nanogpt.run.stop import Interrupts
from nanogpt.text.directories import load_meta, open_data, read_shares
from nanogpt.text.tokenizer import load_tokenizer
from nanogpt.train import Parts, Tally, done, logger


def prepare(
    model_config: GPTConfig,
    config: TrainConfig,
    prepare_data: Callable[[Path], object] | None = None,
    note: str = "",
    quiet: bool = False,
    make_model: Callable[[GPTConfig], GPT] = GPT,
    make_optimizers: Callable[..., list[torch.optim.Optimizer]] = optim.make_optimizers,
    given: Iterable[str] = (),
) -> tuple[TrainConfig, Parts, State]:
    """Makes and checks everything `train` needs: the settings in use, the parts, the first state.

    Arguments are those of `train.main`; `given` are the names of settings that have a flag on the
    command line; `quiet` prints only warnings. Raises ValueError or OSError for a user's mistake.
    """
    console.show_messages(quiet)
    config = device.share_batches(config, int(os.environ.get("WORLD_SIZE", 1)))
    accelerator = device.make_accelerator(config)
    peers = Peers(accelerator, config.timeout)
    interrupts = Interrupts(peers, config.time_limit)  # which counts from here
    environment = device.set_up(config, accelerator)
    if note:
        logger.info(note)
    # only the main process downloads and makes data
    with peers.watched(), peers.in_agreement(main_first=True):
        start = resume.find_start(config)
        gpt, its_tokenizer = load_for_training(model_config, config, start, make_model, given)
        model_config = gpt.config if gpt else model_config
        if accelerator.is_main_process:
            check_publishing(model_config, config)
        names = ("train.bin", "val.bin", "meta.json")
        data = Path(config.data)
        killed = (data / ".preparing" / "meta.json").exists()  # while its files were moved
        if prepare_data and (killed or not any((data / name).exists() for name in names)):
            with waiting(f"preparing {config.data}", logger.info):
                prepare_data(data)
        directory = next(iter(read_shares(config.data)))  # of a mixture, which has one tokenizer
        meta = load_meta(directory)  # first: its error names a directory that does not exist
        tokenizer = load_tokenizer(directory)
        if gpt:
            make_room(gpt, meta, config)
            model_config = gpt.config
        if its_tokenizer:
            its_model = start or config.init_from
            check_tokenizer(its_tokenizer, tokenizer, config.data, its_model, exact=bool(start))
        if model_config.vocab_size is None:
            model_config = replace(model_config, vocab_size=meta["vocab_size"])
        train_data, val_data = open_splits(config, model_config)
        if config.max_iters > 0:
            guard.check_masks(model_config, accelerator.device)
            if gpt is None and accelerator.device.type == "cpu":
                guard.check_room(model_config)
    splits = train_data.meta["splits"]
    shared = asdict(config)
    for name in ("out_dir", "data", "threads", "time_limit"):  # machines may differ in these
        del shared[name]
    checksum = zlib.crc32(repr((start and start.name, splits, model_config, shared)).encode())
    if peers.all_max(checksum, -checksum) != [checksum, -checksum]:
        same = f"{config.out_dir} and {config.data}, and have the same settings"
        raise ValueError(f"all machines must see the same {same}")

    torch.manual_seed(config.seed)
    gpt = (gpt or make_model(model_config)).to(accelerator.device)
    if type(gpt) is not GPT and (config.require_exportable or config.push_to_hub):
        weights.check_parameters(gpt)
    compiled = device.should_compile(config, gpt, accelerator.device)
    environment |= {"compiled": compiled, "commit": git_commit()}
    environment["code"] = code_hash(type(gpt), make_model, make_optimizers)
    settings = {
        "environment": environment,
        "model": asdict(model_config),
        "train": asdict(config),
        "data": splits,
        **own_code(gpt, make_optimizers),
    }
    same_text = resume.check_changes(start, model_config, config, settings) if start else True
    model, optimizers = assemble(gpt, config, accelerator, make_optimizers, compiled)
    state = State()
    if start:
        checkpoint.restore(start, gpt, optimizers)
        state = resume.resumed_state(start, config, accelerator.scaler, same_text)
    out_dir = Path(config.out_dir)
    flat = settings["model"] | settings["train"]
    with peers.watched(), peers.in_agreement():
        is_run = (out_dir / checkpoint.CONFIG).exists()
        # a run that only evaluates a checkpoint again leaves its settings and curve as they are
        complete = state.evaluated_step == state.step and (out_dir / RESULT).exists()
        again = is_run and done(config, state) and (complete or config.max_iters == 0)
        if accelerator.is_main_process:
            out_dir.mkdir(parents=True, exist_ok=True)
            rundir.claim(out_dir)
            if not again:
                (out_dir / RESULT).unlink(missing_ok=True)  # from an earlier run
                write_json(out_dir / checkpoint.CONFIG, settings)
        metrics = Metrics(accelerator, out_dir, state.step if start else -1, flat, write=not again)
        if metrics.files and start and start.parent == out_dir.resolve():
            # as the curve, which now ends there
            for link, step in (("last", state.step), ("best", state.best_step)):
                if step is not None and checkpoint.step_dir(out_dir, step).is_dir():
                    checkpoint.point(out_dir / link, checkpoint.step_dir(out_dir, step))
    parts = Parts(
        accelerator=accelerator,
        device=accelerator.device,
        gpt=gpt,
        model=model,
        optimizers=optimizers,
        train_data=train_data,
        val_data=val_data,
        tokenizer=tokenizer,
        out_dir=out_dir,
        settings=settings,
        metrics=metrics,
        progress=console.Progress(config, state),
        peers=peers,
        interrupts=interrupts,
        tally=Tally(accelerator.device, state),
        sharded=accelerator.distributed_type == DistributedType.FSDP,
        compiled=compiled,
        peak_flops=device.peak_flops(environment["device"]),
        make_model=make_model,
    )
    console.introduce(config, parts, state)
    return config, parts, state


def open_splits(config: TrainConfig, model_config: GPTConfig) -> list[TokenDataset]:
    """The training and validation data. Raises ValueError if they do not fit the settings."""
    T, short = model_config.block_size, config.short_block_size
    if config.short_block_iters and T % short:
        raise ValueError(f"short_block_size={short} does not divide block_size={T}")
    with waiting(f"checking {config.data}", logger.info):  # nanoGPT's files token by token
        return [open_data(config.data, split, T, model_config.vocab_size) for split in SPLITS]


def assemble(
    gpt: GPT, config: TrainConfig, accelerator: Accelerator, make_optimizers, compiled: bool
) -> tuple[torch.nn.Module, list[torch.optim.Optimizer]]:
    """Gives a model its operators, adapters and optimizers, and wraps it for all processes."""
    if config.lora_rank:
        lora.inject(gpt, config.lora_rank)
    ops = CPU if accelerator.device.type == "cpu" else Ops(loss=chunked_loss)
    own = {name: op for name, op in gpt.ops._asdict().items() if op is not getattr(Ops(), name)}
    gpt.use(ops._replace(**own))
    if compiled:
        # one graph on a single GPU, unless a class of the user's own does more in `forward`, such
        # as asking a teacher, which would be traced as well
        alone = accelerator.distributed_type == DistributedType.NO
        plain = type(gpt).forward is GPT.forward
        device.compile_model(gpt, whole=alone and plain and accelerator.device.type != "cpu")
    sharded.configure(accelerator, gpt)
    muon_dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    model, *wrapped = accelerator.prepare(gpt, *make_optimizers(gpt, config, muon_dtype))
    # Only prepare needs Accelerate's wrappers. Their step() would update the gradient scaler of
    # fp16 once for each optimizer and unscale the second one's gradients twice.
    return model, [wrapper.optimizer for wrapper in wrapped]
