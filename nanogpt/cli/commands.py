"""What each command does: `nanogpt.cli.main` calls run_NAME, and COMMANDS there describes it."""

import json
import os
import runpy
import shlex
import signal
import sys
from argparse import ArgumentParser
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import torch

from nanogpt.checkpoint import load_configs, step_of
from nanogpt.cli.arguments import EXPORTS, PROCESSES
from nanogpt.data.files import one_line_errors
from nanogpt.evaluate import evaluate
from nanogpt.hub.export import push
from nanogpt.hub.load import check_tokenizer, load
from nanogpt.hub.nanogpt import import_checkpoint
from nanogpt.model import GPT
from nanogpt.ops import decode
from nanogpt.ops.loss import chunked_loss
from nanogpt.run.compare import compare, group, verdict
from nanogpt.run.errors import plain, visible, waiting
from nanogpt.run.metrics import METRICS
from nanogpt.run.parser import OneLineParser
from nanogpt.run.plot import curves
from nanogpt.text.chat import answer, can_chat
from nanogpt.text.directories import load_meta, open_data, read_shares
from nanogpt.text.generate import default_prompt, stream_text
from nanogpt.text.tokenizer import START, load_tokenizer


def extra(name: str):
    """The module nanogpt.extras.NAME, imported by name: without it only its command fails."""
    return import_module(f"nanogpt.extras.{name}")


def load_run(args, run: str, **options) -> tuple:
    """`nanogpt.hub.load.load`, with the command's --device and --trust_recipe."""
    device = pick_device(args.device)
    return load(run, device, say=note, trust_recipe=args.trust_recipe, **options)


def pick_device(name: str) -> str:
    """Resolves `auto`. Raises ValueError for a device that this machine does not have."""
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [device for device, available in has.items() if available]
    if name not in ("auto", *present):
        raise ValueError(f"device={name!r} is not one of this machine's: {', '.join(present)}")
    return present[0] if name == "auto" else name


def show(text: str) -> None:
    """Prints text of unknown origin, with control characters made visible."""
    print(visible(text), flush=True)


def show_json(value: object) -> None:
    """Prints a result for programs: one line of JSON in ASCII."""
    print(json.dumps(plain(value)), flush=True)


def note(text: str) -> None:
    """Prints a remark on stderr."""
    print(f"note: {visible(text)}", file=sys.stderr)


LAUNCH = (
    "-m accelerate.commands.launch --multi_gpu --num_machines 1 "
    "--mixed_precision no --dynamo_backend no --main_process_port 0"
)


def run_train(args) -> None:
    """Trains a recipe in this process, or in several that the launcher starts on this machine.

    For several machines, sharding or a configuration file use `accelerate launch`.
    """
    after_recipe = OneLineParser(add_help=False)  # --processes is accepted there, too
    flag, options = PROCESSES
    after_recipe.add_argument(flag, **options)
    _, flags = ArgumentParser.parse_known_args(after_recipe, args.FLAGS, args)
    require_recipe(args.RECIPE)
    if args.processes == 1:
        run_recipe(args.RECIPE, flags)
    else:
        launch(args.RECIPE, flags, args.processes)


def require_recipe(recipe: str) -> None:
    """Raises ValueError unless it is a Python file."""
    if Path(recipe).suffix != ".py" or not Path(recipe).is_file():
        where = f"is not a .py file in {Path.cwd()}"
        raise ValueError(f"{recipe} {where}: name one, such as recipes/shakespeare.py")


def run_recipe(recipe: str, flags: list[str]) -> None:
    """Runs a recipe in this process, as `python RECIPE flags` would."""
    sys.argv = [recipe, *flags]
    sys.path.insert(0, str(Path(recipe).resolve().parent))
    runpy.run_path(recipe, run_name="__main__")


def launch(recipe: str, flags: list[str], processes: int) -> None:
    """Replaces this process with the launcher. Raises ValueError for more processes than GPUs."""
    gpus = torch.cuda.device_count()
    on_cpu = not gpus or "--device=cpu" in "=".join(flags)
    if not on_cpu and processes > gpus:
        raise ValueError(
            f"--processes={processes}: this machine has {gpus} GPUs; --device=cpu trains on the CPU"
        )
    words = [sys.executable, *LAUNCH.split(), "--num_processes", str(processes), recipe, *flags]
    environment = dict(os.environ)
    if on_cpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    # under nohup; the launcher would handle SIGHUP all the same
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        environment.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGQUIT")
    os.execve(sys.executable, words, environment)


