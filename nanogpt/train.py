"""Training: one loop for a CPU, a GPU or many of them.

A recipe calls `main(MODEL, TRAIN, prepare=…)`. What a step computes depends on the settings and the step alone: its
batches, its dropout and its learning rate are pure functions of them. So a run that is interrupted and resumed is
the run that was never interrupted, and k processes train what one trains with k times the accumulation.
"""

import dataclasses
import shlex
import signal
import sys
import time
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from nanogpt import checkpoint, convert, hf, hub, launch, plot, tokenizer, tracking
from nanogpt.config import TrainConfig, fail, parse, user_errors
from nanogpt.data import Batch, TokenDataset, mix
from nanogpt.evaluate import evaluate
from nanogpt.generate import pack, write, write_amid_training
from nanogpt.model import GPT, GPTConfig
from nanogpt.optim import UpdateRatio, lr_at, make_optimizers, set_learning_rate

# what may differ from a checkpoint's settings without changing what the next step computes
HARMLESS = set(
    "out_dir data resume max_iters lr_decay_iters eval_interval eval_iters log_interval always_save_checkpoint "
    "keep_checkpoints report_to max_bad_steps device compile threads profile init_from exportable push_to_hub "
    "sample_tokens".split()
)


def main(model: GPTConfig, config: TrainConfig, prepare=None, note: str = "", argv: list[str] | None = None) -> None:
    """Runs a recipe: the command line over its settings, the data prepared if there is none, then training.

    `prepare(directory)` makes the recipe's own data; it is called where there is none yet, on the main process alone.
    `note` is printed at the start, for what the recipe decided by itself. A mistake of the user is one line and exit
    code 2.
    """
    description = sys.modules["__main__"].__doc__ or ""
    with user_errors():
        recipes_data = config.data
        model, config = parse(model, config, sys.argv[1:] if argv is None else argv, description)
        run = Run(model, config, prepare if config.data == recipes_data else None, note)
    run.train()


