"""Prepares a run's first step: the launcher's device, the data, the model, the files it writes."""

import os
import sys
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate.utils import DistributedType

from nanogpt import checkpoint, lora, optim, rundir
from nanogpt.checkpoint import State
from nanogpt.config import TrainConfig
from nanogpt.data.files import waiting
from nanogpt.data.meta import read_meta
from nanogpt.data.mixture import open_data, read_shares
from nanogpt.data.tokenizer import load_tokenizer
from nanogpt.hub.export import check_publishing
from nanogpt.hub.load import check_tokenizer, load_for_training, make_room
from nanogpt.model import GPT, GPTConfig, Ops
from nanogpt.ops import ops_for, sharded
from nanogpt.run import console, guard, resume
from nanogpt.run.agree import Peers
from nanogpt.run.device import compile_model, make_accelerator, peak_flops, set_up, share_batches
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
    # the machine
    console.show_messages(os.environ.get("RANK", "0") == "0" and not quiet)
    requested, config = config, share_batches(config, int(os.environ.get("WORLD_SIZE", 1)))
    accelerator = make_accelerator(config)
    device, main_process = accelerator.device, accelerator.is_main_process
    peers = Peers(accelerator, config.timeout)
    interrupts = Interrupts(peers, config.time_limit)  # which counts from here
    environment = set_up(config, accelerator)
    if note:
        logger.info(note)
    if config != requested:
        logger.info(
            f"note: for several processes, now --batch_size={config.batch_size} "
            f"--gradient_accumulation_steps={config.gradient_accumulation_steps}"
        )

    # where it starts
    out_dir = Path(config.out_dir)
    with peers.in_agreement(main_first=True):
        start = resume.find_start(config)
    step = checkpoint.step_of(start) if start else -1
    if not peers.agree(step):
        raise ValueError(
            f"the processes find different checkpoints in {out_dir}: it must be on a file system "
            "that all machines see"
        )

    # a model to fine-tune
    pretrained = its_tokenizer = None
    if config.init_from != "scratch":
        if make_model is not GPT:
            raise ValueError(
                f"init_from={config.init_from} loads a GPT: it cannot be combined with make_model"
            )
        with peers.in_agreement(main_first=True):  # one process downloads
            pretrained, its_tokenizer = load_for_training(
                start or config.init_from, model_config, logger.info, given
            )
        model_config = pretrained.config
    elif config.lora_rank:
        raise ValueError("lora_rank adapts a trained model: name one by --init_from")
    with peers.in_agreement():
        if main_process:
            exportable, repo = config.require_exportable, config.push_to_hub
            check_publishing(model_config, exportable, repo, logger.info)

    # the data; the main process prepares them
    with peers.in_agreement(main_first=True):
        names = ("train.bin", "val.bin", "meta.json")
        if prepare_data and not any((Path(config.data) / name).exists() for name in names):
            with waiting(f"preparing {config.data}", logger.info):
                prepare_data(Path(config.data))
        directory = next(iter(read_shares(config.data)))  # of a mixture, which has one tokenizer
        if pretrained:
            make_room(pretrained, read_meta(directory), config)
            model_config = pretrained.config
        T, short = model_config.block_size, config.short_block_size
        if config.short_block_iters and T % short:
            raise ValueError(f"short_block_size={short} does not divide block_size={T}")
        train_data = open_data(config.data, "train", T, model_config.vocab_size)
        val_data = open_data(config.data, "val", T, model_config.vocab_size)
        tokenizer = load_tokenizer(directory)
    if not peers.agree(zlib.crc32(repr(train_data.meta["splits"]).encode())):
        raise ValueError(
            f"the processes find different tokens in {config.data}: "
            "all machines must see the same data"
        )
    if its_tokenizer is not None:
        name = f"init_from={config.init_from}"
        check_tokenizer(its_tokenizer, tokenizer, config.data, name)
    if model_config.vocab_size is None:
        model_config = replace(model_config, vocab_size=train_data.meta["vocab_size"])
    settings = {
        "environment": environment,
        "model": asdict(model_config),
        "train": asdict(config),
        "data": train_data.meta["splits"],
        "command": command,
    }
    same_text = resume.compare(start, model_config, config, settings) if start else True

    # the model and its optimizers
    if not pretrained:
        trains_on_cpu = device.type == "cpu" and config.max_iters > 0 and not quiet
        with peers.in_agreement():  # one machine may have less memory than another
            guard.check_room(model_config, trains_on_cpu)
    torch.manual_seed(config.seed)
    gpt = (pretrained or make_model(model_config)).to(device)
    if type(gpt) is not GPT:  # for `nanogpt.hub.load`: its name and the file that defines it
        file = getattr(sys.modules.get(type(gpt).__module__), "__file__", None) or "a notebook"
        settings["class"] = {"name": type(gpt).__qualname__, "file": Path(file).name}
    if config.lora_rank:
        lora.inject(gpt, config.lora_rank)
    tokens = max(config.batch_size * gpt.config.block_size, 4096)  # as in an evaluation
    own = {name: op for name, op in gpt.ops._asdict().items() if op is not getattr(Ops(), name)}
    gpt.use(ops_for(device, gpt.config, tokens)._replace(**own))
    compiled = config.compile == "true" or (config.compile == "auto" and device.type == "cuda")
    if compiled:
        compile_model(gpt, whole=accelerator.distributed_type == DistributedType.NO)
    sharded.configure(accelerator, gpt)
    muon_dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    model, *wrapped = accelerator.prepare(gpt, *make_optimizers(gpt, config, muon_dtype))
    # Only prepare needs Accelerate's wrappers. Their step() would update the gradient scaler of
    # fp16 once for each optimizer and unscale the second one's gradients twice.
    optimizers = [wrapper.optimizer for wrapper in wrapped]

    # its state
    state = State()
    if start:
        checkpoint.restore(start, gpt, optimizers)
        state = checkpoint.read_state(start)
        if (scaler := accelerator.scaler) is not None and state.loss_scale is not None:  # of fp16
            saved = {"scale": state.loss_scale, "_growth_tracker": state.loss_scale_steps}
            scaler.load_state_dict(scaler.state_dict() | saved)
        if not same_text and not done(config, state):
            logger.info("note: the validation data changed, so the best loss is reset")
            state.best_step = state.evaluated_step = None

    # its files; if it only evaluates a checkpoint again, its settings and curve stay as they are
    saved = [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(out_dir)]
    newest = max(saved, default=-1)
    if state.best_step not in saved and not done(config, state):
        state.best_step = state.best_val_loss = None  # the next evaluation is the best
    again = newest >= 0 and state.evaluated_step == state.step and done(config, state)
    with peers.in_agreement():
        if main_process:
            out_dir.mkdir(parents=True, exist_ok=True)
            rundir.claim(out_dir)
            (out_dir / console.RESULT).unlink(missing_ok=True)  # from an earlier run
            if not again:
                rundir.write_json(out_dir / checkpoint.CONFIG, settings)
        flat = settings["model"] | settings["train"]
        metrics = Metrics(accelerator, out_dir, state.step, flat, newest, write=not again)
    parts = Parts(
        accelerator=accelerator,
        device=device,
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
        tally=Tally(device, state),
        sharded=accelerator.distributed_type == DistributedType.FSDP,
        compiled=compiled,
        peak_flops=peak_flops(environment["device"]),
        make_model=make_model,
        recipe=recipe or (GPTConfig(), TrainConfig()),
    )
    console.introduce(config, parts, state)
    return config, parts, state
