"""`nanogpt eval`, `compare`, `plot`, `dashboard`, `check-data` and `bench`."""

import contextlib
import time
from argparse import ArgumentParser
from pathlib import Path

from nanogpt.cli.options import (
    add_checkpoint,
    add_device,
    add_json,
    add_number,
    add_port,
    extra,
    note,
    pick_device,
    show,
    show_json,
)
from nanogpt.run.errors import waiting

PICTURES = (".png", ".svg", ".pdf")


def add_eval(command: ArgumentParser) -> None:
    command.add_argument(
        "RUN", nargs="+", help="one or several: out directories, checkpoints, transformers models"
    )
    add_checkpoint(command)
    add_device(command)
    command.add_argument(
        "--data", metavar="DIR", help="a data directory; default: the one it was trained on"
    )
    command.add_argument(
        "--split", default="val", choices=("val", "train"), help="which part of it"
    )
    add_number(command, "--batch_size", int, 1, 4096, 32, "sequences at a time")
    command.add_argument(
        "--tasks",
        metavar="A,B",
        help="tasks of lm_eval instead (pip install -e '.[eval]' -c constraints.txt)",
    )
    command.add_argument(
        "--include_path", metavar="DIR", help="a directory with task files of your own"
    )
    add_number(command, "--limit", int, 1, 10**9, None, "only the first N examples of each task")
    add_json(command)


def run_eval(args) -> None:
    """Prints the figures of each run, and stores them as JSON next to its checkpoint."""
    results = (evaluate_tasks if args.tasks else evaluate_split)(args, pick_device(args.device))
    if args.json:
        show_json(results)


def evaluate_split(args, device: str) -> list[dict]:
    """Loss, perplexity and bits per byte of each run over a split; several runs also as a table."""
    from nanogpt.checkpoint import load_configs
    from nanogpt.data.mixture import open_data, read_shares
    from nanogpt.data.tokenizer import check_same, load_tokenizer
    from nanogpt.evaluate import evaluate
    from nanogpt.hub.load import check_tokenizer, load

    results, rows = [], []
    for run in args.RUN:
        model, tokenizer, found = load(run, device, which=args.checkpoint, say=note)
        own = load_configs(found)[1].data if found else None
        directory = args.data or own
        if directory is None:
            raise ValueError(
                f"{run} was not trained here: name the data to evaluate on with --data DIR"
            )
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
        predicted = len(data.tokens) - 1
        loss, perplexity, bpb = (result[f"val_{name}"] for name in ("loss", "perplexity", "bpb"))
        if not args.json:
            show(
                f"{found or run}, {args.split} split of {directory}: {predicted:,} tokens predicted"
            )
            show(
                f"loss {loss:.4f} nats per token, perplexity {perplexity:.3f}, "
                f"{bpb:.4f} bits per byte ({seconds:.1f} s)"
            )
        rows.append(f"{run:<28}{loss:>10.4f}{perplexity:>12.3f}{bpb:>15.4f}")
        name = args.split if directory == own else f"{args.split} of {directory}"
        keep_results(found, name, result | {"data": directory})
        results.append(
            {
                "run": run,
                "checkpoint": found and str(found),
                "data": directory,
                "split": args.split,
                "tokens": predicted,
                **result,
                "seconds": seconds,
            }
        )
    if len(rows) > 1 and not args.json:
        show(f"\n{'':<28}{'loss':>10}{'perplexity':>12}{'bits per byte':>15}")
        show("\n".join(rows))
    return results


def evaluate_tasks(args, device: str) -> list[dict]:
    """Each run's results on tasks of lm_eval, printed at the end."""
    from nanogpt.hub.load import load

    eval_tasks = extra("eval_tasks")
    rows, all_results = [], []
    for run in args.RUN:
        model, tokenizer, found = load(run, device, which=args.checkpoint, say=note)
        results = eval_tasks.evaluate(
            model, tokenizer, args.tasks.split(","), args.include_path, args.limit, args.batch_size
        )
        for task, values in results.items():
            for metric, value in values.items():
                if isinstance(value, float):
                    rows.append(f"{run:<28} {task:<20} {metric:<28} {value:.4f}")
        limited = f", {args.limit} examples" if args.limit else ""
        keep_results(found, args.tasks + limited, results | {"limit": args.limit})
        checkpoint = found and str(found)
        all_results.append(
            {"run": run, "checkpoint": checkpoint, "limit": args.limit, "tasks": results}
        )
    if not args.json:
        print(*rows, sep="\n")
    return all_results


