"""Training: one loop for a CPU, a GPU or many of them. Read `Run.train`, then `Run.step`.

A recipe calls `main(MODEL, TRAIN, prepare=…)`. What a step computes depends on the settings and the step number alone:
its batches, its dropout and its learning rate are pure functions of them. A run that is interrupted and resumed is
therefore identical to one that never stopped, and k processes train what one process trains with k times the
accumulation. `recipes/minimal.py` is the same training without the safeguards.
"""

import dataclasses
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from nanogpt import checkpoint, optim
from nanogpt.config import Actions, TrainConfig
from nanogpt.data.tokens import Batch, hash64, shorten, to_device
from nanogpt.evaluate import evaluate, total_loss
from nanogpt.model import GPT, GPTConfig
from nanogpt.ops.loss import loss_for
from nanogpt.optim import UpdateRatio, cast_weights_once, lr_at, set_learning_rate, update
from nanogpt.run import console, guard, plan, plot
from nanogpt.run.compare import compare
from nanogpt.run.device import free_memory, memory_in_use, peak_flops, profiler, reseed, synchronize, undo_compile
from nanogpt.run.errors import fail, user_errors, waiting
from nanogpt.run.flags import named, parse
from nanogpt.run.stop import Interrupted, Stop
from nanogpt.sample import write_amid_training
from nanogpt.setup import Setup


def main(
    model_config: GPTConfig,
    config: TrainConfig,
    prepare: Callable[[Path], object] | None = None,
    note: str = "",
    argv: list[str] | None = None,
    *,
    make_model: Callable[[GPTConfig], GPT] = GPT,
    make_optimizers: Callable[..., list[torch.optim.Optimizer]] = optim.make_optimizers,
) -> None:
    """Runs a recipe: its settings, overridden by the command line `argv` (default: `sys.argv[1:]`).

    `prepare(directory)` makes the recipe's own data; the main process calls it if there is no data yet. `note` is
    printed at the start. `make_model` is `GPT` or a subclass with an idea of your own, `make_optimizers` has the
    signature of `nanogpt.optim.make_optimizers`. A user's mistake is one line on stderr and exit code 2.
    """
    description = sys.modules["__main__"].__doc__ or ""
    make = {"make_model": make_model, "make_optimizers": make_optimizers, "recipe": (model_config, config)}
    make["command"] = list(sys.argv) if argv is None else None
    begun: list[Path] = []
    try:
        with user_errors():
            recipes_data = config.data
            argv = sys.argv[1:] if argv is None else argv
            make["given"] = named(argv)
            model_config, config, actions = parse(model_config, config, argv, description)
            prepare = prepare if config.data == recipes_data else None
            if actions.dry_run or actions.find_batch_size:
                with TemporaryDirectory() as nowhere:  # leaves no files
                    alone = {"out_dir": nowhere, "resume": "none", "report_to": "none", "push_to_hub": None}
                    run = Run(model_config, dataclasses.replace(config, **alone), prepare, quiet=True, **make)
                    run.plan(actions) if actions.dry_run else run.find_batch_size()
                return
            seeds = range(config.seed, config.seed + actions.seeds)
            names = [f"{config.out_dir}-seed{seed}" if actions.seeds > 1 else config.out_dir for seed in seeds]
        for seed, name in zip(seeds, names, strict=True):
            with user_errors():
                run = Run(model_config, dataclasses.replace(config, seed=seed, out_dir=name), prepare, note, **make)
            begun.append(run.out_dir)
            run.train(profile=actions.profile)
        if actions.seeds > 1:
            run.say(compare(names))
    except KeyboardInterrupt:  # outside the loop there is nothing to save
        sys.exit(130)
    finally:
        for out_dir in begun:
            if actions.json:
                console.print_result(out_dir)


