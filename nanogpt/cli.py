"""The `nanogpt` command: what there is to do with a trained run.

    nanogpt sample out/shakespeare --prompt "ROMEO:"
    nanogpt eval out/shakespeare
    nanogpt compare out/a out/b
    nanogpt dashboard out
    nanogpt playground out/shakespeare
    nanogpt plot out/shakespeare out/wide --out curves.png
    nanogpt export out/shakespeare --to exports/shakespeare
    nanogpt push out/shakespeare USER/NAME
    nanogpt batch out/shakespeare --step 100
    nanogpt plan recipes/shakespeare.py --n_layer=8
    nanogpt data data/shakespeare_char
    nanogpt bench --against transformers
    accelerate launch --config_file accelerate_configs/ddp.yaml -m nanogpt.cli launch-check
    nanogpt import-nanogpt out/ckpt.pt --data data/shakespeare_char

RUN is an out directory (its best checkpoint, else its last), one checkpoint in it, or a transformers model: a directory
or a name on the Hub, such as gpt2.
"""

import argparse
import contextlib
import runpy
import sys
import time
from pathlib import Path

import numpy as np

from nanogpt.config import OneLineParser, user_errors


def main(argv: list[str] | None = None) -> None:
    """Runs one command; a mistake of the user is one line and exit code 2."""
    parser = OneLineParser(prog="nanogpt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=OneLineParser)
    for add in (
        add_sample,
        add_eval,
        add_compare,
        add_dashboard,
        add_playground,
        add_plot,
        add_export,
        add_push,
        add_batch,
        add_plan,
        add_data,
        add_bench,
        add_launch_check,
        add_import_nanogpt,
    ):
        add(commands)
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        sys.exit(2)
    with user_errors():
        args.run(args)


def add_command(commands, name: str, run, help: str) -> argparse.ArgumentParser:
    options = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter, "allow_abbrev": False}
    command = commands.add_parser(name, help=help, description=help, **options)
    command.set_defaults(run=run)
    return command


def add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("RUN", help="an out directory (best, else last), a checkpoint in one, or a transformers model")


def add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")


def add_port(command: argparse.ArgumentParser) -> None:
    command.add_argument("--port", type=int, metavar="N", help="of 127.0.0.1 (None: a free one)")


def pick_device(name: str) -> str:
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [device for device, there in available.items() if there]
    if name == "auto":
        return present[0]
    if name not in present:
        raise ValueError(f"device={name!r} is not one of {', '.join(present)}, which this machine has")
    return name


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def add_sample(commands) -> None:
    """How to draw, besides what to continue."""
    command = add_command(commands, "sample", run_sample, "continue a prompt, streaming to the terminal")
    add_run(command)
    add_device(command)
    command.add_argument("--prompt", default="\n", metavar="TEXT|FILE:PATH", help="text to continue")
    command.add_argument("--max_new_tokens", type=int, default=500, metavar="N", help="tokens to add")
    command.add_argument("--num_samples", type=int, default=1, metavar="N", help="continuations, sampled as one batch")
    command.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest token")
    command.add_argument("--top_k", type=int, default=200, metavar="K", help="only the K likeliest tokens; 0 is off")
    command.add_argument("--top_p", type=float, default=1.0, metavar="P", help="only the likeliest, of probability P")
    command.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    command.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of weights and cache")
    command.add_argument("--compile", action="store_true", help="torch.compile: pays on a GPU, for long texts")
    command.add_argument("--stats", action="store_true", help="print tokens per second at the end, on stderr")


def run_sample(args) -> None:
    """Streams one continuation as it is drawn; several are drawn as a batch and printed one after the other."""
    import torch

    from nanogpt import hf
    from nanogpt.generate import generate, pack, stream, stream_text

    for name, least in (("max_new_tokens", 1), ("num_samples", 1), ("temperature", 0), ("top_k", 0), ("top_p", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"{name}={getattr(args, name)} must be at least {least}")
    device = pick_device(args.device)
    model, words, _ = hf.load(args.RUN, device, getattr(torch, args.dtype), say=note)
    prompt = args.prompt
    if prompt.startswith("FILE:"):
        prompt = Path(prompt[5:]).read_text(encoding="utf-8")
    if not prompt:
        raise ValueError("the prompt is empty: give at least one character, such as --prompt ROMEO:")
    ids = words.encode(prompt)
    model = pack(model)
    if args.compile:
        model.compile(dynamic=True)
    idx = torch.tensor(ids, device=device).repeat(args.num_samples, 1)
    options = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "seed": args.seed}
    start = time.perf_counter()
    if args.num_samples == 1:
        print(prompt, end="", flush=True)
        tokens = (token.item() for token in stream(model, idx, args.max_new_tokens, **options))
        for piece in stream_text(words, tokens, prompt=ids):
            print(piece, end="", flush=True)
        print()
    else:
        for row in generate(model, idx, args.max_new_tokens, **options).tolist():
            print(words.decode(row), "-" * 40, sep="\n")
    if args.stats:
        seconds, count = time.perf_counter() - start, args.num_samples * args.max_new_tokens
        speed = f"{count:,} tokens in {seconds:.2f} s: {count / seconds:,.0f} tokens/s"
        print(f"{speed} ({device}, {args.dtype})", file=sys.stderr)


