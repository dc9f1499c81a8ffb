"""Training: one loop for a CPU, a GPU or many of them.

A recipe calls `main(MODEL, TRAIN, prepare=…)`. What a step computes depends on the settings and the step alone: its
batches, its dropout and its learning rate are pure functions of them. So a run that is interrupted and resumed is
the run that was never interrupted, and k processes train what one trains with k times the accumulation.
"""

import dataclasses
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from accelerate.utils import DistributedType
from tqdm import tqdm

from nanogpt import checkpoint, console, metrics, plan, resume, rundir
from nanogpt.config import TrainConfig, fail, parse, user_errors
from nanogpt.data.mixture import open_data, read_shares
from nanogpt.data.tokenizer import load_tokenizer
from nanogpt.data.tokens import Batch, mix
from nanogpt.evaluate import evaluate
from nanogpt.generate import write_amid_training
from nanogpt.hub.export import check_publishing
from nanogpt.hub.load import check_tokenizer, load_for_training
from nanogpt.model import GPT, GPTConfig
from nanogpt.optim import UpdateRatio, lr_at, make_optimizers, set_learning_rate
from nanogpt.runtime import guard
from nanogpt.runtime.device import environment_of, free_memory, make_accelerator, memory_in_use, peak_flops, set_up
from nanogpt.runtime.processes import Peers
from nanogpt.runtime.saver import Saver
from nanogpt.runtime.signals import Interrupted, Interrupts
from nanogpt.view import plot
from nanogpt.view.compare import compare


def main(model: GPTConfig, config: TrainConfig, prepare=None, note: str = "", argv: list[str] | None = None) -> None:
    """Runs a recipe: the command line over its settings, the data prepared if there is none, then training.

    `prepare(directory)` makes the recipe's own data; it is called where there is none yet, on the main process alone.
    `note` is printed at the start, for what the recipe decided by itself. A mistake of the user is one line and exit
    code 2.
    """
    description = sys.modules["__main__"].__doc__ or ""
    try:
        with user_errors():
            recipes_data = config.data
            model, config = parse(model, config, sys.argv[1:] if argv is None else argv, description)
            prepare = prepare if config.data == recipes_data else None
            if config.dry_run or config.find_batch_size:
                with TemporaryDirectory() as nowhere:  # nothing is left of it
                    alone = {"out_dir": nowhere, "resume": "none", "report_to": "none", "push_to_hub": None}
                    run = Run(model, dataclasses.replace(config, **alone), prepare, quiet=True)
                    plan.show(run) if config.dry_run else plan.find_batch_size(run)
                return
            seeds = range(config.seed, config.seed + config.seeds)
            names = [f"{config.out_dir}-seed{seed}" if config.seeds > 1 else config.out_dir for seed in seeds]
        for seed, name in zip(seeds, names, strict=True):
            with user_errors():
                run = Run(model, dataclasses.replace(config, seed=seed, out_dir=name), prepare, note)
            run.train()
        if config.seeds > 1:
            run.say(compare(names))
    except KeyboardInterrupt:  # before the loop or after it: there is nothing to save
        sys.exit(130)