class Run(Setup):
    """One run: `Setup` makes and checks everything, `train` trains."""

    def train(self, profile: int = 0) -> None:
        """The loop: evaluate and save where due, take a step, log; until max_iters, or until something stops it.

        The first `profile` steps after two of warm-up are traced into out_dir/trace.json.
        """
        state = self.state
        tracing = profiler(profile if self.main_process else 0, self.out_dir / "trace.json", self.say)
        with self.peers.watched(self.saver.wait), self.interrupts, tracing as trace:
            self.begin()
            config = self.config  # after begin, whose rehearsal may have made the micro-batches smaller
            self.interrupts.begin()
            self.clock.start()
            stop = None
            while stop is None:
                due = self.done() or state["step"] % config.eval_interval == 0
                if due and (state["evaluated_step"] != state["step"] or config.max_iters == 0):
                    self.pause()
                    try:
                        self.evaluate_and_save()
                    except Interrupted as interrupted:
                        stop = self.stopped(interrupted.number)
                    self.clock.start()
                    self.bar.restart()
                if self.done() or stop:
                    break
                self.step()
                if trace:
                    trace.step()
                if self.log_due:
                    self.pause()
                    self.log()
                    self.clock.start()
                self.saver.check()
                stop = self.reason_to_stop()
            self.end(stop)
        if state["step"] > 0 and self.main_process:
            console.conclude(self)

    def begin(self) -> None:
        """Readies what the first step needs: sums at zero, training mode, a compiled model that fits into memory."""
        self.tally = guard.Tally(self.device)
        self.update_ratio = UpdateRatio(self.gpt)
        self.logged = dict(self.state)  # as it was at the last line of metrics
        self.gpt.train()
        if not self.done():
            self.rehearse()
        self.bar = console.Progress(self)

    def step(self) -> None:
        """One optimizer step: this process's share of the micro-batches, the clipped gradient, the update."""
        config, state, accelerator = self.config, self.state, self.accelerator
        self.lr = lr_at(state["step"], config, state["train_seconds"])
        set_learning_rate(self.optimizers, self.lr)

        micro_batches = config.gradient_accumulation_steps // accelerator.num_processes
        step_loss = torch.zeros((), device=self.device)
        with cast_weights_once():
            for i in range(micro_batches):
                x, y = self.micro_batch(i * accelerator.num_processes + accelerator.process_index)  # (B, T) each
                with accelerator.accumulate(self.model):  # gradients are summed over processes after the last one
                    with self.autocast():
                        loss = guard.contagious(self.model(x, y))
                    accelerator.backward(loss)
                step_loss += loss.detach() / micro_batches

        norm = accelerator.clip_grad_norm_(self.model.parameters(), config.grad_clip or torch.inf)
        self.grad_norm = checkpoint.full_tensor(norm)
        not_finite = (~self.grad_norm.isfinite()).float()  # stays on the device, so that nothing waits for it
        self.log_due = (state["step"] + 1) % config.log_interval == 0 or state["step"] + 1 == config.max_iters
        with self.update_ratio if self.log_due else nullcontext():
            update(self.optimizers, not_finite)  # nothing changes where the gradient is not finite
        if accelerator.scaler is not None:  # fp16: clip_grad_norm_ has unscaled the gradients
            accelerator.scaler.update()

        self.tally.add(step_loss, self.grad_norm, not_finite)
        state["step"] += 1
        state["tokens"] += self.tokens_per_step
        self.bar.update()

    def micro_batch(self, index: int, whole: bool = False) -> Batch:
        """Micro-batch `index` of the current step, on the device; seeds its dropout. `whole`: windows are not cut."""
        step, config = self.state["step"], self.config
        number = step * config.gradient_accumulation_steps + index
        batch = self.train_data.batch(config.seed, number * config.batch_size, config.batch_size)
        if step < config.short_block_iters and not whole:
            batch = shorten(batch, config.short_block_size)
        reseed(self.device, int(hash64(hash64(np.array([config.seed], np.uint64)) ^ np.uint64(number))[0]))
        return to_device(batch, self.device)

    def log(self) -> None:
        """Writes a line of metrics for the steps since the last one. Only here does the loop wait for the device."""
        config, state, tally = self.config, self.state, self.tally
        steps, skipped = state["step"] - self.logged["step"], int(tally.skipped)
        state["skipped_steps"] += skipped
        seconds = state["train_seconds"] - self.logged["train_seconds"]
        values = {"tokens_per_second": round(steps * self.tokens_per_step / seconds)}
        if peak := peak_flops(self.settings["environment"]["device"]):
            short = state["step"] <= config.short_block_iters
            flops = values["tokens_per_second"] * self.gpt.flops_per_token(config.short_block_size if short else None)
            values["mfu"] = flops / peak / self.accelerator.num_processes
        if steps > skipped:
            values["train_loss"] = self.accelerator.reduce(tally.loss, "mean").item() / (steps - skipped)
        if self.grad_norm.isfinite():
            values["grad_norm"], values["update_ratio"] = self.grad_norm.item(), self.update_ratio.value(self.add_up)
        values["lr"] = self.lr
        values["memory"] = memory_in_use(self.device)
        self.metrics.log(**self.progress(), **values, skipped_steps=state["skipped_steps"])
        self.bar.show(values)
        tally.reset()
        self.logged = dict(state)

    def evaluate_and_save(self) -> None:
        """Saves where the settings ask for it, evaluates and samples. The last evaluation is over the whole split."""
        config, state, accelerator = self.config, self.state, self.accelerator
        last, again = self.done(), state["evaluated_step"] == state["step"]
        fine_tuning = config.init_from != "scratch" and config.max_iters > 0  # may end worse than it began
        wanted = (state["step"] > 0 or fine_tuning) and not again
        saved = wanted and (config.always_save_checkpoint or last)
        if saved:  # an evaluation that fails, or is interrupted, costs no checkpoint
            self.save()
        with waiting("evaluating", self.say), self.autocast():
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
        if saved:
            self.add_evaluation(best)
        elif wanted and best:
            self.save(best)
        if config.sample_tokens and not again and not self.sharded and result["val_loss"] < torch.inf:
            how = config.sample_tokens, config.seed, self.interrupts.check
            text = write_amid_training(self.gpt, self.tokenizer, self.train_data.beginning, *how)
            self.metrics.sample(text, lambda: plot.pixels(self.out_dir), **self.progress())
            self.say(console.first_line(text))

    def save(self, best: bool = False, background: bool = True) -> None:
        """Saves a checkpoint of the current step: all processes gather it, a thread of the main process writes it."""
        self.saver.wait()  # frees the copy of the previous save first
        background = background and free_memory() > 2 * checkpoint.size(self.gpt, self.optimizers)
        try:
            collected = checkpoint.collect(self.gpt, self.optimizers, copy=background, keep=self.main_process)
        except MemoryError as error:  # only where the model is whole on this process, which needs no other then
            self.say(f"warning: training waits for the checkpoint of step {self.state['step']}: {error}")
            background, collected = False, checkpoint.collect(self.gpt, self.optimizers)
        self.saver.step = self.state["step"]  # on the other processes too
        if self.main_process:
            state, settings, keep = dict(self.state), dict(self.settings), self.config.keep_checkpoints
            state["skipped_steps"] += int(self.tally.skipped)  # since the last line of metrics
            state |= guard.scale_of(self.accelerator.scaler)

            def write():
                self.metrics.sync()
                checkpoint.save(self.out_dir, state, *collected, settings, self.tokenizer, keep, best)

            self.saver.save(state["step"], write, background)

    def add_evaluation(self, best: bool) -> None:
        """Has the evaluation of the current step written into its checkpoint, which may still be on its way."""
        if self.main_process:
            state, keep = dict(self.state), self.config.keep_checkpoints

            def write():
                self.metrics.sync()
                checkpoint.add_evaluation(self.out_dir, state, keep, best)

            self.saver.add(write)

    def reason_to_stop(self) -> Stop | None:
        """Why the run ends before max_iters, the same on all processes; None to continue."""
        config, step = self.config, self.state["step"]
        if self.log_due and self.tally.bad_in_a_row >= guard.bad_steps_allowed(config, self.accelerator.scaler):
            self.saver.wait()
            return Stop(guard.diagnosis(self.tally, step, self.lr, config), code=1)
        number, time_is_up, saves_fail = self.interrupts.due(self.saver.seconds, self.saver.failed)
        if saves_fail:
            return Stop(self.saver.unsaved, code=1)
        return self.stopped(number) if number or time_is_up else None

    def stopped(self, number: int) -> Stop:
        """The end by a signal, or because the time is up (0)."""
        step, minutes = self.state["step"], self.config.max_minutes
        why = self.interrupts.why(number) if number else f"stopped after {minutes:g} minutes"
        what = f"step {step} is saved" if step else "there was no step to save"
        message = f"{why}: {what}; to resume: {console.resume_command(self)}"
        return Stop(message, code=128 + number if number else 0, save=True)

    def end(self, stop: Stop | None) -> None:
        """Ends the run: saves if `stop` asks for it, waits for the disk, and exits if `stop` is given.

        The exit code is 1, on all processes, if the last checkpoint could not be saved.
        """
        self.pause()
        if stop and stop.save and self.saver.step != self.state["step"]:
            self.save(background=False)
        self.bar.close()
        self.saver.wait()
        self.metrics.close()
        if self.peers.largest(self.saver.unsaved is not None)[0]:
            stop = Stop(self.saver.unsaved, code=1)
        if self.main_process:
            console.write_result(self, stop)
        if stop is None:
            return
        self.interrupts.ignore()
        self.accelerator.wait_for_everyone()
        if stop.code == 1:
            fail(stop.message, code=1)
        self.say(stop.message)
        sys.exit(stop.code)

    # Before the first step: does it fit, what will it take

    def rehearse(self) -> None:
        """Tries a forward and backward pass that changes nothing: it compiles the model and finds out what fits.

        A micro-batch that does not fit into memory is halved, on all processes alike, until it does. If compiling
        fails, the run continues without it.
        """
        while problem := guard.problem_with(self.try_micro_batch, self.peers, self.compiled):
            guard.release_memory(self.device)
            if problem == guard.MEMORY:
                with user_errors():
                    smaller = guard.split(self.config)
                self.change_batches(smaller)
            else:
                self.say(f"warning: torch.compile failed, continuing without it: {problem}")
                undo_compile(self.gpt)
                self.compiled = False

    def try_micro_batch(self) -> None:
        """A forward and backward pass with the memory of a first step; no gradient is left."""
        # no communication, so that a failing process leaves no other waiting; FSDP requires it
        try:
            with nullcontext() if self.sharded else self.accelerator.no_sync(self.model):
                if self.state["step"] == 0:  # the optimizer's state, as large as AdamW's, comes with the first step
                    moments = [torch.empty_like(p) for p in self.gpt.parameters() for _ in range(2)]  # noqa: F841
                with self.autocast():
                    loss = self.model(*self.micro_batch(0))
                loss.backward()
                if self.state["step"] < self.config.short_block_iters:  # the later steps have to fit as well
                    with self.autocast():
                        loss = self.model(*self.micro_batch(0, whole=True))
                    loss.backward()
        finally:
            self.gpt.zero_grad()

    def change_batches(self, config: TrainConfig) -> None:
        """Continues with another batch_size and gradient_accumulation_steps, which make the same step."""
        self.say(
            f"warning: out of memory with batch_size={self.config.batch_size}: now --batch_size={config.batch_size} "
            f"--gradient_accumulation_steps={config.gradient_accumulation_steps}; a step has the same sequences"
        )
        self.config = config
        if self.compiled:
            torch.compiler.reset()  # otherwise it compiles again for sizes that vary
        processes = self.accelerator.num_processes
        self.accelerator.gradient_accumulation_steps = config.gradient_accumulation_steps // processes
        self.settings["train"] = dataclasses.asdict(config)
        if self.main_process:
            checkpoint.write_json(self.out_dir / checkpoint.CONFIG, self.settings)

    def plan(self, actions: Actions) -> None:
        """Prints what the run will take, with times measured by a few of its steps, which are thrown away."""
        data, taken = (self.train_data, self.val_data), checkpoint.size(self.gpt, self.optimizers)
        evaluate = partial(total_loss, self.gpt, device=self.device)
        with self.autocast():
            plan.show(self.settings, data, taken, self.measure, evaluate, self.accelerator.print, actions)

    def measure(self) -> float:
        """Seconds of a step of whole windows. Of many micro-batches two are timed; the others count as the second."""
        self.begin()
        processes = self.accelerator.num_processes
        share = self.config.gradient_accumulation_steps // processes
        seconds, whole = [], {"short_block_iters": 0}
        for n in range(1, 3) if share > 2 else [share]:
            self.config = dataclasses.replace(self.config, gradient_accumulation_steps=n * processes, **whole)
            self.accelerator.gradient_accumulation_steps = n
            seconds.append(plan.median_seconds(self.timed_step))
        return seconds[0] + (share - 1) * max(seconds[1] - seconds[0], 0) if share > 2 else seconds[0]

    def find_batch_size(self) -> None:
        """Prints the speed of ever larger micro-batches, until one does not fit into memory."""
        self.config = dataclasses.replace(self.config, batch_size=1, short_block_iters=0)
        room = plan.available(self.config.device) + checkpoint.size(self.gpt, self.optimizers)
        self.begin()
        train_tokens = len(self.train_data.tokens)
        plan.find_batch_size(self.settings, room, train_tokens, self.seconds_with, self.accelerator.print)

    def seconds_with(self, batch_size: int, too_large: bool) -> float | None:
        """Seconds of a step with micro-batches of that size; None if they do not fit into memory on any process."""
        self.config = dataclasses.replace(self.config, batch_size=batch_size)
        tokens = batch_size * self.gpt.config.block_size
        self.gpt.use(self.gpt.ops._replace(loss=loss_for(self.device, self.gpt.config, tokens)))
        if self.compiled:
            torch.compiler.reset()
        if self.peers.largest(too_large)[0]:
            return None
        problem = guard.problem_with(self.try_micro_batch, self.peers, self.compiled)
        return None if problem == guard.MEMORY else plan.median_seconds(self.timed_step, at_most=0.5)

    def timed_step(self) -> None:
        self.step()
        synchronize(self.device)
