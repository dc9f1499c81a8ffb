"""`nanogpt eval`, `compare`, `plot`, `dashboard`, `check-data` and `bench`."""

from pathlib import Path

import torch

from nanogpt.checkpoint import load_configs
from nanogpt.cli.options import extra, load_run, note, show, show_json
from nanogpt.data.meta import read_meta
from nanogpt.data.mixture import open_data, read_shares
from nanogpt.data.tokenizer import load_tokenizer
from nanogpt.evaluate import evaluate
from nanogpt.hub.load import check_tokenizer
from nanogpt.ops.loss import chunked_loss
from nanogpt.run.compare import compare, group, verdict
from nanogpt.run.device import cuda_precision
from nanogpt.run.errors import waiting
from nanogpt.run.metrics import METRICS
from nanogpt.run.plot import curves


def run_eval(args) -> None:
    """Prints a line for each run, or for each result of a task."""
    evaluate_run = evaluate_tasks if args.tasks else evaluate_split
    results = [evaluate_run(args, run) for run in args.RUNS]
    if args.json:
        show_json(results)


def evaluate_split(args, run: str) -> dict:
    """Loss, perplexity and bits per byte of a run over a split."""
    model, tokenizer, found = load_run(args, run)
    config, device = model.config, model.wte.weight.device
    directory = args.data or (load_configs(found)[1].data if found else None)
    if directory is None:
        raise ValueError(f"{run} was not trained here: name data to evaluate on with --data")
    data = open_data(directory, args.split, config.block_size, config.vocab_size)
    for part in read_shares(directory):
        check_tokenizer(tokenizer, load_tokenizer(part), part, run)
    # the logits of a large vocabulary may not fit into memory at once
    model.use(model.ops._replace(loss=chunked_loss))
    with waiting(f"evaluating {found or run}", note), autocast(device.type, args.precision):
        result = evaluate(model, data, args.batch_size)
        if args.stride:
            stride = min(args.stride, config.block_size)
            sliding = evaluate(model, data, args.batch_size, stride=stride)
            result |= {"stride": stride, "sliding_loss": sliding["val_loss"]}
    predicted = data.token_count - len(read_shares(directory))  # all but the first
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
    if precision == "auto" and device == "cuda":
        precision = cuda_precision()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device, dtype, enabled=dtype is not None)


def evaluate_tasks(args, run: str) -> dict:
    """A run's results on tasks of lm_eval."""
    model, tokenizer, found = load_run(args, run)
    options = {"limit": args.limit, "batch_size": args.batch_size}
    tasks = extra("eval_tasks").evaluate(model, tokenizer, args.tasks.split(","), **options)
    for task, values in tasks.items():
        for metric, value in values.items():
            if isinstance(value, float) and not args.json:
                show(f"{run:<28} {task:<20} {metric:<28} {value:.4f}")
    where = {"run": run, "checkpoint": found and str(found)}
    return where | {"limit": args.limit, "tasks": tasks}


def run_compare(args) -> None:
    """Prints what differs between runs, and which is better."""
    runs = [Path(run) for run in args.RUN]
    if args.json:
        show_json(verdict(group(runs)))
    else:
        show(compare(runs))


def run_plot(args) -> None:
    """Draws the loss curves. Raises ValueError naming a directory without metrics."""
    if Path(args.out).suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"out={args.out!r} must end in .png, .svg or .pdf")
    for run in args.RUN:
        if not (Path(run) / METRICS).is_file():
            raise ValueError(f"{run} is not an out directory: it has no {METRICS}")
    if not curves([Path(run) for run in args.RUN], Path(args.out)):
        raise ValueError(f"{', '.join(args.RUN)}: there are no measurements yet")
    show(args.out)


def run_dashboard(args) -> None:
    """Serves the dashboard until it is interrupted."""
    extra("dashboard.server").serve(args.OUT, args.port)


def run_check_data(args) -> None:
    """Prints what a data directory holds, and warnings."""
    say = (lambda text: None) if args.json else show
    warnings = extra("check_data").examine(args.DIR, args.block_size, args.parameters, say=say)
    if args.json:
        show_json({"data": args.DIR, "warnings": warnings, **read_meta(args.DIR)})


def run_bench(args) -> None:
    """Prints the throughput of training, and its share of a large matmul's."""
    extra("bench").run(args)