def run_plan(args) -> None:
    require_recipe(args.RECIPE)
    as_json = ["--json"] if args.json else []
    run_recipe(args.RECIPE, [*as_json, "--dry_run", *args.FLAGS])


def run_import_nanogpt(args) -> None:
    """Writes nanoGPT's checkpoint as one of ours and prints how to continue with it."""
    saved = import_checkpoint(Path(args.CKPT), Path(args.data), Path(args.out_dir))
    show(f"{args.CKPT} is now {saved}\n")
    show(f"next:  nanogpt sample {shlex.quote(args.out_dir)}")
    show(f"       nanogpt eval {shlex.quote(args.out_dir)}")
    flags = [f"--config={args.out_dir}/config.json", f"--out_dir={args.out_dir}", "--resume=auto"]
    step = step_of(saved)
    if step >= load_configs(saved)[1].max_iters:  # it was complete
        flags.append(f"--max_iters={2 * step}")
    show(f"       python recipes/shakespeare_nanogpt.py {shlex.join(flags)}")


def sampling_options(args) -> dict:
    """The options of `stream` for a command."""
    return {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "seed")}


def load_for_sampling(args, tokens: int) -> tuple:
    """The model of RUN, compiled if asked for or if `tokens` are many, and its tokenizer."""
    int8 = args.dtype == "int8"
    if int8 and args.compile == "false":
        raise ValueError("int8 is always compiled: leave --compile=false or --dtype=int8 out")
    dtype = torch.float32 if int8 else getattr(torch, args.dtype)
    model, tokenizer, _ = load_run(args, args.RUN, dtype=dtype)
    worthwhile = args.compile == "auto" and decode.is_worth_compiling(model, tokens)
    if int8 or worthwhile or args.compile == "true":
        decode.compile_decoding(model, int8)
    return model, tokenizer


def compile_now(model: GPT, samples: int = 1) -> None:
    """Compiles what compile_decoding would compile in the middle of the text."""
    if model.ops.cache_memory is decode.rows_by_position:
        with waiting("compiling the model for sampling", note):
            model.generate(torch.zeros(samples, 2, dtype=torch.long), 2, temperature=0)


def run_sample(args) -> None:
    """Streams a single continuation; prints several, sampled as one batch, when all are done."""
    alone = args.num_samples == 1
    # several texts of a large model are matmuls, which compiling makes no faster
    model, tokenizer = load_for_sampling(args, args.max_new_tokens if alone else 0)
    eos_id = tokenizer.eot_id
    if args.prompt is None:
        prompt, ids = default_prompt(tokenizer)
    else:
        prompt = args.prompt
        if prompt.startswith("FILE:"):
            path = Path(prompt.removeprefix("FILE:"))
            with one_line_errors(f"{path} cannot be read", "name a UTF-8 text (see iconv)"):
                prompt = path.read_text(encoding="utf-8-sig")
        ids = tokenizer.encode(prompt).tolist()
    options = sampling_options(args) | {"eos_id": eos_id}
    compile_now(model, args.num_samples)
    if alone and not args.json:
        print(visible(prompt), end="", flush=True)
        for piece in stream_text(model, tokenizer, ids, args.max_new_tokens, **options):
            print(visible(piece), end="", flush=True)
        print()
        return
    context = ids if prompt else []  # an end-of-text token that a sample begins with is not shown
    idx = torch.tensor(ids, device=model.wte.weight.device).repeat(args.num_samples, 1)
    with waiting("sampling", note):
        new = model.generate(idx, args.max_new_tokens, **options)[:, len(ids) :]
    samples = []
    for row in new.tolist():
        tokens = row[: row.index(eos_id)] if eos_id in row else row
        text = tokenizer.decode([*context, *tokens])
        ended = len(tokens) < args.max_new_tokens  # by an end-of-text token, which is cut off
        samples.append({"text": text, "tokens": len(tokens), "ended": ended})
        if not args.json:
            show(f"{text}\n{'-' * 40}")
    if args.json:
        show_json({"run": args.RUN, "prompt": prompt, "samples": samples})


