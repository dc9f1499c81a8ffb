"""Prepares a run's first step: the launcher's device, the data, the model, the files it writes."""

import dataclasses
import os
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from nanogpt import checkpoint, lora, optim, rundir
from nanogpt.checkpoint import State
from nanogpt.config import TrainConfig
from nanogpt.data.files import waiting
from nanogpt.data.meta import read_meta
from nanogpt.data.mixture import open_data, read_shares
from nanogpt.data.tokenizer import load_tokenizer
from nanogpt.data.tokens import TokenDataset
from nanogpt.hub.export import check_publishing
from nanogpt.hub.load import check_tokenizer, load_for_training, make_room
from nanogpt.model import GPT, GPTConfig, Ops
from nanogpt.ops import ops_for, sharded
from nanogpt.optim import UpdateRatio
from nanogpt.run import console, guard, resume
from nanogpt.run.agree import Peers
from nanogpt.run.device import (
    compile_model,
    compiles,
    make_accelerator,
    peak_flops,
    set_up,
    share_batches,
)
from nanogpt.run.metrics import Metrics
from nanogpt.run.stop import Interrupts
from nanogpt.train import Parts, Tally, done, logger


def prepare(
    model_config: GPTConfig,
    config: TrainConfig,
    prepare_data: Callable[[Path], object] | None = None,
    note: str = "",
    quiet: bool = False,
    make_model: Callable[[GPTConfig], GPT] = GPT,
    make_optimizers: Callable[..., list[torch.optim.Optimizer]] = optim.make_optimizers,
    recipe: tuple[GPTConfig, TrainConfig] | None = None,
    command: list[str] | None = None,
    given: Iterable[str] = (),
) -> tuple[TrainConfig, Parts, State]:
    """Makes and checks everything `train` needs: the settings in use, the parts, the first state.

    Arguments are those of `train.main`; `recipe` are the settings before the flags, `command` the
    recipe and its flags, if a command started the run; `given` are the names of settings that have
    a flag there; `quiet` prints nothing, for a run that will not train.

    Raises ValueError or OSError if the settings, the data, or out_dir do not allow the run.
    """
    requested, config = config, share_batches(config, int(os.environ.get("WORLD_SIZE", 1)))
    console.show_messages(os.environ.get("RANK", "0") == "0" and not quiet)
    accelerator = make_accelerator(config)
    peers = Peers(accelerator, config.timeout)
    interrupts = Interrupts(peers, config.time_limit)  # which counts from here
    environment = set_up(config, accelerator)
    console.preface(note, requested, config)

    with peers.in_agreement(main_first=True):
        start = resume.find_start(config)
    resume.check_agreement(start, Path(config.out_dir), peers)
    pretrained, its_tokenizer = load_pretrained(
        model_config, config, start, given, make_model, peers
    )
    model_config = pretrained.config if pretrained else model_config
    with peers.in_agreement():
        if accelerator.is_main_process:
            check_publishing(
                model_config, config.require_exportable, config.push_to_hub, logger.info
            )

    with peers.in_agreement(main_first=True):
        directory = find_data(config, prepare_data)
        if pretrained:
            make_room(pretrained, read_meta(directory), config)
            model_config = pretrained.config
        check_short_blocks(config, model_config)
        shape = model_config.block_size, model_config.vocab_size
        train_data = open_data(config.data, "train", *shape)
        val_data = open_data(config.data, "val", *shape)
        tokenizer = load_tokenizer(directory)
    check_same_tokens(config, train_data, peers)
    if its_tokenizer is not None:
        name = f"init_from={config.init_from}"
        check_tokenizer(its_tokenizer, tokenizer, config.data, name)
    if model_config.vocab_size is None:
        model_config = dataclasses.replace(model_config, vocab_size=train_data.meta["vocab_size"])
    settings = {
        "environment": environment,
        "model": dataclasses.asdict(model_config),
        "train": dataclasses.asdict(config),
        "data": train_data.meta["splits"],
        "command": command,
    }
    same_text = resume.compare(start, model_config, config, settings) if start else True

    if not pretrained:
        trains_on_cpu = accelerator.device.type == "cpu" and config.max_iters > 0 and not quiet
        with peers.in_agreement():  # one machine may have less memory than another
            guard.check_room(model_config, config, trains_on_cpu)
    torch.manual_seed(config.seed)
    gpt = (pretrained or make_model(model_config)).to(accelerator.device)
    if type(gpt) is not GPT:
        settings["class"] = describe_class(type(gpt))
    if config.lora_rank:
        lora.inject(gpt, config.lora_rank)
    choose_operators(gpt, config)
    compiled = compiles(config, accelerator.device)
    if compiled:
        compile_model(gpt, whole=accelerator.distributed_type == DistributedType.NO)
    model, optimizers = wrap(accelerator, gpt, config, make_optimizers)
    state = State()
    if start:
        state = restore(start, gpt, optimizers, accelerator.scaler)
        checkpoint.restore_best(Path(config.out_dir), state, write=accelerator.is_main_process)
        if not same_text and not done(config, state):
            logger.info("note: the validation data changed, so the best loss is reset")
            state.best_val_loss = state.best_step = state.evaluated_step = None

    parts = Parts(
        accelerator=accelerator,
        device=accelerator.device,
        gpt=gpt,
        model=model,
        optimizers=optimizers,
        train_data=train_data,
        val_data=val_data,
        tokenizer=tokenizer,
        out_dir=Path(config.out_dir),
        settings=settings,
        metrics=open_files(config, accelerator, peers, settings, state),
        progress=console.Progress(config, state, accelerator.is_main_process and not quiet),
        peers=peers,
        interrupts=interrupts,
        tally=Tally(accelerator.device, state),
        update_ratio=UpdateRatio(gpt),
        sharded=accelerator.distributed_type == DistributedType.FSDP,
        compiled=compiled,
        peak_flops=peak_flops(environment["device"]),
        make_model=make_model,
        recipe=recipe or (GPTConfig(), TrainConfig()),
    )
    console.introduce(config, parts, state)
    return config, parts, state