def add_eval(commands) -> None:
    command = add_command(commands, "eval", run_eval, "loss, perplexity and bits per byte over a whole split")
    command.add_argument("RUN", nargs="+", help="one or several: out directories, checkpoints, transformers models")
    add_device(command)
    command.add_argument("--data", metavar="DIR", help="a data directory (None: the one it was trained on)")
    command.add_argument("--split", default="val", choices=("val", "train"), help="which part of it")
    command.add_argument("--batch_size", type=int, default=32, metavar="N", help="sequences at a time")
    command.add_argument(
        "--tasks", metavar="A,B", help="tasks of lm_eval instead (pip install -e '.[eval]' -c constraints.txt)"
    )
    command.add_argument("--include_path", metavar="DIR", help="a directory with task files of your own")
    command.add_argument("--limit", type=int, metavar="N", help="only the first N examples of each task")


def run_eval(args) -> None:
    """Prints the exact figures of each run, and keeps them as JSON beside its checkpoint."""
    if args.batch_size < 1:
        raise ValueError(f"batch_size={args.batch_size} must be at least 1")
    device = pick_device(args.device)
    if args.tasks:
        eval_tasks(args, device)
    else:
        eval_split(args, device)


def eval_split(args, device: str) -> None:
    """Loss, perplexity and bits per byte of each run over a split; of several runs in a table as well."""
    from nanogpt import checkpoint, hf
    from nanogpt.evaluate import evaluate
    from nanogpt.mixture import open_data

    rows = []
    for run in args.RUN:
        model, _, found = hf.load(run, device, say=note)
        own = checkpoint.load_configs(found)[1].data if found else None
        directory = args.data or own
        if directory is None:
            raise ValueError(f"{run} was not trained here: name the data directory to evaluate on by --data DIR")
        data = open_data(directory, args.split, model.config.block_size, model.config.vocab_size)
        start = time.perf_counter()
        result = evaluate(model, data, args.batch_size, device)
        seconds = time.perf_counter() - start
        loss, perplexity, bpb = result["val_loss"], result["val_perplexity"], result["val_bpb"]
        print(f"{found or run}, {args.split} split of {directory}: {len(data.tokens) - 1:,} tokens predicted")
        print(f"loss {loss:.4f} nats per token, perplexity {perplexity:.3f}, {bpb:.4f} bits per byte ({seconds:.1f} s)")
        rows.append(f"{run:<28}{loss:>10.4f}{perplexity:>12.3f}{bpb:>15.4f}")
        what = args.split if directory == own else f"{args.split} of {directory}"
        keep_results(found, what, result | {"data": directory})
    if len(rows) > 1:
        print(f"\n{'':<28}{'loss':>10}{'perplexity':>12}{'bits per byte':>15}", *rows, sep="\n")


def eval_tasks(args, device: str) -> None:
    """Each run's figures in tasks of lm_eval, all of them at the end."""
    from nanogpt import hf, tasks

    rows = []
    for run in args.RUN:
        model, words, found = hf.load(run, device, say=note)
        results = tasks.evaluate(model, words, args.tasks.split(","), args.include_path, args.limit, args.batch_size)
        for task, values in results.items():
            figures = [(name, value) for name, value in values.items() if isinstance(value, float)]
            rows += [f"{run:<28} {task:<20} {name:<28} {value:.4f}" for name, value in figures]
        limited = f", {args.limit} examples" if args.limit else ""
        keep_results(found, args.tasks + limited, results | {"limit": args.limit})
    print(*rows, sep="\n")


def keep_results(found: Path | None, what: str, results: dict) -> None:
    """Adds an evaluation to the JSON file beside the checkpoint, if there is one, in the place of an earlier one."""
    from nanogpt import checkpoint

    if found:
        path = found.with_name(f"{found.name}.eval.json")
        with contextlib.suppress(OSError):  # somebody else's directory: the figures are on the screen
            known = checkpoint.read_json(path) if path.exists() else {}
            checkpoint.write_json(path, known | {what: results})