def keep_results(found: Path | None, name: str, results: dict) -> None:
    """Stores an evaluation in the checkpoint's eval.json under `name`, replacing an earlier one."""
    from nanogpt.checkpoint import read_json, write_json

    if found is None:
        return
    path = found.with_name(f"{found.name}.eval.json")
    with contextlib.suppress(OSError):  # the directory may be read-only; the figures are printed
        known = read_json(path) if path.exists() else {}
        write_json(path, known | {name: results})


def add_compare(command: ArgumentParser) -> None:
    command.add_argument(
        "RUN", nargs="+", help="out directories; runs that differ only in their seed share a column"
    )
    add_json(command)


def run_compare(args) -> None:
    from nanogpt.run.compare import compare, verdict

    runs = [Path(run) for run in args.RUN]
    if args.json:
        show_json(verdict(runs))
    else:
        show(compare(runs))


def add_plot(command: ArgumentParser) -> None:
    command.add_argument("RUN", nargs="+", help="out directories")
    command.add_argument(
        "--out",
        "--to",
        default="curves.png",
        metavar="FILE",
        help="the picture: .png, .svg or .pdf",
    )


def run_plot(args) -> None:
    """Draws the loss curves. Raises ValueError naming a directory without metrics."""
    from nanogpt.run.metrics import METRICS
    from nanogpt.run.plot import curves

    if Path(args.out).suffix not in PICTURES:
        raise ValueError(f"out={args.out!r} must end in {', '.join(PICTURES)}")
    for run in args.RUN:
        if not (Path(run) / METRICS).is_file():
            raise ValueError(f"{run} is not an out directory: it has no {METRICS}")
    if not curves([Path(run) for run in args.RUN], Path(args.out)):
        raise ValueError(f"{', '.join(args.RUN)}: there are no measurements yet")
    show(args.out)


def add_dashboard(command: ArgumentParser) -> None:
    command.add_argument(
        "OUT", nargs="*", default=["out"], help="out directories, or directories that hold some"
    )
    add_port(command)


def run_dashboard(args) -> None:
    extra("dashboard.server").serve(args.OUT, args.port)


def add_check_data(command: ArgumentParser) -> None:
    command.add_argument("DIR", help="a data directory")
    add_number(command, "--block_size", int, 1, 2**24, 256, "context of the model to be trained")
    add_number(
        command,
        "--parameters",
        int,
        1,
        10**13,
        763_264,
        "of the model to be trained; the default is that of recipes/shakespeare.py",
    )
    command.add_argument("--sha256", action="store_true", help="verify the checksums in meta.json")
    add_json(command)


def run_check_data(args) -> None:
    from nanogpt.data.meta import read_meta

    examine = extra("check_data").examine
    say = (lambda text: None) if args.json else show
    warnings = examine(args.DIR, args.block_size, args.parameters, args.sha256, say=say)
    if args.json:
        show_json({"data": args.DIR, "warnings": warnings, **read_meta(args.DIR)})


def add_bench(command: ArgumentParser) -> None:
    add_device(command)
    command.add_argument(
        "--model", default="classic", metavar="NAME", help="classic, laptop, baby or gpt2"
    )
    command.add_argument(
        "--parts",
        default="train,sample",
        metavar="A,B",
        help="what to measure",
    )
    command.add_argument(
        "--against", choices=("transformers",), help="also measure its class for the model"
    )
    add_number(command, "--batch_size", int, 1, 4096, None, "sequences; default: the model's own")
    add_number(command, "--rounds", int, 1, 1000, 5, "rounds; the median is shown")
    command.add_argument(
        "--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="of training"
    )
    command.add_argument(
        "--profile",
        action="store_true",
        help="only show which operators take the time of a training step",
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run_bench(args) -> None:
    extra("bench").run(args)
