"""The `nanogpt` command: what there is to do with a trained run.

    nanogpt sample out/shakespeare --prompt "ROMEO:"
    nanogpt eval out/shakespeare
    nanogpt plan recipes/shakespeare.py --n_layer=8
    nanogpt compare out/a out/b
    nanogpt export out/shakespeare --to exports/shakespeare
    nanogpt push out/shakespeare USER/NAME
    nanogpt batch out/shakespeare --step 100
    accelerate launch --config_file accelerate_configs/ddp.yaml -m nanogpt.cli launch-check
    nanogpt dashboard out
    nanogpt playground out/shakespeare
    nanogpt plot out/shakespeare out/wide --out curves.png
    nanogpt bench --against transformers
    nanogpt import-nanogpt out/ckpt.pt --data data/shakespeare_char
    nanogpt data data/shakespeare_char

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
    runs = (add_sample, add_eval, add_compare, add_dashboard, add_playground, add_plot, add_export, add_push, add_batch)
    for add in (*runs, add_plan, add_data, add_bench, add_launch_check, add_import_nanogpt):
        add(commands)
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        sys.exit(2)
    with user_errors():
        try:
            args.run(args)
        except KeyboardInterrupt:
            print()
            sys.exit(130)


def add_command(commands, name: str, run, help: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=help, description=help, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    command.set_defaults(run=run)
    return command


def add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")


def add_sample(commands) -> None:
    """The flags of `nanogpt sample`."""
    command = add_command(commands, "sample", sample, "continue a prompt, streaming to the terminal")
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


def add_eval(commands) -> None:
    """The flags of `nanogpt eval`."""
    command = add_command(commands, "eval", evaluate, "loss, perplexity and bits per byte over a whole split")
    command.add_argument("RUN", nargs="+", help="one or several: out directories, checkpoints, transformers models")
    add_device(command)
    command.add_argument("--data", metavar="DIR", help="a data directory (None: the one it was trained on)")
    command.add_argument("--split", default="val", choices=("val", "train"), help="which part of it")
    command.add_argument("--batch_size", type=int, default=32, metavar="N", help="sequences at a time")
    command.add_argument("--tasks", metavar="A,B", help="lm_eval's tasks (pip install -e '.[eval]' -c constraints.txt)")
    command.add_argument("--include_path", metavar="DIR", help="a directory with task files of your own")
    command.add_argument("--limit", type=int, metavar="N", help="only the first N examples of each task")


def add_dashboard(commands) -> None:
    """The flags of `nanogpt dashboard`."""
    command = add_command(commands, "dashboard", dashboard, "a page on this machine that shows runs, live as well")
    command.add_argument("OUT", nargs="*", default=["out"], help="out directories, or directories that hold some")
    add_port(command)


def add_playground(commands) -> None:
    """The flags of `nanogpt playground`."""
    about = "a page on this machine to write with one or two models, and to see what each token of a text costs"
    command = add_command(commands, "playground", playground, about)
    command.add_argument("RUN", nargs="+", help="one or two of: an out directory, a checkpoint, a transformers model")
    add_device(command)
    add_port(command)


def add_port(command: argparse.ArgumentParser) -> None:
    command.add_argument("--port", type=int, metavar="N", help="of 127.0.0.1 (None: a free one)")


def add_plot(commands) -> None:
    """The flags of `nanogpt plot`."""
    command = add_command(commands, "plot", plot, "draw the losses of runs into a picture")
    command.add_argument("RUN", nargs="+", help="out directories")
    command.add_argument("--out", default="curves.png", metavar="FILE", help="the picture: .png, .svg or .pdf")


def add_export(commands) -> None:
    """The flags of `nanogpt export`."""
    command = add_command(commands, "export", export, "write a directory that transformers loads, verified")
    add_run(command)
    command.add_argument("--to", required=True, metavar="DIR", help="the directory, which must not exist yet")
    add_export_options(command)


def add_push(commands) -> None:
    """The flags of `nanogpt push`."""
    command = add_command(commands, "push", push, "export to a repository on the Hub; what it holds besides stays")
    add_run(command)
    command.add_argument("REPO", metavar="USER/NAME", help="the repository, which is made if there is none")
    command.add_argument("--private", action="store_true", help="make it private, if it is made")
    command.add_argument("--revision", metavar="BRANCH", help="a branch to push to (None: main)")
    add_export_options(command)


def add_export_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--checkpoint", metavar="WHICH", help="best, last or step-N (None: best, else last)")
    command.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the weights"
    )
    command.add_argument("--license", default="unknown", help="for the model card, such as mit or apache-2.0")


def add_batch(commands) -> None:
    command = add_command(commands, "batch", batch, "the text that a step trains on")
    command.add_argument("RUN", help="an out directory, or one checkpoint in it")
    command.add_argument("--step", type=int, required=True, metavar="N", help="number of the step; the first is 1")
    command.add_argument("--data", metavar="DIR", help="where the data is (None: where the run found it)")


def add_plan(commands) -> None:
    command = add_command(commands, "plan", plan, "what a run will take: parameters, memory, tokens, time")
    command.add_argument("RECIPE", help="a recipe, such as recipes/shakespeare.py")
    command.add_argument("FLAGS", nargs=argparse.REMAINDER, help="its flags, such as --n_layer=8")


def add_compare(commands) -> None:
    command = add_command(commands, "compare", compare, "settings that differ, losses by equal steps, tokens and time")
    command.add_argument("RUN", nargs="+", help="out directories; those that differ in their seed are one row")


def add_launch_check(commands) -> None:
    command = add_command(commands, "launch-check", launch_check, "what the launcher resolves to, without training")
    add_device(command)
    command.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="of a run")
    command.add_argument("--timeout", type=float, default=60, metavar="S", help="seconds to wait for other processes")


def add_bench(commands) -> None:
    """The flags of `nanogpt bench`."""
    command = add_command(commands, "bench", bench, "throughput beside this machine's limits, measured in the same run")
    add_device(command)
    command.add_argument("--model", default="classic", metavar="NAME", help="classic, laptop, baby or gpt2")
    command.add_argument(
        "--parts", default="train,sample,data,checkpoint,tokenize", metavar="A,B", help="what to measure"
    )
    command.add_argument(
        "--against", choices=("transformers",), help="measure GPT2LMHeadModel of the same size as well"
    )
    command.add_argument("--batch_size", type=int, metavar="N", help="sequences in a batch (None: the model's own)")
    command.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds, of which the median counts")
    command.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="of training")
    command.add_argument("--profile", action="store_true", help="only show where a training step spends its time")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")


def add_import_nanogpt(commands) -> None:
    about = "go on here with a checkpoint of nanoGPT's"
    command = add_command(commands, "import-nanogpt", import_nanogpt, about)
    command.add_argument("CKPT", help="nanoGPT's ckpt.pt")
    command.add_argument("--data", required=True, metavar="DIR", help="the data it was trained on, nanoGPT's or ours")
    command.add_argument("--out_dir", default="out/from_nanogpt", metavar="DIR", help="the run to write")
    command.add_argument("--weights_only", action="store_true", help="leave the optimizer state behind")


def add_data(commands) -> None:
    """The flags of `nanogpt data`."""
    command = add_command(commands, "data", data, "what a data directory holds, and what will go wrong with it")
    command.add_argument("DIR", help="a data directory")
    command.add_argument("--block_size", type=int, default=256, metavar="N", help="context of the model to be trained")
    command.add_argument("--parameters", type=int, default=763_264, metavar="N", help="of the model to be trained")
    command.add_argument("--sha256", action="store_true", help="compare the files with what was written")


def add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("RUN", help="an out directory (best, else last), a checkpoint in one, or a transformers model")


def pick_device(name: str) -> str:
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [device for device, there in available.items() if there]
    if name == "auto":
        return present[0]
    if name not in present:
        raise ValueError(f"device={name!r} is not one of {', '.join(present)}, which this machine has")
    return name


def sample(args) -> None:
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
        for piece in stream_text(words, tokens):
            print(piece, end="", flush=True)
        print()
    else:
        for row in generate(model, idx, args.max_new_tokens, **options).tolist():
            print(words.decode(row), "-" * 40, sep="\n")
    if args.stats:
        seconds, count = time.perf_counter() - start, args.num_samples * args.max_new_tokens
        print(
            f"{count:,} tokens in {seconds:.2f} s: {count / seconds:,.0f} tokens/s ({device}, {args.dtype})",
            file=sys.stderr,
        )


def evaluate(args) -> None:
    """Prints the exact figures of each run, and keeps them as JSON beside its checkpoint."""
    from nanogpt import hf

    if args.batch_size < 1:
        raise ValueError(f"batch_size={args.batch_size} must be at least 1")
    device, rows = pick_device(args.device), []
    for run in args.RUN:
        model, words, found = hf.load(run, device, say=note)
        if args.tasks:
            from nanogpt.tasks import evaluate as measure

            results = measure(model, words, args.tasks.split(","), args.include_path, args.limit, args.batch_size)
            for task, values in results.items():
                rows += [(run, task, name, v) for name, v in values.items() if isinstance(v, float)]
        else:
            results = split_loss(run, model, found, args, device)
            rows += [(run, *results.values())]
        if found:
            with contextlib.suppress(OSError):  # somebody else's directory: the figures are on the screen
                keep_results(found.with_name(f"{found.name}.eval.json"), args.tasks or args.split, results)
    if args.tasks:
        print(*(f"{run:<28} {task:<20} {name:<28} {value:.4f}" for run, task, name, value in rows), sep="\n")
    elif len(rows) > 1:
        print(f"\n{'':<28}{'loss':>10}{'perplexity':>12}{'bits per byte':>15}")
        print(
            *(f"{run:<28}{loss:>10.4f}{perplexity:>12.3f}{bpb:>15.4f}" for run, loss, perplexity, bpb in rows), sep="\n"
        )


def split_loss(run: str, model, found: Path | None, args, device: str) -> dict[str, float]:
    """Loss, perplexity and bits per byte of one model over a split, printed as they are found."""
    from nanogpt import checkpoint
    from nanogpt.evaluate import evaluate as measure
    from nanogpt.mixture import open_data

    directory = args.data or (checkpoint.load_configs(found)[1].data if found else None)
    if directory is None:
        raise ValueError(f"{run} was not trained here: name the data directory to evaluate on by --data DIR")
    data = open_data(directory, args.split, model.config.block_size, model.config.vocab_size)
    start = time.perf_counter()
    result = measure(model, data, args.batch_size, device)
    seconds = time.perf_counter() - start
    print(f"{found or run}, {args.split} split of {directory}: {len(data.tokens) - 1:,} tokens predicted")
    print(
        f"loss {result['val_loss']:.4f} nats per token, perplexity {result['val_perplexity']:.3f}, "
        f"{result['val_bpb']:.4f} bits per byte ({seconds:.1f} s)"
    )
    return result


def keep_results(path: Path, what: str, results: dict) -> None:
    """Adds the results of an evaluation to a JSON file, in the place of earlier ones of the same."""
    from nanogpt import checkpoint

    known = checkpoint.read_json(path) if path.exists() else {}
    checkpoint.write_json(path, known | {what: results})


def dashboard(args) -> None:
    from nanogpt.dashboard import serve

    serve(args.OUT, args.port)


def playground(args) -> None:
    from nanogpt.playground import serve

    serve(args.RUN, pick_device(args.device), args.port)


def plot(args) -> None:
    """Draws the picture; what holds no metrics is named."""
    from nanogpt import tracking
    from nanogpt.plot import curves

    for run in args.RUN:
        if not (Path(run) / tracking.METRICS).is_file():
            raise ValueError(f"{run} is no out directory: it has no {tracking.METRICS}")
    if not curves([Path(run) for run in args.RUN], Path(args.out)):
        raise ValueError(f"nothing has been measured yet in {', '.join(args.RUN)}")
    print(args.out)


def export(args) -> None:
    from nanogpt import hf

    hf.export(args.RUN, args.to, **export_options(args))


def push(args) -> None:
    from nanogpt import hf

    hf.push(args.RUN, args.REPO, private=args.private, revision=args.revision, **export_options(args))


def export_options(args) -> dict:
    import torch

    return {"which": args.checkpoint, "dtype": getattr(torch, args.dtype), "license": args.license}


def batch(args) -> None:
    """Prints the micro-batches of a step, sequence by sequence; the same whatever the number of processes was."""
    from nanogpt import checkpoint, tokenizer
    from nanogpt.mixture import open_data, read_shares

    if args.step < 1:
        raise ValueError(f"step={args.step} must be at least 1")
    config, trained = checkpoint.load_configs(Path(args.RUN))
    directory = args.data or trained.data
    data = open_data(directory, "train", config.block_size, config.vocab_size)
    words = tokenizer.load(next(iter(read_shares(directory))))
    for index in range(trained.gradient_accumulation_steps):
        number = (args.step - 1) * trained.gradient_accumulation_steps + index
        samples = number * trained.batch_size + np.arange(trained.batch_size)
        starts = data.starts(trained.seed, samples)
        inputs, targets = data.batch(trained.seed, samples[0], trained.batch_size)
        for row, (x, y) in enumerate(zip(inputs.tolist(), targets.tolist(), strict=True)):
            first = starts[row]
            print(
                f"step {args.step}, micro-batch {index}, sequence {row}: tokens {first:,} to {first + len(x):,} "
                f"of {directory}, epoch {samples[row] // data.windows_per_epoch + 1}"
            )
            print(words.decode([*x, y[-1]]))


def plan(args) -> None:
    """Runs the recipe with --dry_run, in this process."""
    sys.argv = [args.RECIPE, "--dry_run", *args.FLAGS]
    sys.path.insert(0, str(Path(args.RECIPE).resolve().parent))
    if not Path(args.RECIPE).is_file():
        raise ValueError(f"{args.RECIPE} is no file: name a recipe, such as recipes/shakespeare.py")
    runpy.run_path(args.RECIPE, run_name="__main__")


def compare(args) -> None:
    from nanogpt.compare import compare as table

    print(table([Path(run) for run in args.RUN]))


def launch_check(args) -> None:
    """To be started as a recipe is: `accelerate launch … -m nanogpt.cli launch-check`."""
    from nanogpt.launch import check

    check(args.device, args.precision, args.timeout)


def bench(args) -> None:
    from nanogpt.bench import bench as measure

    options = {name: getattr(args, name) for name in ("model", "parts", "against", "batch_size", "rounds")}
    measure(**options, precision=args.precision, device=args.device, profile=args.profile, as_json=args.json)


def import_nanogpt(args) -> None:
    """Writes the checkpoint and says how to go on with it."""
    from nanogpt.nanogpt_import import import_checkpoint, resume_command

    saved = import_checkpoint(Path(args.CKPT), Path(args.data), Path(args.out_dir), args.weights_only)
    print(f"{args.CKPT} is now {saved}\n")
    print(f"next:  nanogpt sample {args.out_dir}\n       nanogpt eval {args.out_dir}\n       {resume_command(saved)}")


def data(args) -> None:
    from nanogpt.doctor import examine

    examine(args.DIR, args.block_size, args.parameters, args.sha256)


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
