"""A recipe's command line: parses it, prepares a run and trains it; also plans."""

import gc
import json
import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from nanogpt import rundir
from nanogpt.checkpoint import State, list_checkpoints, read_json
from nanogpt.config import TrainConfig
from nanogpt.hub.export import push
from nanogpt.run import console, plan
from nanogpt.run.compare import compare
from nanogpt.run.errors import fail, user_errors, waiting
from nanogpt.run.flags import parse
from nanogpt.run.guard import rehearse
from nanogpt.run.metrics import RESULT
from nanogpt.run.prepare import prepare
from nanogpt.run.stop import Stop
from nanogpt.train import Parts, done, logger, save, stop_clock, train


def main(model_config, config, prepare_data, note, argv, **options) -> list[Path]:
    """`nanogpt.train.main`, which documents the arguments; `options` are its make_… functions."""
    begun: list[Path] = []
    start = time.monotonic()
    try:
        with user_errors():
            recipes_data = config.data
            model_config, config, actions, options["given"] = parse(model_config, config, argv)
            prepare_data = prepare_data if config.data == recipes_data else None
            if config.push_to_hub and actions.seeds > 1:
                raise ValueError("push_to_hub is for a single run: push the best of these later")
            if actions.dry_run:
                with TemporaryDirectory() as tmpdir:  # leaves no files
                    unseen = {"out_dir": tmpdir, "report_to": "none", "push_to_hub": None}
                    config = replace(config, resume="none", **unseen)
                    run = prepare(model_config, config, prepare_data, quiet=True, **options)
                    say = partial(run[1].accelerator.print, file=sys.stderr)  # stdout is for JSON
                    timing = waiting("estimating memory and timing a few steps", say)
                    with run[1].peers.watched(), timing:
                        plan.show(*run, actions.json)
                return []
        for seed in range(config.seed, config.seed + actions.seeds):
            name = f"{config.out_dir}-seed{seed}" if actions.seeds > 1 else config.out_dir
            with user_errors():
                seeded = replace(config, seed=seed, out_dir=name)
                if config.time_limit and begun:  # the limit is that of all seeds
                    minutes = (time.monotonic() - start) / 60
                    seeded.time_limit = max(1e-3, config.time_limit - minutes)
                run = prepare(model_config, seeded, prepare_data, note, **options)
            begun.append(Path(name))
            train_to_the_end(*run)
            del run  # before the next seed's model is made
            gc.collect()
        if actions.seeds > 1:
            logger.info(compare(begun))
        return begun
    except KeyboardInterrupt:  # outside the loop there is nothing to save
        sys.exit(130)
    finally:
        rundir.release()
        for out_dir in begun:
            if actions.json and os.environ.get("RANK", "0") == "0" and (out_dir / RESULT).is_file():
                print(json.dumps(read_json(out_dir / RESULT)), flush=True)


def train_to_the_end(config: TrainConfig, parts: Parts, state: State) -> None:
    """Rehearses, trains and concludes what `prepare` made; a run that stops early exits.

    The exit code is 1, on all processes, if the last checkpoint could not be saved.
    """
    stop = None
    with parts.peers.watched(), parts.interrupts:
        if not done(config, state):
            config = rehearse(config, parts, state)
        parts.interrupts.begin()
        try:
            train(config, parts, state)
        except Stop as why:
            stop = why
        stop_clock(config, parts, state)
        if stop and stop.code != 1:
            only_evaluates = config.max_iters == 0
            if parts.interrupts.saved_step != state.step and not only_evaluates:
                save(config, parts, state)
            saved = state.step or list_checkpoints(parts.out_dir)  # fine-tuning saves step 0
            what = f"step {state.step} is saved" if saved else "there was no step to save"
            again = "" if config.resume == "auto" or not config.max_iters else " with --resume=auto"
            stop.reason += f": {what}; to resume, repeat the command{again}"
        parts.metrics.close()
        unsaved = parts.interrupts.save_failed()
        if unsaved and (stop is None or stop.code != 1):  # an error before it comes first
            stop = Stop(parts.interrupts.save_error, code=1)
        if parts.metrics.files:  # not if a finished run is only evaluated again
            console.write_result(parts, state, stop)
        if stop:
            parts.interrupts.ignore()
        parts.accelerator.wait_for_everyone()  # for result.json
        if stop and stop.code == 1:
            fail(stop.reason or "the main process could not save", code=1)
        if stop:
            logger.info(stop.reason)
            sys.exit(stop.code)
        if number := parts.peers.all_max(parts.interrupts.number)[0]:  # in the last save
            parts.interrupts.ignore()
            logger.info("stopped: the run is complete")
            sys.exit(128 + number)
    if state.step > 0 and parts.accelerator.is_main_process:
        console.conclude(config, parts, state)
        if config.push_to_hub:
            # the export must compute what a class of the user's own does
            options = {"say": logger.info, "make_model": parts.make_model}
            try:
                push(parts.out_dir, config.push_to_hub, **options)
            except (ValueError, OSError) as error:  # the run itself is complete
                later = f"nanogpt push {console.as_run(parts)} {config.push_to_hub}"
                logger.warning(f"not pushed ({error}); later: {later}")