class Run:
    """A run: made and checked by the constructor, trained by `train`."""

    def __init__(self, model_config: GPTConfig, config: TrainConfig, prepare=None, note: str = "", quiet: bool = False):
        """Raises ValueError or OSError where the settings, the data, or what is in out_dir do not allow the run."""
        self.config, self.out_dir, self.quiet = config, Path(config.out_dir), quiet
        self.accelerator = make_accelerator(config)
        self.device = self.accelerator.device
        self.peers = Peers(self.accelerator, config.timeout)
        self.interrupts = Interrupts(self.peers, config.max_minutes, config.max_failed_saves)
        self.saver = Saver(self.say)
        environment = environment_of(self.accelerator, set_up(config, self.accelerator))
        if note:
            self.say(note)

        with self.accelerator.main_process_first():
            start = resume.find_start(config, self.say)
        resume.check_agreement(start, self.out_dir, self.peers)
        pretrained, words = None, None
        if config.init_from != "scratch":
            with self.accelerator.main_process_first():  # one of them fetches what may have to be fetched
                pretrained, words = load_for_training(start or config.init_from, model_config, self.say)
            model_config = pretrained.config
        if self.accelerator.is_main_process:
            check_publishing(model_config, config.exportable, config.push_to_hub, self.say)

        self.load_data(prepare, model_config)
        if words is not None:
            check_tokenizer(words, self.tokenizer, self.val_data.tokens[:1000], config)
        if model_config.vocab_size is None:
            model_config = dataclasses.replace(model_config, vocab_size=self.train_data.meta["vocab_size"])
        data = self.train_data.meta["splits"]
        if start:
            resume.compare(start, model_config, config, data, environment, self.say)

        self.make_model(pretrained, model_config)
        self.state = dict(checkpoint.START)
        if start:
            checkpoint.restore(start, self.gpt, self.optimizers)
            self.state = checkpoint.read_state(start)
        self.start_step = self.state["step"]
        self.tokens_per_step = config.gradient_accumulation_steps * config.batch_size * model_config.block_size

        self.settings = {"model": dataclasses.asdict(model_config), "train": dataclasses.asdict(config)}
        self.settings |= {"data": data, "environment": environment}
        if self.accelerator.is_main_process:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            rundir.claim(self.out_dir)
            checkpoint.write_json(self.out_dir / checkpoint.CONFIG, self.settings)
        flat = self.settings["model"] | self.settings["train"]
        self.metrics = metrics.Metrics(self.accelerator, self.out_dir, self.start_step, flat, self.say)
        console.introduce(self)

    def load_data(self, prepare, model_config: GPTConfig) -> None:
        """Both splits and their tokenizer. Where there is no data yet, the main process makes it; the others wait."""
        config, directory = self.config, Path(self.config.data)
        with self.accelerator.main_process_first():
            nothing = not any((directory / name).exists() for name in ("train.bin", "val.bin", "meta.json"))
            if prepare is not None and nothing:
                prepare(directory)
        self.train_data = open_data(config.data, "train", model_config.block_size, model_config.vocab_size)
        self.val_data = open_data(config.data, "val", model_config.block_size, model_config.vocab_size)
        self.tokenizer = load_tokenizer(next(iter(read_shares(config.data))))  # of a mixture all have the same

    def make_model(self, pretrained: GPT | None, model_config: GPTConfig) -> None:
        """The model and its optimizers, on the device and as the launcher wants them: copied, sharded, compiled."""
        config = self.config
        torch.manual_seed(config.seed)
        self.gpt = (pretrained or GPT(model_config)).to(self.device)
        self.compiled = config.compile == "true" or (config.compile == "auto" and self.device.type == "cuda")
        if self.compiled:
            self.gpt.compile()  # in place and before prepare: parameters keep their names; happens at the first forward
        muon_dtype = torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else torch.float32
        self.model, *wrapped = self.accelerator.prepare(self.gpt, *make_optimizers(self.gpt, config, muon_dtype))
        # Only prepare needs Accelerate's wrappers. Their step() would update the gradient scaler of fp16 once for each
        # optimizer, and so unscale the gradients of the second one twice.
        self.optimizers = [wrapper.optimizer for wrapper in wrapped]

    def train(self) -> None:
        """The loop: evaluate and save where it is due, step, log; until max_iters or an interruption."""
        state = self.state
        with self.peers.watched(self.saver.wait), self.interrupts, self.profiler() as profiler:
            self.begin()
            config = self.config  # whose micro-batches may be smaller now
            self.interrupts.begin()
            self.start_clock()
            while True:
                done = state["step"] >= config.max_iters
                due = done or state["step"] % config.eval_interval == 0
                if due and (state["evaluated_step"] != state["step"] or config.max_iters == 0):
                    self.pause_clock()
                    try:
                        self.evaluate_and_save()
                    except Interrupted as interrupted:
                        self.start_clock()
                        self.leave(interrupted.number, saves_fail=False)
                    self.start_clock()
                if done:
                    break
                self.step()
                if profiler:
                    profiler.step()
                if self.log_due:
                    self.log()
                self.saver.check()
                number, time_is_up, saves_fail = self.interrupts.due(self.saver.seconds, self.saver.failed)
                if number or time_is_up or saves_fail:
                    self.leave(number, saves_fail)
            self.finish()
        if state["step"] > 0 and self.accelerator.is_main_process:
            console.conclude(self)

    def begin(self) -> None:
        """What the first step finds: sums at zero, the model in training mode, compiled, and fitting into memory."""
        self.loss_sum, self.skipped, self.bad_in_a_row, self.good_norm = torch.zeros(4, device=self.device)
        self.update_ratio = UpdateRatio(self.gpt)
        self.logged = dict(self.state)  # as it was at the last line of metrics
        self.gpt.train()
        if self.state["step"] < self.config.max_iters:
            guard.rehearse(self)
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
                loss = guard.contagious(self.model(x, y))
                accelerator.backward(loss)
            step_loss += loss.detach() / accumulation
        self.grad_norm = checkpoint.whole(
            accelerator.clip_grad_norm_(self.model.parameters(), config.grad_clip or torch.inf)
        )

        # A gradient that is not finite must not reach the weights. The flag stays on the device, where the fused
        # optimizers heed it, so nothing waits.
        found_inf = (~self.grad_norm.isfinite()).float()
        self.log_due = (state["step"] + 1) % config.log_interval == 0 or state["step"] + 1 == config.max_iters
        if self.log_due:
            self.update_ratio.before()
        for optimizer in self.optimizers:
            optimizer.found_inf = found_inf
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.scaler is not None:  # fp16: clip_grad_norm_ has unscaled the gradients
            accelerator.scaler.update()
        if self.log_due:
            self.moved = self.update_ratio.after()
        self.loss_sum += torch.where(found_inf > 0, 0.0, step_loss)
        self.skipped += found_inf
        self.bad_in_a_row = (self.bad_in_a_row + 1) * found_inf
        self.good_norm = torch.where(found_inf > 0, self.good_norm, self.grad_norm)
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
        if peak := peak_flops(self.settings["environment"]["device"]):
            flops = values["tokens_per_second"] * self.gpt.flops_per_token()
            values["mfu"] = flops / peak / self.accelerator.num_processes
        if steps > skipped:
            values["train_loss"] = self.accelerator.reduce(self.loss_sum, "mean").item() / (steps - skipped)
        if self.grad_norm.isfinite():
            values["grad_norm"], values["update_ratio"] = self.grad_norm.item(), self.moved.item()
        values["lr"] = lr_at(state["step"] - 1, config)
        values["memory"] = memory_in_use(self.device)
        self.metrics.log(**self.progress(), **values, skipped_steps=state["skipped_steps"])
        loss = f"loss {values['train_loss']:.3f}" if "train_loss" in values else "no finite gradient"
        mfu = f", MFU {values['mfu']:.1%}" if "mfu" in values else ""
        self.bar.set_postfix_str(f"{loss}, {values['tokens_per_second']:,} tokens/s{mfu}", refresh=False)
        if self.bad_in_a_row >= guard.bad_steps_allowed(config, self.accelerator.scaler):
            self.give_up(values["lr"])
        self.loss_sum.zero_()
        self.skipped.zero_()
        self.logged = dict(state)
        self.start_clock()

    def progress(self) -> dict:
        """Where the run stands, the same for every line of metrics."""
        state = self.state
        return {"step": state["step"], "tokens": state["tokens"], "train_seconds": round(state["train_seconds"], 3)}

    def evaluate_and_save(self) -> None:
        """Saves where the settings ask for it, then evaluates. The last evaluation is over the whole split."""
        config, state, accelerator = self.config, self.state, self.accelerator
        last, again = state["step"] >= config.max_iters, state["evaluated_step"] == state["step"]
        wanted = state["step"] > 0 and not again
        first = wanted and (config.always_save_checkpoint or last)
        if first:  # an evaluation that fails or is interrupted costs no checkpoint
            self.save()
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
            check=self.interrupts.check,
        )
        state["evaluated_step"] = state["step"]
        best = state["best_val_loss"] is None or result["val_loss"] < state["best_val_loss"]
        if best:
            state["best_val_loss"], state["best_step"] = result["val_loss"], state["step"]
        self.metrics.log(**self.progress(), **result)
        self.say(
            f"step {state['step']:>6,}  validation loss {result['val_loss']:.4f} "
            f"({result['val_bpb']:.3f} bits per byte) after {state['train_seconds']:.1f} s of training"
        )
        if first:
            self.add_evaluation(best)
        elif wanted and best:
            self.save(best)
        if config.sample_tokens and not again and self.accelerator.distributed_type != DistributedType.FSDP:
            start, check = self.train_data.tokens[:1], self.interrupts.check  # the data's own beginning
            text = write_amid_training(self.gpt, self.tokenizer, start, config.sample_tokens, config.seed, check)
            self.metrics.sample(text, lambda: plot.pixels(self.out_dir), **self.progress())

    def add_up(self, total: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes."""
        return self.accelerator.reduce(total.to(self.device)) if self.accelerator.num_processes > 1 else total

    def save(self, best: bool = False, background: bool = True) -> None:
        """Saves a checkpoint of the current step: all put it together, a thread of the main process writes it."""
        self.saver.wait()  # before memory is asked for: the copy of the save before it is gone then
        main = self.accelerator.is_main_process
        background = background and free_memory() > 2 * checkpoint.size(self.gpt, self.optimizers)
        try:
            collected = checkpoint.collect(self.gpt, self.optimizers, copy=background, keep=main)
        except MemoryError as error:  # never where the model is sharded: there the whole of it is a copy anyway
            self.say(f"warning: training waits for the checkpoint of step {self.state['step']}: {error}")
            background, collected = False, checkpoint.collect(self.gpt, self.optimizers)
        self.saver.step = self.state["step"]  # on the other processes too
        if main:
            state, settings, keep = dict(self.state), dict(self.settings), self.config.keep_checkpoints
            state["skipped_steps"] += int(self.skipped)  # since the last line of metrics

            def write():
                self.metrics.sync()
                checkpoint.save(self.out_dir, state, *collected, settings, self.tokenizer, keep, best)

            self.saver.save(state["step"], write, background)

    def add_evaluation(self, best: bool) -> None:
        """Has the evaluation of the current step written into its checkpoint, which may still be on its way."""
        if self.accelerator.is_main_process:
            state, keep = dict(self.state), self.config.keep_checkpoints

            def write():
                self.metrics.sync()
                checkpoint.add_evaluation(self.out_dir, state, keep, best)

            self.saver.add(write)

    def leave(self, number: int, saves_fail: bool) -> None:
        """Ends the run before its last step: by a signal (128 and its number is the exit code), or because its time is
        up (0), saves and says how to go on; where saving failed too often, only says so (1)."""
        self.pause_clock()
        if not saves_fail and self.saver.step != self.state["step"]:  # step 0 is not worth it
            self.save(background=False)
        self.finish()
        self.interrupts.ignore()
        why = self.interrupts.why(number) if number else f"stopped after {self.config.max_minutes:g} minutes"
        saved = f"step {self.state['step']} is saved" if self.saver.step else "nothing is saved before step 1"
        self.say(f"{why}: {saved}; to go on: {console.going_on(self)}")
        self.accelerator.wait_for_everyone()
        sys.exit(128 + number if number else 0)

    def give_up(self, lr: float) -> None:
        """Ends a run whose gradient is no longer finite; its weights never saw one of those gradients."""
        self.close()
        self.interrupts.ignore()
        self.accelerator.wait_for_everyone()
        bad, norm = int(self.bad_in_a_row), float(self.good_norm)
        fail(guard.diagnosis(bad, self.state["step"], lr, norm, self.config), code=1)

    def finish(self) -> None:
        """Waits until all is on the disk. Exit code 1, on all processes, if the last checkpoint did not get there."""
        self.close()
        if self.peers.largest(self.saver.unsaved is not None)[0]:
            self.interrupts.ignore()
            fail(self.saver.unsaved, code=1)

    def close(self) -> None:
        self.bar.close()
        self.saver.wait()
        self.metrics.close()

    def change_batches(self, config: TrainConfig) -> None:
        """Goes on with another batch_size and gradient_accumulation_steps, which make the same step."""
        self.say(
            f"warning: out of memory with batch_size={self.config.batch_size}: now --batch_size={config.batch_size} "
            f"--gradient_accumulation_steps={config.gradient_accumulation_steps}; a step has the same sequences"
        )
        self.config = config
        processes = self.accelerator.num_processes
        self.accelerator.gradient_accumulation_steps = config.gradient_accumulation_steps // processes
        self.settings["train"] = dataclasses.asdict(config)
        if self.accelerator.is_main_process:
            checkpoint.write_json(self.out_dir / checkpoint.CONFIG, self.settings)

    def say(self, text: str) -> None:
        """Prints on the main process, above the progress bar. Nobody listening any more is no reason to stop."""
        if self.accelerator.is_main_process and not self.quiet:
            with suppress(OSError):
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
