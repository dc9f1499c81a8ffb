"""`nanogpt eval`, `compare`, `plot`, `dashboard`, `check-data` and `bench`."""

from argparse import ArgumentParser
from pathlib import Path

from nanogpt.cli.options import add_number, add_shared, extra, load_run, note, show, show_json
from nanogpt.run.errors import waiting

PICTURES = (".png", ".svg", ".pdf")


def add_eval(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt eval`."""
    add_shared(command, "RUNS", "--checkpoint", "--device", "--precision", "--trust_recipe")
    add_shared(command, "--json")
    command.add_argument("--data", metavar="DIR", help="a data directory; default: the run's")
    command.add_argument("--split", default="val", choices=("val", "train"), help="which split")
    add_number(command, "--batch_size", int, 1, 4096, 32, "sequences at a time")
    text = "also the loss over windows that start every N tokens, with more context for each token"
    add_number(command, "--stride", int, 1, 10**6, None, text)
    command.add_argument(
        "--tasks",
        metavar="A,B",
        help="tasks of lm_eval instead (pip install -e '.[eval]' -c constraints.txt)",
    )
    command.add_argument("--include_path", metavar="DIR", help="a directory of your own tasks")
    add_number(command, "--limit", int, 1, 10**9, None, "only the first N examples of each task")


def run_eval(args) -> None:
    """Prints a line for each run, or for each result of a task."""
    evaluate = evaluate_tasks if args.tasks else evaluate_split
    results = [evaluate(args, run) for run in args.RUNS]
    if args.json:
        show_json(results)


def evaluate_split(args, run: str) -> dict:
    """Loss, perplexity and bits per byte of a run over a split."""
    from nanogpt.checkpoint import load_configs
    from nanogpt.data.mixture import open_data, read_shares
    from nanogpt.data.tokenizer import load_tokenizer
    from nanogpt.evaluate import evaluate, forward_batch_size
    from nanogpt.hub.load import check_tokenizer
    from nanogpt.ops.loss import loss_for

    model, tokenizer, found = load_run(args, run)
    config, device = model.config, model.wte.weight.device
    directory = args.data or (load_configs(found)[1].data if found else None)
    if directory is None:
        raise ValueError(f"{run} was not trained here: name data to evaluate on with --data")
    data = open_data(directory, args.split, config.block_size, config.vocab_size)
    for part in read_shares(directory):
        check_tokenizer(tokenizer, load_tokenizer(part), part, run)
    # the logits of a large vocabulary do not fit into a GPU's memory at once
    tokens = config.block_size * forward_batch_size(args.batch_size, config.block_size)
    model.use(model.ops._replace(loss=loss_for(device, config, tokens)))
    with waiting(f"evaluating {found or run}", note), autocast(device.type, args.precision):
        result = evaluate(model, data, args.batch_size, device)
        if args.stride:
            stride = min(args.stride, config.block_size)
            sliding = evaluate(model, data, args.batch_size, device, stride=stride)
            result |= {"stride": stride, "sliding_loss": sliding["val_loss"]}
    predicted = len(data) - 1
    if not args.json:
        show(
            f"{found or run}: loss {result['val_loss']:.4f} nats per token, "
            f"perplexity {result['val_perplexity']:.3f}, {result['val_bpb']:.4f} bits per byte "
            f"({predicted:,} tokens, the {args.split} split of {directory})"
        )
        if args.stride:
            show(f"loss {result['sliding_loss']:.4f} with windows every {stride} tokens")
    where = {"run": run, "checkpoint": found and str(found), "data": directory}
    return where | {"split": args.split, "tokens": predicted} | result


def autocast(device: str, precision: str):
    """Context manager: computes in `precision`, with weights in fp32."""
    import torch

    from nanogpt.run.device import cuda_precision

    if precision == "auto" and device == "cuda":
        precision = cuda_precision()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device, dtype, enabled=dtype is not None)


def evaluate_tasks(args, run: str) -> dict:
    """A run's results on tasks of lm_eval."""
    model, tokenizer, found = load_run(args, run)
    tasks = extra("eval_tasks").evaluate(
        model, tokenizer, args.tasks.split(","), args.include_path, args.limit, args.batch_size
    )
    for task, values in tasks.items():
        for metric, value in values.items():
            if isinstance(value, float) and not args.json:
                show(f"{run:<28} {task:<20} {metric:<28} {value:.4f}")
    where = {"run": run, "checkpoint": found and str(found)}
    return where | {"limit": args.limit, "tasks": tasks}


def add_compare(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt compare`."""
    command.add_argument(
        "RUN", nargs="+", help="out directories; runs that differ only in their seed share a column"
    )
    add_shared(command, "--json")


def run_compare(args) -> None:
    """Prints what differs between runs, and which is better."""
    from nanogpt.run.compare import compare, verdict

    runs = [Path(run) for run in args.RUN]
    if args.json:
        show_json(verdict(runs))
    else:
        show(compare(runs))


def add_plot(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt plot`."""
    command.add_argument("RUN", nargs="+", help="out directories")
    command.add_argument(
        "--out", default="curves.png", metavar="FILE", help=f"one of {', '.join(PICTURES)}"
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
    """Adds the arguments of `nanogpt dashboard`."""
    command.add_argument("OUT", nargs="*", default=["out"], help="out directories, or their parent")
    add_shared(command, "--port")


def run_dashboard(args) -> None:
    """Serves the dashboard until it is interrupted."""
    extra("dashboard.server").serve(args.OUT, args.port)


def add_check_data(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt check-data`."""
    command.add_argument("DIR", help="a data directory")
    add_number(command, "--block_size", int, 1, 2**24, 256, "context of the model to be trained")
    size = "parameters of the model to be trained; default: recipes/shakespeare.py's"
    add_number(command, "--parameters", int, 1, 10**13, 771_712, size)
    add_shared(command, "--json")


def run_check_data(args) -> None:
    """Prints what a data directory holds, and warnings."""
    from nanogpt.data.meta import read_meta

    examine = extra("check_data").examine
    say = (lambda text: None) if args.json else show
    warnings = examine(args.DIR, args.block_size, args.parameters, say=say)
    if args.json:
        show_json({"data": args.DIR, "warnings": warnings, **read_meta(args.DIR)})


def add_bench(command: ArgumentParser) -> None:
    """Adds the arguments of `nanogpt bench`."""
    add_shared(command, "--device", "--precision", "--json")
    models = ("classic", "laptop", "baby", "gpt2")
    command.add_argument("--model", default="classic", choices=models, help="what to measure")
    add_number(command, "--batch_size", int, 1, 4096, None, "sequences; default: the model's own")
    add_number(command, "--rounds", int, 1, 1000, 5, "rounds; the median is shown")
    text = "only list the slowest operators of a training step"
    command.add_argument("--profile", action="store_true", help=text)


def run_bench(args) -> None:
    """Prints the throughput of training, and its share of a large matmul's."""
    extra("bench").run(args)