def run_chat(args) -> None:
    """Answers line by line until Ctrl-D; piped lines are the messages of one conversation.

    The oldest exchanges are dropped when the context is full.
    """
    model, tokenizer = load_for_sampling(args, args.max_new_tokens)
    if not can_chat(tokenizer):
        why = f"its tokenizer has no {START}; see recipes/chat.py"
        raise ValueError(f"{args.RUN} was not trained on conversations: {why}")
    compile_now(model)
    messages = [{"role": "system", "content": args.system}] if args.system else []
    if sys.stdin.isatty():
        note("each line is a message; Ctrl-D ends")
    for line in filter(str.strip, read_lines()):  # without blank ones
        messages.append({"role": "user", "content": line})
        pieces = []
        options = sampling_options(args)
        try:
            for piece in answer(model, tokenizer, messages, args.max_new_tokens, **options):
                print(visible(piece), end="", flush=True)
                pieces.append(piece)
        except ValueError as error:  # too long, or a character that the model does not know
            note(str(error))
            messages.pop()
            continue
        print(flush=True)
        messages.append({"role": "assistant", "content": "".join(pieces)})


def read_lines():
    """Yields the lines of stdin, with a prompt on a terminal."""
    with suppress(EOFError):
        while True:
            yield input("> " if sys.stdin.isatty() else "")


def run_playground(args) -> None:
    device = pick_device(args.device)
    options = {"trust_recipe": args.trust_recipe}
    extra("playground").serve(args.RUNS, device, args.port, **options).block_thread()


def export_options(args, format: str = "transformers") -> dict:
    if args.dtype == "q8_0" and format != "gguf":
        raise ValueError("dtype=q8_0 is for nanogpt export --format gguf only: choose bfloat16")
    dtype = args.dtype if args.dtype == "q8_0" else getattr(torch, args.dtype)
    options = {"dtype": dtype, "license": args.license, "trust_recipe": args.trust_recipe}
    taken = {name: options.pop(name) for name in EXPORTS[format][1]}
    for name, value in options.items():
        if value not in (None, "unknown", torch.float32):  # the defaults
            raise ValueError(f"--format {format} does not take --{name}: leave it out")
    return {"say": show, **taken}


def run_export(args) -> None:
    format = args.format or ("gguf" if args.to.endswith(".gguf") else "transformers")
    options = export_options(args, format)
    with waiting(f"exporting {args.RUN}", show):
        import_module(EXPORTS[format][0]).export(args.RUN, args.to, **options)


def run_page(args) -> None:
    options = export_options(args)
    with waiting(f"writing a page of {args.RUN}", show):
        extra("page.to_page").write(args.RUN, args.to, prompt=args.prompt, **options)


def run_push(args) -> None:
    with waiting(f"exporting {args.RUN}", show):
        push(args.RUN, args.REPO, private=args.private, **export_options(args))


def run_eval(args) -> None:
    if args.limit and not args.tasks:
        raise ValueError("--limit is only for --tasks")
    of_loss = {"precision": "auto", "data": None, "split": "val", "stride": None}
    for name, default in of_loss.items():
        if args.tasks and getattr(args, name) != default:
            raise ValueError(f"--{name} is for the loss: leave it out with --tasks")
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
    answers = data.meta["splits"][args.split].get("answers")  # of a chat model, its only targets
    # all but the first of each directory
    predicted = answers["tokens"] if answers else data.token_count - len(read_shares(directory))
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
    from nanogpt.run.device import cuda_precision  # not above: it imports accelerate

    if precision == "auto" and device == "cuda":
        precision = cuda_precision()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device, dtype, enabled=dtype is not None)


def evaluate_tasks(args, run: str) -> dict:
    """A run's results on tasks of lm_eval."""
    model, tokenizer, found = load_run(args, run)
    options = {"limit": args.limit, "batch_size": args.batch_size}
    results = extra("eval_tasks").evaluate(model, tokenizer, args.tasks.split(","), **options)
    say = note if args.json else show
    tasks = {}
    for task, values in results:  # each as soon as it exists: a later one may fail
        tasks[task] = values
        for metric, value in values.items():
            if isinstance(value, float):
                say(f"{run:<28} {task:<20} {metric:<28} {value:.4f}")
    where = {"run": run, "checkpoint": found and str(found)}
    return where | {"limit": args.limit, "tasks": tasks}


def run_compare(args) -> None:
    runs = [Path(run) for run in args.RUN]
    if args.json:
        show_json(verdict(group(runs), runs[0]))
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
    with extra("dashboard.server").Server(args.OUT, args.port) as server:
        show(f"the runs in {', '.join(args.OUT)} are shown at {server.address} (Ctrl-C to stop)")
        server.serve_forever()


def run_check_data(args) -> None:
    say = (lambda text: None) if args.json else show
    warnings = extra("check_data").examine(args.DIR, args.block_size, args.parameters, say=say)
    if args.json:
        show_json({"data": args.DIR, "warnings": warnings, **load_meta(args.DIR)})


def run_bench(args) -> None:
    extra("bench").run(args)