def load_pretrained(
    model_config: GPTConfig,
    config: TrainConfig,
    start: Path | None,
    given: Iterable[str],
    make_model: Callable,
    peers: Peers,
) -> tuple[GPT | None, Any]:
    """The model to fine-tune and its tokenizer, if the settings name one; one process downloads."""
    if config.init_from == "scratch":
        if config.lora_rank:
            raise ValueError("lora_rank adapts a trained model: name one by --init_from")
        return None, None
    if make_model is not GPT:
        raise ValueError(
            f"init_from={config.init_from} loads a GPT: it cannot be combined with make_model"
        )
    with peers.in_agreement(main_first=True):
        return load_for_training(start or config.init_from, model_config, logger.info, given)


def describe_class(cls: type[GPT]) -> dict[str, str]:
    """Where a model's class is, for `nanogpt.hub.load`: its name and the file that defines it."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None) or "a notebook"
    return {"name": cls.__qualname__, "file": Path(file).name}


def find_data(config: TrainConfig, prepare_data: Callable[[Path], object] | None) -> str | Path:
    """The data directory, prepared if it is missing; of a mixture the first (one tokenizer)."""
    directory = Path(config.data)
    missing = not any((directory / name).exists() for name in ("train.bin", "val.bin", "meta.json"))
    if prepare_data is not None and missing:
        with waiting(f"preparing {directory}", logger.info):
            prepare_data(directory)
    return next(iter(read_shares(config.data)))


def check_short_blocks(config: TrainConfig, model_config: GPTConfig) -> None:
    T, short = model_config.block_size, config.short_block_size
    if config.short_block_iters and T % short:
        divisor = max(d for d in range(1, min(short, T) + 1) if T % d == 0)
        raise ValueError(
            f"short_block_size={short} does not divide block_size={T}: choose {divisor}"
        )


def check_same_tokens(config: TrainConfig, data: TokenDataset, peers: Peers) -> None:
    counts = zlib.crc32(repr(data.meta["splits"]).encode())
    largest, smallest = peers.largest(counts, -counts)
    if largest != -smallest:
        raise ValueError(
            f"the processes find different tokens in {config.data}: "
            "all machines must see the same data"
        )


def choose_operators(gpt: GPT, config: TrainConfig) -> None:
    """Uses the device's fast operators, but keeps custom ones of the model."""
    device = next(gpt.parameters()).device
    tokens = max(config.batch_size * gpt.config.block_size, 4096)  # as in an evaluation
    own = {name: op for name, op in gpt.ops._asdict().items() if op is not getattr(Ops(), name)}
    gpt.use(ops_for(device, gpt.config, tokens)._replace(**own))


def wrap(accelerator: Accelerator, gpt: GPT, config: TrainConfig, make_optimizers) -> tuple:
    """The model, copied or sharded as the launcher asks, and its optimizers."""
    sharded.configure(accelerator, gpt)
    muon_dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    model, *wrapped = accelerator.prepare(gpt, *make_optimizers(gpt, config, muon_dtype))
    # Only prepare needs Accelerate's wrappers. Their step() would update the gradient scaler of
    # fp16 once for each optimizer and unscale the second one's gradients twice.
    optimizers = [wrapper.optimizer for wrapper in wrapped]
    return model, optimizers


def restore(start: Path, gpt: GPT, optimizers: list[torch.optim.Optimizer], scaler) -> State:
    """Loads a checkpoint into model, optimizers and fp16's gradient scaler; returns its state."""
    checkpoint.restore(start, gpt, optimizers)
    state = checkpoint.read_state(start)
    if scaler is not None and state.loss_scale is not None:
        saved = {"scale": state.loss_scale, "_growth_tracker": state.loss_scale_steps}
        scaler.load_state_dict(scaler.state_dict() | saved)
    return state


def open_files(
    config: TrainConfig, accelerator: Accelerator, peers: Peers, settings: dict, state: State
) -> Metrics:
    """Writes config.json and opens the files of metrics.

    A run that only evaluates a checkpoint again leaves its settings and its curve as they are.
    """
    out_dir = Path(config.out_dir)
    newest = max(map(checkpoint.step_of, checkpoint.list_checkpoints(out_dir)), default=-1)
    again = newest >= 0 and state.evaluated_step == state.step and done(config, state)
    with peers.in_agreement():
        if accelerator.is_main_process:
            out_dir.mkdir(parents=True, exist_ok=True)
            rundir.claim(out_dir)
            (out_dir / console.RESULT).unlink(missing_ok=True)  # from an earlier run
            if not again:
                rundir.write_json(out_dir / checkpoint.CONFIG, settings)
        flat = settings["model"] | settings["train"]
        return Metrics(accelerator, out_dir, state.step, flat, newest, write=not again)
