"""`nanogpt eval RUN…`: loss, perplexity and bits per byte over a whole split, or tasks of lm_eval."""

import contextlib
import time
from argparse import ArgumentParser
from pathlib import Path

from nanogpt import checkpoint
from nanogpt.cli.options import add_checkpoint, add_device, add_json, note, pick_device, show, show_json
from nanogpt.data.mixture import open_data, read_shares
from nanogpt.data.tokenizer import check_same, load_tokenizer
from nanogpt.evaluate import evaluate
from nanogpt.extras import eval_tasks
from nanogpt.hub.load import check_tokenizer, load
from nanogpt.run.errors import waiting
from nanogpt.run.flags import within


def add_arguments(command: ArgumentParser) -> None:
    command.add_argument("RUN", nargs="+", help="one or several: out directories, checkpoints, transformers models")
    add_checkpoint(command)
    add_device(command)
    command.add_argument("--data", metavar="DIR", help="a data directory; default: the one it was trained on")
    command.add_argument("--split", default="val", choices=("val", "train"), help="which part of it")
    command.add_argument("--batch_size", type=within(int, 1, 4096), default=32, metavar="N", help="sequences at a time")
    command.add_argument(
        "--tasks", metavar="A,B", help="tasks of lm_eval instead (pip install -e '.[eval]' -c constraints.txt)"
    )
    command.add_argument("--include_path", metavar="DIR", help="a directory with task files of your own")
    command.add_argument(
        "--limit", type=within(int, 1, 10**9), metavar="N", help="only the first N examples of each task"
    )
    add_json(command)


def run(args) -> None:
    """Prints the exact figures of each run, and stores them as JSON next to its checkpoint."""
    results = (run_tasks if args.tasks else eval_split)(args, pick_device(args.device))
    if args.json:
        show_json(results)


def eval_split(args, device: str) -> list[dict]:
    """Loss, perplexity and bits per byte of each run over a split; several runs also as a table."""
    say, rows, results = (lambda text: None) if args.json else show, [], []
    for run in args.RUN:
        model, tokenizer, found = load(run, device, which=args.checkpoint, say=note)
        own = checkpoint.load_configs(found)[1].data if found else None
        directory = args.data or own
        if directory is None:
            raise ValueError(f"{run} was not trained here: name the data directory to evaluate on with --data DIR")
        data = open_data(directory, args.split, model.config.block_size, model.config.vocab_size)
        for part in read_shares(directory):
            if found:
                check_same(found, part)
            else:
                check_tokenizer(tokenizer, load_tokenizer(part), data.tokens, part, run)
        start = time.perf_counter()
        with waiting(f"evaluating {found or run}", note):
            result = evaluate(model, data, args.batch_size, device)
        seconds = time.perf_counter() - start
        loss, perplexity, bpb = result["val_loss"], result["val_perplexity"], result["val_bpb"]
        say(f"{found or run}, {args.split} split of {directory}: {len(data.tokens) - 1:,} tokens predicted")
        say(f"loss {loss:.4f} nats per token, perplexity {perplexity:.3f}, {bpb:.4f} bits per byte ({seconds:.1f} s)")
        rows.append(f"{run:<28}{loss:>10.4f}{perplexity:>12.3f}{bpb:>15.4f}")
        what = args.split if directory == own else f"{args.split} of {directory}"
        keep_results(found, what, result | {"data": directory})
        about = {"run": run, "checkpoint": found and str(found), "data": directory, "split": args.split}
        results.append(about | {"tokens": len(data.tokens) - 1, **result, "seconds": seconds})
    if len(rows) > 1:
        say("\n".join((f"\n{'':<28}{'loss':>10}{'perplexity':>12}{'bits per byte':>15}", *rows)))
    return results


def run_tasks(args, device: str) -> list[dict]:
    """Each run's results in tasks of lm_eval, printed at the end."""
    rows, all_results = [], []
    for run in args.RUN:
        model, tokenizer, found = load(run, device, which=args.checkpoint, say=note)
        names = args.tasks.split(",")
        results = eval_tasks.evaluate(model, tokenizer, names, args.include_path, args.limit, args.batch_size)
        for task, values in results.items():
            figures = [(name, value) for name, value in values.items() if isinstance(value, float)]
            rows += [f"{run:<28} {task:<20} {name:<28} {value:.4f}" for name, value in figures]
        limited = f", {args.limit} examples" if args.limit else ""
        keep_results(found, args.tasks + limited, results | {"limit": args.limit})
        all_results.append({"run": run, "checkpoint": found and str(found), "limit": args.limit, "tasks": results})
    if not args.json:
        print(*rows, sep="\n")
    return all_results


def keep_results(found: Path | None, what: str, results: dict) -> None:
    """Stores an evaluation in the JSON file of a checkpoint, if there is one, and replaces an earlier one."""

    if found:
        path = found.with_name(f"{found.name}.eval.json")
        with contextlib.suppress(OSError):  # the directory may be read-only; the figures are printed as well
            known = checkpoint.read_json(path) if path.exists() else {}
            checkpoint.write_json(path, known | {what: results})