class Run:
    """A run: made and checked by the constructor, trained by `train`."""

    def __init__(self, model_config: GPTConfig, config: TrainConfig, prepare=None, note: str = "", quiet: bool = False):
        """Raises ValueError or OSError where the settings, the data, or what is in out_dir do not allow the run."""
        self.config, self.out_dir, self.quiet = config, Path(config.out_dir), quiet
        self.accelerator = launch.make_accelerator(config)
        self.device = self.accelerator.device
        threads = launch.set_threads(config.threads, self.accelerator.num_processes)
        if self.device.type == "cpu":
            launch.keep_freed_memory()
        if note:
            self.say(note)
        start = self.find_start()
        pretrained, words = None, None
        if config.init_from != "scratch":
            pretrained, words = self.load_pretrained(model_config, start)
            model_config = pretrained.config
        self.check_publishing(model_config)
        self.prepare_data(prepare)
        self.train_data = TokenDataset(config.data, "train", model_config.block_size, model_config.vocab_size)
        self.val_data = TokenDataset(config.data, "val", model_config.block_size, model_config.vocab_size)
        self.tokenizer = tokenizer.load(config.data)
        if words is not None:
            self.check_tokenizer(words)
        if model_config.vocab_size is None:
            model_config = dataclasses.replace(model_config, vocab_size=self.train_data.meta["vocab_size"])
        if start:
            self.check_settings(start, model_config)

        torch.manual_seed(config.seed)
        # products that stay in fp32 on CUDA use TF32, as in nanoGPT
        torch.set_float32_matmul_precision("high" if self.device.type == "cuda" else "highest")
        self.gpt = (pretrained or GPT(model_config)).to(self.device)
        self.compiled = config.compile == "true" or (config.compile == "auto" and self.device.type == "cuda")
        if self.compiled:
            self.gpt.compile()  # in place and before prepare: parameters keep their names; happens at the first forward
        muon_dtype = torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else torch.float32
        optimizers = make_optimizers(self.gpt, config, muon_dtype)
        self.model, *self.optimizers = self.accelerator.prepare(self.gpt, *optimizers)
        self.state = {"step": 0, "tokens": 0, "train_seconds": 0.0, "skipped_steps": 0}
        self.state |= {"evaluated_step": None, "best_val_loss": None, "best_step": None}
        if start:
            checkpoint.restore(start, self.gpt, [optimizer.optimizer for optimizer in self.optimizers])
            saved = checkpoint.read_json(start / checkpoint.STATE)
            self.state = {key: saved[key] for key in self.state}
        self.start_step = self.state["step"]
        self.tokens_per_step = config.gradient_accumulation_steps * config.batch_size * model_config.block_size

        self.settings = {"model": dataclasses.asdict(model_config), "train": dataclasses.asdict(config)}
        self.settings["environment"] = launch.environment(self.accelerator, threads)
        if self.accelerator.is_main_process:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            checkpoint.write_json(self.out_dir / checkpoint.CONFIG, self.settings)
        flat = self.settings["model"] | self.settings["train"]
        self.metrics = tracking.Metrics(self.accelerator, self.out_dir, self.start_step, flat, self.say)
        self.introduce()

    def train(self) -> None:
        """The loop: evaluate and save where it is due, step, log; until max_iters or a signal."""
        config, state = self.config, self.state
        self.begin()
        self.start_clock()
        with StopSignal() as stop, self.profiler() as profiler:
            while True:
                done = state["step"] >= config.max_iters
                due = done or state["step"] % config.eval_interval == 0
                if due and (state["evaluated_step"] != state["step"] or config.max_iters == 0):
                    self.pause_clock()
                    self.evaluate_and_save()
                    self.start_clock()
                if done:
                    break
                self.step()
                if profiler:
                    profiler.step()
                if self.log_due:
                    self.log()
                if stop.received(self.accelerator):
                    self.leave(stop.number)
        self.bar.close()
        self.metrics.close()
        self.stop_if_unsaved()
        self.conclude()

    def begin(self) -> None:
        """What the first step finds: sums at zero, the model in training mode and compiled."""
        self.loss_sum, self.skipped, self.bad_in_a_row = torch.zeros(3, device=self.device)  # on the device
        self.update_ratio = UpdateRatio(self.gpt)
        self.logged = dict(self.state)  # as it was at the last line of metrics
        self.unsaved: str | None = None  # what went wrong with the last checkpoint
        self.gpt.train()
        if self.compiled:
            self.compile()
        shown = self.accelerator.is_main_process and sys.stderr.isatty() and not self.quiet
        bar = {"total": self.config.max_iters, "initial": self.state["step"], "unit": "step", "dynamic_ncols": True}
        self.bar = tqdm(**bar, leave=False, disable=not shown)

    def step(self) -> None:
        """One optimizer step: this process's share of the micro-batches, the clipped gradient, the update."""
        config, state, accelerator = self.config, self.state, self.accelerator
        set_learning_rate(self.optimizers, lr_at(state["step"], config))
        accumulation = config.gradient_accumulation_steps // accelerator.num_processes
        step_loss = torch.zeros((), device=self.device)
        for i in range(accumulation):
            x, y = self.micro_batch(i * accelerator.num_processes + accelerator.process_index)
            with accelerator.accumulate(self.model):
                loss = self.model(x, y)
                accelerator.backward(loss)
            step_loss += loss.detach() / accumulation
        self.grad_norm = accelerator.clip_grad_norm_(self.model.parameters(), config.grad_clip or torch.inf)

        # A gradient that is not finite must not reach the weights. The flag stays on the device, where the fused
        # optimizers heed it, so nothing waits; with fp16 the gradient scaler does this by itself.
        found_inf = (~self.grad_norm.isfinite()).float()
        self.log_due = (state["step"] + 1) % config.log_interval == 0 or state["step"] + 1 == config.max_iters
        if self.log_due:
            self.update_ratio.before()
        for optimizer in self.optimizers:
            if accelerator.scaler is None:
                optimizer.optimizer.found_inf = found_inf
            optimizer.step()
            optimizer.zero_grad()
        if self.log_due:
            self.moved = self.update_ratio.after()
        self.loss_sum += torch.where(found_inf > 0, 0.0, step_loss)
        self.skipped += found_inf
        self.bad_in_a_row = (self.bad_in_a_row + 1) * found_inf
        state["step"] += 1
        state["tokens"] += self.tokens_per_step
        self.bar.update()

    def micro_batch(self, index: int) -> Batch:
        """Micro-batch `index` of the current step, on the device; its dropout is seeded from it as well."""
        step, config = self.state["step"], self.config
        number = step * config.gradient_accumulation_steps + index
        x, y = self.train_data.batch(config.seed, number * config.batch_size, config.batch_size)
        seed = int(mix(mix(np.array([config.seed], np.uint64)) ^ np.uint64(number))[0])
        torch.default_generator.manual_seed(seed)  # torch.manual_seed looks for all kinds of devices: 0.2 ms
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
            x, y = x.pin_memory(), y.pin_memory()
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def compile(self) -> None:
        """Compiles by a forward and backward pass that changes nothing; where that fails, the run goes on eagerly."""
        try:
            self.model(*self.micro_batch(0)).backward()
        except Exception as error:  # whatever the compiler trips over, the model also runs without it
            self.say(f"warning: torch.compile failed, going on without it: {str(error).splitlines()[0]}")
            self.gpt._compiled_call_impl = None  # what nn.Module.compile() sets
            self.compiled = False
        self.gpt.zero_grad()

    def profiler(self):
        """With `--profile N` traces N steps, after two to warm up, into a file that https://ui.perfetto.dev shows."""
        n, path = self.config.profile, self.out_dir / "trace.json"
        if not n or not self.accelerator.is_main_process:
            return nullcontext()

        def write(profile) -> None:
            profile.export_chrome_trace(str(path))
            self.say(f"trace of {n} steps: {path}, to be opened at https://ui.perfetto.dev")

        schedule = torch.profiler.schedule(skip_first=1, wait=0, warmup=1, active=n, repeat=1)
        return torch.profiler.profile(schedule=schedule, on_trace_ready=write)

    def log(self) -> None:
        """A line of metrics for the steps since the last one. Only here does the loop wait for the device."""
        state, config = self.state, self.config
        self.pause_clock()
        steps, skipped = state["step"] - self.logged["step"], int(self.skipped)
        state["skipped_steps"] += skipped
        seconds = state["train_seconds"] - self.logged["train_seconds"]
        values = {"tokens_per_second": round(steps * self.tokens_per_step / seconds)}
        if peak := launch.peak_flops(self.settings["environment"]["device"]):
            flops = values["tokens_per_second"] * self.gpt.flops_per_token()
            values["mfu"] = flops / peak / self.accelerator.num_processes
        if steps > skipped:
            values["train_loss"] = self.accelerator.reduce(self.loss_sum, "mean").item() / (steps - skipped)
        if self.grad_norm.isfinite():
            values["grad_norm"], values["update_ratio"] = self.grad_norm.item(), self.moved.item()
        values["lr"] = lr_at(state["step"] - 1, config)
        values["memory"] = launch.memory(self.device)
        self.metrics.log(**self.progress(), **values, skipped_steps=state["skipped_steps"])
        loss = f"loss {values['train_loss']:.3f}" if "train_loss" in values else "no finite gradient"
        mfu = f", MFU {values['mfu']:.1%}" if "mfu" in values else ""
        self.bar.set_postfix_str(f"{loss}, {values['tokens_per_second']:,} tokens/s{mfu}", refresh=False)
        if self.bad_in_a_row >= config.max_bad_steps and self.accelerator.scaler is None:
            self.give_up(values["lr"])
        self.loss_sum.zero_()
        self.skipped.zero_()
        self.logged = dict(state)
        self.start_clock()

    def progress(self) -> dict:
        """Where the run stands, the same for every line of metrics."""
        state = self.state
        return {"step": state["step"], "tokens": state["tokens"], "train_seconds": round(state["train_seconds"], 3)}

    # What happens between the steps

    def evaluate_and_save(self) -> None:
        """Evaluates, and saves where the settings ask for it. The last evaluation is over the whole split."""
        config, state, accelerator = self.config, self.state, self.accelerator
        last, again = state["step"] >= config.max_iters, state["evaluated_step"] == state["step"]
        state["evaluated_step"] = state["step"]
        result = evaluate(
            self.gpt,
            self.val_data,
            config.batch_size,
            self.device,
            eval_iters=0 if last else config.eval_iters,
            seed=config.seed + state["step"],
            process=accelerator.process_index,
            processes=accelerator.num_processes,
            reduce=self.add_up,
        )
        best = state["best_val_loss"] is None or result["val_loss"] < state["best_val_loss"]
        if best:
            state["best_val_loss"], state["best_step"] = result["val_loss"], state["step"]
        self.metrics.log(**self.progress(), **result)
        self.say(
            f"step {state['step']:>6,}  validation loss {result['val_loss']:.4f} "
            f"({result['val_bpb']:.3f} bits per byte) after {state['train_seconds']:.1f} s of training"
        )
        if config.sample_tokens and not again:
            first = self.train_data.tokens[:1]  # the data's own beginning
            text = write_amid_training(self.gpt, self.tokenizer, first, config.sample_tokens, config.seed)
            self.metrics.sample(text, lambda: plot.pixels(self.out_dir), **self.progress())
        if state["step"] > 0 and not again and (config.always_save_checkpoint or best or last):
            self.save(best)

    def add_up(self, total: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes."""
        return self.accelerator.reduce(total.to(self.device)) if self.accelerator.num_processes > 1 else total

    def save(self, best: bool = False) -> None:
        """Saves a checkpoint of the current step; the main process writes what all put together."""
        collected = checkpoint.collect(self.gpt, [optimizer.optimizer for optimizer in self.optimizers])
        if self.accelerator.is_main_process:
            try:
                keep = self.config.keep_checkpoints
                checkpoint.save(self.out_dir, self.state, *collected, self.settings, self.tokenizer, keep, best)
                self.unsaved = None
            except OSError as error:
                self.unsaved = f"step {self.state['step']} could not be saved: {error}"
                self.say(f"warning: {self.unsaved}; earlier checkpoints are untouched, and training goes on")
        self.accelerator.wait_for_everyone()

    def leave(self, number: int) -> None:
        """Ends the run on a signal: saves, says how to go on, exits with 128 + the signal's number."""
        self.pause_clock()
        self.bar.close()
        self.save()
        self.metrics.close()
        self.stop_if_unsaved()
        command = shlex.join(a for a in sys.argv if not a.startswith("--resume"))
        self.say(f"stopped: step {self.state['step']} is saved; to go on: accelerate launch {command} --resume=auto")
        sys.exit(128 + number)

    def give_up(self, lr: float) -> None:
        """Ends a run whose gradient is no longer finite; its weights never saw one of those gradients."""
        self.bar.close()
        self.metrics.close()
        fail(
            f"no finite gradient in the last {int(self.bad_in_a_row)} steps up to step {self.state['step']}, at "
            f"learning rate {lr:.2e}: none of them was applied. Look at grad_norm in {self.out_dir / 'metrics.jsonl'}; "
            "go on from the last checkpoint by --resume=auto with a lower --learning_rate or --precision=fp32",
            code=1,
        )

    def stop_if_unsaved(self) -> None:
        """At the end of a run: exit code 1 if the last checkpoint did not reach the disk."""
        if self.unsaved:
            fail(self.unsaved, code=1)

    def conclude(self) -> None:
        """The result, a sample, and what to do next."""
        state, recipe = self.state, sys.argv[0]
        if not self.accelerator.is_main_process or state["step"] == 0:
            return
        best = f"best validation loss {state['best_val_loss']:.4f} at step {state['best_step']}"
        speed = f"{state['tokens'] / max(state['train_seconds'], 1e-9):,.0f} tokens/s"
        self.say(f"\n{state['step']:,} steps in {state['train_seconds']:.1f} s of training, {speed}; {best}\n")
        if sys.stdout.isatty():
            self.say(plot.text(self.out_dir) + "\n")
        self.say(self.sample() + "\n")
        if self.config.push_to_hub:
            try:
                hf.push(self.out_dir, self.config.push_to_hub, say=self.say)
            except (ValueError, OSError) as error:  # the run itself is safe on the disk
                self.say(f"warning: not pushed: {error}; later: nanogpt push {self.out_dir} {self.config.push_to_hub}")
        self.say(
            f'next:  nanogpt sample {self.out_dir} --prompt "ROMEO:"\n'
            f"       nanogpt eval {self.out_dir}\n"
            f"       accelerate launch {recipe} --resume=auto --out_dir={self.out_dir} --max_iters={2 * state['step']}"
        )

    def sample(self, characters: int = 300) -> str:
        """A text by the run's best checkpoint, which is read back from the disk as everybody else will read it."""
        model = pack(checkpoint.load_model(checkpoint.find(self.out_dir, say=self.say), self.device))
        pieces = write(model, self.tokenizer, self.train_data.tokens[:1], characters, self.config.seed)
        return "".join(islice(pieces, characters))

    # Before the first step

    def find_start(self) -> Path | None:
        """The checkpoint to go on from, if any. Raises ValueError if this run would overwrite another in out_dir."""
        wish, there = self.config.resume, checkpoint.steps(self.out_dir)
        if wish == "auto" and not there:
            return None
        if wish in ("auto", "last", "best"):
            return checkpoint.find(self.out_dir, ("best",) if wish == "best" else ("last",), self.say)
        start = None if wish == "none" else checkpoint.find(wish, ("last",), self.say)
        if there and (start is None or start.parent != self.out_dir.resolve()):
            free = next(n for n in range(2, 10**6) if not Path(f"{self.out_dir}-{n}").exists())
            raise ValueError(
                f"{self.out_dir} already holds a run ({there[-1].name}): go on with it by --resume=auto, "
                f"or write another one by --out_dir={self.out_dir}-{free}"
            )
        return start

    def prepare_data(self, prepare) -> None:
        """Lets the main process make the data where there is none; the others wait for it."""
        directory = Path(self.config.data)
        with self.accelerator.main_process_first():
            nothing = not any((directory / name).exists() for name in ("train.bin", "val.bin", "meta.json"))
            if prepare is not None and nothing:
                prepare(directory)

    def load_pretrained(self, wanted: GPTConfig, start: Path | None) -> tuple:
        """The model to fine-tune and its tokenizer; of the recipe's model settings, these count: see `kept`."""
        kept = {"dropout": wanted.dropout, "gradient_checkpointing": wanted.gradient_checkpointing}
        with self.accelerator.main_process_first():  # one of them fetches what may have to be fetched
            model, words, _ = hf.load(start or self.config.init_from, say=self.say, **kept)
        model.crop_block_size(model.config.block_size if start else wanted.block_size)
        return model, words

    def check_tokenizer(self, words) -> None:
        """Raises ValueError if the data's tokens are not those that the model to fine-tune has learnt."""
        text = self.tokenizer.decode(self.val_data.tokens[:1000])
        try:
            same = np.array_equal(self.tokenizer.encode(text), words.encode(text))
        except ValueError:  # a character that it does not know
            same = False
        if not same:
            raise ValueError(
                f"{self.config.data} is tokenized by {self.tokenizer.name!r}, which is not the tokenizer of "
                f"init_from={self.config.init_from}: prepare the data with that model's tokenizer"
            )

    def check_publishing(self, model_config: GPTConfig) -> None:
        """What would be a pity to learn after the training: whether transformers and the Hub will take the model."""
        config = self.config
        try:
            convert.native_type(model_config)
        except ValueError as error:
            if config.exportable or config.push_to_hub:
                raise ValueError(f"transformers has no class for this model: {error}") from None
            self.say(
                f"warning: transformers has no class for this model, so it can be trained but not exported: {error}"
            )
        if config.push_to_hub and self.accelerator.is_main_process:
            hub.check_write(config.push_to_hub)

    def check_settings(self, start: Path, model_config: GPTConfig) -> None:
        """Compares with the checkpoint's settings: another model is refused, other changes that matter are named."""
        model, train = checkpoint.load_configs(start)
        changed = []
        for old, new in ((model, model_config), (train, self.config)):
            for name in (field.name for field in dataclasses.fields(old)):
                a, b = getattr(old, name), getattr(new, name)
                if a != b and old is model and name not in ("dropout", "gradient_checkpointing"):
                    raise ValueError(
                        f"{start} was trained with {name}={a}, not {b}: resume with --{name}={a}, "
                        "or train the new model into another --out_dir"
                    )
                if a != b and name not in HARMLESS:
                    changed.append(f"{name} {a} -> {b}")
        decay = [c.lr_decay_iters or (c.max_iters if c.lr_schedule != "constant" else 0) for c in (train, self.config)]
        if decay[0] != decay[1]:
            changed.append(f"the learning rate decays over {decay[1]} steps, not {decay[0]}")
        if changed:
            self.say(f"note: this goes on with other settings than the run was started with: {'; '.join(changed)}")

    def introduce(self) -> None:
        """A few lines that say what is about to happen."""
        m, c, env = GPTConfig(**self.settings["model"]), self.config, self.settings["environment"]
        epochs = c.max_iters * self.tokens_per_step / len(self.train_data.tokens)
        many = f"{env['processes']} processes" if env["processes"] > 1 else "1 process"
        heads = f"{m.n_head} heads" + (f" ({m.kv_heads} for keys and values)" if m.kv_heads != m.n_head else "")
        self.say(
            f"device  {env['device']}, {many} with {env['threads']} threads, {env['precision']}, "
            f"{'compiled' if self.compiled else 'not compiled'}\n"
            f"model   {self.gpt.get_num_params():,} parameters: {m.n_layer} layers, {heads}, {m.n_embd} channels; "
            f"{m.norm}, {m.position} positions, {m.mlp}\n"
            f"data    {c.data}: {len(self.train_data.tokens):,} tokens to train on, {len(self.val_data.tokens):,} to "
            f"validate, vocabulary {m.vocab_size:,}\n"
            f"steps   {c.max_iters:,} of {self.tokens_per_step:,} tokens ({c.gradient_accumulation_steps} x "
            f"{c.batch_size} sequences of {m.block_size}), {epochs:.2f} epochs, optimizer {c.optimizer}\n"
            f"output  {self.out_dir}" + (f", going on from step {self.start_step:,}" if self.start_step else "")
        )

    def say(self, text: str) -> None:
        """Prints on the main process, above the progress bar."""
        if self.accelerator.is_main_process and not self.quiet:
            tqdm.write(text)

    # The clock runs while training: not while evaluating, saving or compiling

    def start_clock(self) -> None:
        self.clock = time.perf_counter()

    def pause_clock(self) -> None:
        self.wait_for_device()
        self.state["train_seconds"] += time.perf_counter() - self.clock

    def wait_for_device(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        elif self.device.type == "mps":
            torch.mps.synchronize()


class StopSignal:
    """Remembers SIGINT and SIGTERM, so that the step can be finished; a second one ends the process at once."""

    def __enter__(self):
        self.number = 0
        self.before = {number: signal.signal(number, self.remember) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def remember(self, number: int, frame) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)

    def received(self, accelerator) -> bool:
        """Whether any process got a signal; all processes learn it after the same step."""
        if accelerator.num_processes > 1:
            number = torch.tensor(self.number, device=accelerator.device)
            self.number = int(accelerator.reduce(number, "sum"))
        return self.number > 0
