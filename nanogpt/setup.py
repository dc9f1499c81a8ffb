"""Everything a run needs before its first step: the launcher's device, the data, the model, the files it writes."""

import dataclasses
import os
import zlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from pathlib import Path

import torch
from accelerate.utils import DistributedType
from tqdm import tqdm

from nanogpt import checkpoint, optim
from nanogpt.config import TrainConfig
from nanogpt.data.meta import read_meta
from nanogpt.data.mixture import open_data, read_shares
from nanogpt.data.tokenizer import load_tokenizer
from nanogpt.hub.export import check_publishing
from nanogpt.hub.load import check_tokenizer, load_for_training, make_room
from nanogpt.model import GPT, GPTConfig
from nanogpt.ops import ops_for, sharded
from nanogpt.run import console, guard, resume, rundir
from nanogpt.run.agree import Peers
from nanogpt.run.device import Clock, busy, compile_blocks, make_accelerator, set_up, share_batches, unused_gpu
from nanogpt.run.errors import visible, waiting
from nanogpt.run.metrics import Metrics
from nanogpt.run.saver import Saver
from nanogpt.run.stop import Interrupts


class Setup:
    """Makes and checks what `train.Run` trains with."""

    def __init__(
        self,
        model_config: GPTConfig,
        config: TrainConfig,
        prepare: Callable[[Path], object] | None = None,
        note: str = "",
        quiet: bool = False,
        make_model: Callable[[GPTConfig], GPT] = GPT,
        make_optimizers: Callable[..., list[torch.optim.Optimizer]] = optim.make_optimizers,
        recipe: tuple[GPTConfig, TrainConfig] | None = None,
        command: list[str] | None = None,
        given: Iterable[str] = (),
    ):
        """Arguments are those of `train.main`; `recipe` are the settings before the flags, `command` the recipe and its
        flags, if a command started the run; `given` are the names of settings that have a flag there; `quiet` prints
        nothing, for a run that will not train.

        Raises ValueError or OSError if the settings, the data, or the contents of out_dir do not allow the run.
        """
        asked, config = config, share_batches(config, int(os.environ.get("WORLD_SIZE", 1)))
        self.config, self.out_dir, self.quiet = config, Path(config.out_dir), quiet
        self.make_model, self.make_optimizers = make_model, make_optimizers
        self.recipe = recipe or (GPTConfig(), TrainConfig())
        self.accelerator = make_accelerator(config)
        self.device, self.main_process = self.accelerator.device, self.accelerator.is_main_process
        self.sharded = self.accelerator.distributed_type == DistributedType.FSDP
        self.peers = Peers(self.accelerator, config.timeout)
        self.interrupts = Interrupts(self.peers, config.max_minutes, config.max_failed_saves)
        self.saver = Saver(self.say)
        self.settings = {"environment": set_up(config, self.accelerator)}
        env = self.settings["environment"]
        remarks = unused_gpu(self.device), busy(self.device, env["threads"], env["processes"])
        for line in filter(None, (note, *remarks, console.shared_batches(asked, config))):
            self.say(line)

        with self.peers.in_agreement(main_first=True):
            start = resume.find_start(config, self.say)
        resume.check_agreement(start, self.out_dir, self.peers)
        pretrained, their_tokenizer = self.load_pretrained(start, model_config, given)
        model_config = pretrained.config if pretrained else model_config
        with self.peers.in_agreement():
            if self.main_process:
                check_publishing(model_config, config.exportable, config.push_to_hub, self.say)
        model_config = self.open_data(prepare, model_config, pretrained)
        if their_tokenizer is not None:
            model = f"init_from={config.init_from}"
            check_tokenizer(their_tokenizer, self.tokenizer, self.val_data.tokens, config.data, model)
        if model_config.vocab_size is None:
            model_config = dataclasses.replace(model_config, vocab_size=self.train_data.meta["vocab_size"])
        self.settings |= {"model": dataclasses.asdict(model_config), "train": dataclasses.asdict(config)}
        self.settings |= {"data": self.train_data.meta["splits"], "command": command}
        if start:
            same_text = resume.compare(start, model_config, config, self.settings, self.say)

        self.prepare_model(pretrained, model_config)
        self.state = dict(checkpoint.START)
        if start:
            self.restore(start, same_text)
        self.start_step = self.state["step"]
        self.clock = Clock(self.device, self.state)
        self.tokens_per_step = config.gradient_accumulation_steps * config.batch_size * model_config.block_size
        self.open_files()

    def restore(self, start: Path, same_text: bool) -> None:
        """Continues from a checkpoint; losses on another validation text are not compared with earlier ones."""
        checkpoint.restore(start, self.gpt, self.optimizers)
        self.state = checkpoint.read_state(start)
        if not same_text and not self.done():
            self.say("note: the validation text is another one, so the best loss counts anew")
            self.state |= {"best_val_loss": None, "best_step": None, "evaluated_step": None}
        guard.restore_scale(self.accelerator.scaler, self.state)

    def load_pretrained(self, start: Path | None, model_config: GPTConfig, given: Iterable[str]) -> tuple:
        """The model that `init_from` names and its tokenizer; (None, None) for a model from scratch."""
        if self.config.init_from == "scratch":
            return None, None
        if self.make_model is not GPT:
            raise ValueError(f"init_from={self.config.init_from} loads a GPT: it cannot be combined with make_model")
        with self.peers.in_agreement(main_first=True):  # one process downloads
            return load_for_training(start or self.config.init_from, model_config, self.say, given)

    def open_data(self, prepare: Callable[[Path], object] | None, model_config: GPTConfig, pretrained) -> GPTConfig:
        """Opens both splits and their tokenizer. The main process prepares the data first if there is none.

        Returns the model's configuration, which conversations may give a larger vocabulary.
        """
        data, directory = self.config.data, Path(self.config.data)
        with self.peers.in_agreement(main_first=True):
            nothing = not any((directory / name).exists() for name in ("train.bin", "val.bin", "meta.json"))
            if prepare is not None and nothing:
                with waiting(f"preparing {directory}", self.say):
                    prepare(directory)
            first = next(iter(read_shares(data)))  # all parts of a mixture have the same tokenizer
            if pretrained is not None:
                make_room(pretrained, read_meta(first), self.config)
                model_config = pretrained.config
            T, short = model_config.block_size, self.config.short_block_size
            if self.config.short_block_iters and T % short:
                divisor = max(d for d in range(1, min(short, T) + 1) if T % d == 0)
                raise ValueError(f"short_block_size={short} does not divide block_size={T}: choose {divisor}")
            self.train_data = open_data(data, "train", model_config.block_size, model_config.vocab_size)
            self.val_data = open_data(data, "val", model_config.block_size, model_config.vocab_size)
            self.tokenizer = load_tokenizer(first)
        counts = zlib.crc32(repr(self.train_data.meta["splits"]).encode())
        largest, smallest = self.peers.largest(counts, -counts)
        if largest != -smallest:
            raise ValueError(f"the processes find different tokens in {data}: all machines must see the same data")
        return model_config

    def prepare_model(self, pretrained: GPT | None, model_config: GPTConfig) -> None:
        """Makes the model and its optimizers, on the device, compiled, copied or sharded as the launcher asks."""
        config = self.config
        if pretrained is None:
            training = self.device.type == "cpu" and config.max_iters > 0 and not self.quiet
            with self.peers.in_agreement():  # one machine may have less memory than another
                guard.check_room(model_config, config, training)
        torch.manual_seed(config.seed)
        self.gpt = (pretrained or self.make_model(model_config)).to(self.device)
        self.gpt.use(ops_for(self.device, model_config, config.batch_size * model_config.block_size))
        self.compiled = config.compile == "true" or (config.compile == "auto" and self.device.type == "cuda")
        if self.compiled:
            compile_blocks(self.gpt)
        sharded.configure(self.accelerator, self.gpt)
        muon_dtype = torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else torch.float32
        optimizers = self.make_optimizers(self.gpt, config, muon_dtype)
        self.model, *wrapped = self.accelerator.prepare(self.gpt, *optimizers)
        # Only prepare needs Accelerate's wrappers. Their step() would update the gradient scaler of fp16 once for each
        # optimizer, and so unscale the gradients of the second one twice.
        self.optimizers = [wrapper.optimizer for wrapper in wrapped]
        for muon in (optimizer for optimizer in self.optimizers if isinstance(optimizer, optim.Muon)):
            muon.copies = self.accelerator.num_processes  # a sharded one knows by its parameters

    def open_files(self) -> None:
        """Writes config.json, opens the files of metrics, and says what is about to happen.

        A run that only evaluates a checkpoint again leaves its settings and its curve as they are.
        """
        newest = max(map(checkpoint.number, checkpoint.steps(self.out_dir)), default=-1)
        evaluated = self.state["evaluated_step"] == self.start_step
        again = newest >= 0 and evaluated and self.done()
        with self.peers.in_agreement():
            if self.main_process:
                self.out_dir.mkdir(parents=True, exist_ok=True)
                rundir.claim(self.out_dir)
                (self.out_dir / console.RESULT).unlink(missing_ok=True)  # of an earlier life
                if not again:
                    checkpoint.write_json(self.out_dir / checkpoint.CONFIG, self.settings)
            flat = self.settings["model"] | self.settings["train"]
            where = self.accelerator, self.out_dir, self.start_step, flat, self.say
            self.metrics = Metrics(*where, evaluated, newest, write=not again)
        console.introduce(self)

    def autocast(self):
        """Mixed precision around a sharded model; Accelerate has wrapped any other model in it."""
        return self.accelerator.autocast() if self.sharded else nullcontext()

    def done(self) -> bool:
        """Whether the run has taken all its steps, or its minutes; the same on all processes."""
        config, state = self.config, self.state
        if config.train_minutes and config.max_iters:
            return state["train_seconds"] >= 60 * config.train_minutes
        return state["step"] >= config.max_iters

    def pause(self) -> None:
        """Stops the clock. Where the learning rate goes by it, all processes take the time of the slowest."""
        self.clock.pause()
        if self.config.train_minutes:
            self.state["train_seconds"] = self.peers.largest(round(1e6 * self.state["train_seconds"]))[0] / 1e6

    def progress(self) -> dict:
        """Where the run stands, the same for every line of metrics."""
        state = self.state
        return {"step": state["step"], "tokens": state["tokens"], "train_seconds": round(state["train_seconds"], 3)}

    def add_up(self, total: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes."""
        return self.accelerator.reduce(total.to(self.device)) if self.accelerator.num_processes > 1 else total

    def say(self, text: str) -> None:
        """Prints on the main process, above the progress bar. Ignores a closed stdout."""
        if self.main_process and not self.quiet:
            with suppress(OSError):
                tqdm.write(visible(text))