def add_compare(commands) -> None:
    command = add_command(commands, "compare", run_compare, "settings that differ, losses by equal steps, tokens, time")
    command.add_argument("RUN", nargs="+", help="out directories; those that differ in their seed are one column")


def run_compare(args) -> None:
    from nanogpt.compare import compare

    print(compare([Path(run) for run in args.RUN]))


def add_dashboard(commands) -> None:
    command = add_command(commands, "dashboard", run_dashboard, "a page on this machine that shows runs, live as well")
    command.add_argument("OUT", nargs="*", default=["out"], help="out directories, or directories that hold some")
    add_port(command)


def run_dashboard(args) -> None:
    from nanogpt.dashboard import serve

    serve(args.OUT, args.port)


def add_playground(commands) -> None:
    about = "a page on this machine to write with one or two models, and to see what each token of a text costs"
    command = add_command(commands, "playground", run_playground, about)
    command.add_argument("RUN", nargs="+", help="one or two of: an out directory, a checkpoint, a transformers model")
    add_device(command)
    add_port(command)


def run_playground(args) -> None:
    from nanogpt.playground import serve

    serve(args.RUN, pick_device(args.device), args.port)


def add_plot(commands) -> None:
    command = add_command(commands, "plot", run_plot, "draw the losses of runs into a picture")
    command.add_argument("RUN", nargs="+", help="out directories")
    command.add_argument("--out", default="curves.png", metavar="FILE", help="the picture: .png, .svg or .pdf")


def run_plot(args) -> None:
    """Draws the picture; what holds no metrics is named."""
    from nanogpt import plot, tracking

    for run in args.RUN:
        if not (Path(run) / tracking.METRICS).is_file():
            raise ValueError(f"{run} is no out directory: it has no {tracking.METRICS}")
    if not plot.curves([Path(run) for run in args.RUN], Path(args.out)):
        raise ValueError(f"nothing has been measured yet in {', '.join(args.RUN)}")
    print(args.out)


def add_export(commands) -> None:
    command = add_command(commands, "export", run_export, "write a directory that transformers loads, verified")
    add_run(command)
    command.add_argument("--to", required=True, metavar="DIR", help="the directory, which must not exist yet")
    add_export_options(command)


def run_export(args) -> None:
    from nanogpt import hf

    hf.export(args.RUN, args.to, **export_options(args))


def add_push(commands) -> None:
    command = add_command(commands, "push", run_push, "export to a repository on the Hub; what it holds besides stays")
    add_run(command)
    command.add_argument("REPO", metavar="USER/NAME", help="the repository, which is made if there is none")
    command.add_argument("--private", action="store_true", help="make it private, if it is made")
    command.add_argument("--revision", metavar="BRANCH", help="a branch to push to (None: main)")
    add_export_options(command)


def run_push(args) -> None:
    from nanogpt import hf

    hf.push(args.RUN, args.REPO, private=args.private, revision=args.revision, **export_options(args))


def add_export_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--checkpoint", metavar="WHICH", help="best, last or step-N (None: best, else last)")
    command.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of weights")
    command.add_argument("--license", default="unknown", help="for the model card, such as mit or apache-2.0")


def export_options(args) -> dict:
    import torch

    return {"which": args.checkpoint, "dtype": getattr(torch, args.dtype), "license": args.license}


def add_batch(commands) -> None:
    command = add_command(commands, "batch", run_batch, "the text that a step trains on")
    command.add_argument("RUN", help="an out directory, or one checkpoint in it")
    command.add_argument("--step", type=int, required=True, metavar="N", help="number of the step; the first is 1")
    command.add_argument("--data", metavar="DIR", help="where the data is (None: where the run found it)")


def run_batch(args) -> None:
    """Prints the micro-batches of a step, sequence by sequence; the same whatever the number of processes was."""
    from nanogpt import checkpoint, tokenizer
    from nanogpt.mixture import open_data, read_shares

    if args.step < 1:
        raise ValueError(f"step={args.step} must be at least 1")
    config, trained = checkpoint.load_configs(Path(args.RUN))
    directory = args.data or trained.data
    data = open_data(directory, "train", config.block_size, config.vocab_size)
    first_directory, *others = read_shares(directory)
    words = tokenizer.load(first_directory)
    for index in range(trained.gradient_accumulation_steps):
        number = (args.step - 1) * trained.gradient_accumulation_steps + index
        samples = number * trained.batch_size + np.arange(trained.batch_size)
        starts = data.starts(trained.seed, samples)
        inputs, targets = data.batch(trained.seed, samples[0], trained.batch_size)
        for row, (x, y) in enumerate(zip(inputs.tolist(), targets.tolist(), strict=True)):
            first = starts[row]
            # the directories of a mixture have epochs of their own
            epoch = "" if others else f", epoch {samples[row] // data.windows_per_epoch + 1}"
            print(
                f"step {args.step}, micro-batch {index}, sequence {row}: tokens {first:,} to {first + len(x):,} "
                f"of {directory}{epoch}"
            )
            print(words.decode([*x, y[-1]]))


def add_plan(commands) -> None:
    command = add_command(commands, "plan", run_plan, "what a run will take: parameters, memory, tokens, time")
    command.add_argument("RECIPE", help="a recipe, such as recipes/shakespeare.py")
    command.add_argument("FLAGS", nargs=argparse.REMAINDER, help="its flags, such as --n_layer=8")


def run_plan(args) -> None:
    """Runs the recipe with --dry_run, in this process."""
    if not Path(args.RECIPE).is_file():
        raise ValueError(f"{args.RECIPE} is no file: name a recipe, such as recipes/shakespeare.py")
    sys.argv = [args.RECIPE, "--dry_run", *args.FLAGS]
    sys.path.insert(0, str(Path(args.RECIPE).resolve().parent))
    runpy.run_path(args.RECIPE, run_name="__main__")


def add_data(commands) -> None:
    command = add_command(commands, "data", run_data, "what a data directory holds, and what will go wrong with it")
    command.add_argument("DIR", help="a data directory")
    command.add_argument("--block_size", type=int, default=256, metavar="N", help="context of the model to be trained")
    size = "of the model to be trained; the default is that of recipes/shakespeare.py"
    command.add_argument("--parameters", type=int, default=763_264, metavar="N", help=size)
    command.add_argument("--sha256", action="store_true", help="compare the files with what was written")


def run_data(args) -> None:
    from nanogpt.doctor import examine

    examine(args.DIR, args.block_size, args.parameters, args.sha256)


def add_bench(commands) -> None:
    command = add_command(commands, "bench", run_bench, "throughput beside this machine's limits, measured in one run")
    add_device(command)
    command.add_argument("--model", default="classic", metavar="NAME", help="classic, laptop, baby or gpt2")
    parts = "train,sample,data,checkpoint,tokenize"
    command.add_argument("--parts", default=parts, metavar="A,B", help="what to measure")
    command.add_argument("--against", choices=("transformers",), help="measure its GPT-2 of the same size as well")
    command.add_argument("--batch_size", type=int, metavar="N", help="sequences in a batch (None: the model's own)")
    command.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds, of which the median counts")
    command.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="of training")
    command.add_argument("--profile", action="store_true", help="only show where a training step spends its time")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run_bench(args) -> None:
    from nanogpt.bench import bench

    names = ("model", "parts", "against", "batch_size", "rounds", "precision", "device", "profile")
    bench(**{name: getattr(args, name) for name in names}, as_json=args.json)


def add_launch_check(commands) -> None:
    command = add_command(commands, "launch-check", run_launch_check, "what the launcher resolves to, without training")
    add_device(command)
    command.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="of a run")
    command.add_argument("--timeout", type=float, default=60, metavar="S", help="seconds to wait for other processes")


def run_launch_check(args) -> None:
    """To be started as a recipe is: `accelerate launch … -m nanogpt.cli launch-check`."""
    from nanogpt.launch import check

    check(args.device, args.precision, args.timeout)


def add_import_nanogpt(commands) -> None:
    command = add_command(commands, "import-nanogpt", run_import_nanogpt, "go on here with a checkpoint of nanoGPT's")
    command.add_argument("CKPT", help="nanoGPT's ckpt.pt")
    command.add_argument("--data", required=True, metavar="DIR", help="the data it was trained on, nanoGPT's or ours")
    command.add_argument("--out_dir", default="out/from_nanogpt", metavar="DIR", help="the run to write")
    command.add_argument("--weights_only", action="store_true", help="leave the optimizer state behind")


def run_import_nanogpt(args) -> None:
    """Writes the checkpoint and says how to go on with it."""
    from nanogpt.nanogpt_import import import_checkpoint, resume_command

    saved = import_checkpoint(Path(args.CKPT), Path(args.data), Path(args.out_dir), args.weights_only)
    print(f"{args.CKPT} is now {saved}\n")
    print(f"next:  nanogpt sample {args.out_dir}\n       nanogpt eval {args.out_dir}\n       {resume_command(saved)}")


if __name__ == "__main__":
    main()
