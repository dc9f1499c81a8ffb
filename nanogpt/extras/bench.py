"""Throughput on this machine, compared with the machine's limits in the same run.

    nanogpt bench               # the classic small model: 4 layers, 128 channels, 12 x 64 tokens
    nanogpt bench --model gpt2 --against transformers
    nanogpt bench --profile     # the operators that take the time of a training step

Contenders take turns for several rounds, and the median is shown with its spread: machines are
noisy, and ratios of interleaved measurements mean more than absolute figures. The limit of a
training step is the time of its matmuls and attention without anything else; of sampling, the time
to read the weights; of files, a plain write or read of the same bytes.
"""

import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nanogpt import checkpoint
from nanogpt.config import TrainConfig
from nanogpt.data.tokenizer import BPETokenizer, CharTokenizer
from nanogpt.data.tokens import TokenDataset
from nanogpt.model import GPT, GPTConfig
from nanogpt.ops import ops_for
from nanogpt.ops.cpu import X86, pack
from nanogpt.optim import make_optimizers
from nanogpt.run.device import peak_flops
from nanogpt.run.prepare import prepare
from nanogpt.sample import generate
from nanogpt.train import step

SMALL = {"vocab_size": 65, "block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}
BABY = {"vocab_size": 65, "block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384}
MODELS = {  # configuration and sequences in a batch
    "classic": (GPTConfig(**SMALL), 12),
    "laptop": (GPTConfig.modern(**SMALL, n_inner=320, tie_embeddings=False), 32),
    "baby": (GPTConfig.modern(**BABY), 64),
    "gpt2": (GPTConfig(vocab_size=50257, bias=True, mlp="gelu_tanh"), 1),
}
PARTS = ("train", "sample", "data", "checkpoint", "tokenize")
DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "no": torch.float32,
}  # by Accelerate's names
Seconds = dict[str, list[float]]


def interleave(contenders: dict[str, Callable[[], None]], rounds: int) -> Seconds:
    """Seconds of every call. Contenders take turns; a first round warms up and is not counted."""
    seconds: Seconds = {name: [] for name in contenders}
    for round in range(rounds + 1):
        for name, run in contenders.items():
            wait()
            start = time.perf_counter()
            run()
            wait()
            if round:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def repeat(times: int, run: Callable) -> Callable[[], None]:
    def several() -> None:
        for _ in range(times):
            run()

    return several


class Bench:
    """Measures one model on this machine; every part adds rows, one for each contender."""

    def __init__(self, directory: Path, args):
        """`directory` is for data and checkpoints, `args` are the command's."""
        self.directory, self.rounds, self.against = directory, args.rounds, args.against
        self.config, default_batch = MODELS[args.model]
        self.batch_size = args.batch_size or default_batch
        self.make_data(tokens=max(200_000, 4 * self.config.block_size * self.batch_size))
        settings = {
            "batch_size": self.batch_size,
            "precision": args.precision,
            "device": args.device,
        }
        settings["optimizer"] = "muon" if self.config.norm == "rmsnorm" else "adamw"
        self.train_config = TrainConfig(
            out_dir=str(directory / "out"), data=str(directory), **settings
        )
        prepared = prepare(self.config, self.train_config, quiet=True)
        self.train_config, self.run, self.state = prepared
        self.device = self.run.device
        self.dtype = DTYPES[self.run.accelerator.mixed_precision]
        self.rows: list[dict] = []

    def step(self) -> None:
        step(self.train_config, self.run, self.state)

    def make_data(self, tokens: int) -> None:
        """A data directory of random tokens."""
        ids = np.random.default_rng(0).integers(
            self.config.vocab_size, size=tokens, dtype=np.uint16
        )
        for split in ("train", "val"):
            ids.tofile(self.directory / f"{split}.bin")
        counts = {"tokens": tokens, "bytes": tokens}
        meta = {
            "vocab_size": self.config.vocab_size,
            "dtype": "uint16",
            "splits": {"train": counts, "val": counts},
        }
        (self.directory / "meta.json").write_text(json.dumps(meta))
        CharTokenizer("".join(chr(256 + i) for i in range(self.config.vocab_size))).save(
            self.directory
        )

    def add(self, part: str, unit: str, amount: float, seconds: Seconds, limit: str) -> None:
        """Adds the rows of a part with `amount` units per call; compares with the row `limit`."""
        base = statistics.median(seconds[limit])
        for name, values in seconds.items():
            median = statistics.median(values)
            spread = (max(values) - min(values)) / median
            row = {
                "part": part,
                "who": name,
                "ms": median * 1e3,
                "rate": amount / median,
                "unit": unit,
            }
            self.rows.append(row | {"spread": spread, "of_limit": base / median})

    def train(self) -> None:
        """A training step: this loop, plain torch, transformers; the limit is its matmuls."""
        run, steps = self.run, 4
        ops = ops_for(self.device, self.config, self.batch_size * self.config.block_size)
        model = GPT(self.config, ops).to(self.device)
        muon_dtype = (
            torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32
        )  # as in a run
        optimizers = make_optimizers(model, self.train_config, muon_dtype)
        plain = self.plain_step(model, optimizers, model)
        contenders = {"nanogpt": repeat(steps, self.step), "plain torch": repeat(steps, plain)}
        if self.against:
            contenders["transformers GPT-2"] = repeat(steps, self.transformers_step())
        contenders["products + attention"] = repeat(steps, self.products())
        tokens = self.batch_size * self.config.block_size
        seconds = interleave(contenders, self.rounds)
        self.add("train", "tokens/s", steps * tokens, seconds, limit="products + attention")
        peak = peak_flops(run.settings["environment"]["device"])
        for row in self.rows:
            if row["part"] == "train":
                row["mfu"] = row["rate"] * run.gpt.flops_per_token() / peak if peak else None

    def autocast(self):
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def plain_step(
        self, model: nn.Module, optimizers: list, loss_of: Callable
    ) -> Callable[[], None]:
        """A bare step on a fixed batch: forward, backward, clip, update.

        `loss_of` takes x and y (B, T).
        """
        x, y = self.run.train_data.batch(0, 0, self.batch_size)
        x, y = x.to(self.device), y.to(self.device)

        def step() -> None:
            with self.autocast():
                loss = loss_of(x, y)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

        return step

    def transformers_model(self) -> nn.Module:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        c = self.config
        sizes = {
            "n_embd": c.n_embd,
            "n_layer": c.n_layer,
            "n_head": c.n_head,
            "n_positions": c.block_size,
        }
        dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), c.dropout)
        config = transformers.GPT2Config(**sizes, **dropouts, vocab_size=c.vocab_size)
        return transformers.GPT2LMHeadModel(config).to(self.device)

    def transformers_step(self) -> Callable[[], None]:
        model = self.transformers_model()
        optimizers = [torch.optim.AdamW(model.parameters(), fused=True)]
        return self.plain_step(model, optimizers, lambda x, y: model(input_ids=x, labels=x).loss)

    def products(self) -> Callable[[], None]:
        """The matmuls of a step, forward and backward, and its attention, with nothing else."""
        c, rows = self.config, self.batch_size * self.config.block_size
        qkv = (c.n_head + 2 * c.kv_heads) * c.head_size
        up = 2 * c.inner if c.mlp == "swiglu" else c.inner
        shapes = [
            (c.n_embd, qkv),
            (c.n_head * c.head_size, c.n_embd),
            (c.n_embd, up),
            (c.inner, c.n_embd),
        ] * c.n_layer
        shapes.append((c.n_embd, c.padded_vocab_size))
        make: dict = {"device": self.device, "dtype": self.dtype}
        products = []  # each layer has its own tensors, as in the model
        for inner, outer in shapes:
            sizes = ((rows, inner), (outer, inner), (rows, outer))
            x, w, g = (torch.randn(size, **make) for size in sizes)
            products.append(
                (x, w, g, torch.empty_like(g), torch.empty_like(x), torch.empty_like(w))
            )
        heads = (self.batch_size, c.n_head, c.block_size, c.head_size)
        dtype = (
            torch.float32 if self.device.type == "cpu" else self.dtype
        )  # as the model's attention
        make = {"device": self.device, "dtype": dtype, "requires_grad": True}
        attentions = [[torch.randn(heads, **make) for _ in range(3)] for _ in range(c.n_layer)]
        grad = torch.randn(heads, device=self.device, dtype=dtype)

        def step() -> None:
            for x, w, g, y, dx, dw in products:
                torch.mm(x, w.t(), out=y)
                torch.mm(g, w, out=dx)
                torch.mm(g.t(), x, out=dw)
            for q, k, v in attentions:
                F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(grad)
                q.grad = k.grad = v.grad = None

        return step

    def sample(self, tokens: int = 64) -> None:
        """Greedy sampling of one sequence, with weights in fp32, bf16 and, on a CPU, int8.

        The limit reads the weights from memory.
        """
        model = GPT(self.config).to(self.device).eval()
        weights = sum(p.numel() for name, p in model.named_parameters() if name != "wpe.weight")
        if model.lm_head is not None:
            weights -= model.wte.weight.numel()
        idx = torch.zeros(1, 8, dtype=torch.long, device=self.device)
        block = torch.ones(max(weights, 2**27), device=self.device)
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
        if self.device.type == "cpu" and X86:
            dtypes["int8"] = torch.int8
        for precision, dtype in dtypes.items():
            int8 = dtype == torch.int8
            packed = pack(
                GPT(self.config).to(self.device, torch.float32 if int8 else dtype).eval(), int8
            )
            contenders = {"nanogpt": lambda m=packed: generate(m, idx, tokens, temperature=0)}
            if self.device.type != "cpu":  # which would compile for minutes
                contenders["nanogpt, compiled"] = lambda m=packed: generate(
                    m, idx, tokens, temperature=0, compile=True
                )
            if self.against and dtype == torch.float32:
                contenders["transformers GPT-2"] = self.transformers_generate(idx, tokens)
            reads = tokens * weights * dtype.itemsize / (block.numel() * block.itemsize)
            seconds = interleave(contenders | {"reading the weights": block.sum}, self.rounds)
            seconds["reading the weights"] = [s * reads for s in seconds["reading the weights"]]
            self.add(
                f"sample, {precision}", "tokens/s", tokens, seconds, limit="reading the weights"
            )

    def transformers_generate(self, idx: torch.Tensor, tokens: int) -> Callable:
        model = self.transformers_model().eval()
        options = {
            "max_new_tokens": tokens,
            "min_new_tokens": tokens,
            "do_sample": False,
            "pad_token_id": 0,
        }
        return lambda: model.generate(idx, **options)

    def data(self) -> None:
        """Making batches; the limit copies as many bytes."""
        data, count = TokenDataset(self.directory, "train", self.config.block_size), 50
        numbers = iter(range(0, 2**60, self.batch_size))
        batch = data.batch(0, 0, self.batch_size)
        contenders = {
            "nanogpt": repeat(count, lambda: data.batch(0, next(numbers), self.batch_size)),
            "copying the batch": repeat(count, lambda: [t.clone() for t in batch]),
        }
        tokens = count * self.batch_size * self.config.block_size
        self.add(
            "data",
            "tokens/s",
            tokens,
            interleave(contenders, self.rounds),
            limit="copying the batch",
        )

    def checkpoint(self) -> None:
        """Saving and loading a checkpoint; the limits write (and sync) and read the same bytes."""
        run, out = self.run, self.directory / "checkpoints"
        out.mkdir()
        if not self.state.step:
            self.step()
        optimizers = run.optimizers
        numbers = iter(range(1, 10**6))

        def save() -> Path:
            state = dataclasses.replace(self.state, step=next(numbers))
            collected = checkpoint.collect(run.gpt, optimizers)
            return checkpoint.save(
                out, state, *collected, run.settings, run.tokenizer, keep=1, best=False
            )

        path = save()
        content = os.urandom(sum(file.stat().st_size for file in path.iterdir()))

        def write() -> None:  # as saving does: a new file each time, the old one removed
            with open(self.directory / "new", "wb") as file:
                file.write(content)
                os.fsync(file.fileno())
            (self.directory / "plain").unlink(missing_ok=True)
            (self.directory / "new").rename(self.directory / "plain")

        megabytes = len(content) / 1e6
        seconds = interleave({"nanogpt": save, "plain write": write}, self.rounds)
        self.add("save", "MB/s", megabytes, seconds, limit="plain write")
        latest = checkpoint.list_checkpoints(out)[-1]
        contenders = {
            "nanogpt": lambda: checkpoint.restore(latest, run.gpt, optimizers),
            "plain read": lambda: (self.directory / "plain").read_bytes(),
        }
        self.add("load", "MB/s", megabytes, interleave(contenders, self.rounds), limit="plain read")

    def tokenize(self) -> None:
        """Tokenizing; GPT-2's BPE is compared with plain tiktoken, if its files are available."""
        text = "\n".join(
            f"FIRST CITIZEN {i}:\nBefore we proceed any further, hear me speak.\n"
            for i in range(5000)
        )
        chars = CharTokenizer.train(text)
        contenders = {
            "nanogpt": lambda: chars.encode(text),
            "copying the text": lambda: text.encode("utf-32-le"),
        }
        seconds = interleave(contenders, self.rounds)
        self.add("tokenize, char", "tokens/s", len(text), seconds, limit="copying the text")
        try:
            gpt2 = BPETokenizer.gpt2()
        except OSError as error:
            print(f"note: no figure for GPT-2's tokenizer: {error}", file=sys.stderr)
            return
        contenders = {
            "nanogpt": lambda: gpt2.encode(text),
            "tiktoken": lambda: gpt2.tiktoken.encode_ordinary(text),
        }
        seconds = interleave(contenders, self.rounds)
        self.add("tokenize, gpt2", "tokens/s", len(gpt2.encode(text)), seconds, limit="tiktoken")

    def profile(self, steps: int = 10) -> str:
        """Where the time of a training step goes, by operator."""
        self.step()
        with torch.profiler.profile() as profile:
            for _ in range(steps):
                self.step()
        by = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        return profile.key_averages().table(sort_by=by, row_limit=20, max_name_column_width=50)

    def table(self) -> str:
        """The rows as text."""
        env = self.run.settings["environment"]
        lines = [
            f"{self.run.gpt.get_num_params():,} parameters, "
            f"batches of {self.batch_size} x {self.config.block_size}; "
            f"{env['device']}, {env['threads']} threads, {env['precision']}; "
            f"median of {self.rounds} rounds",
            f"{'':16} {'':22} {'':>15} {'':10} {'spread':>7} {'of limit':>9} {'MFU':>6}",
        ]
        for row in self.rows:
            mfu = "" if "mfu" not in row else "n/a" if row["mfu"] is None else f"{row['mfu']:.1%}"
            lines.append(
                f"{row['part']:16} {row['who']:22} {row['rate']:>15,.1f} {row['unit']:10} "
                f"{row['spread']:>7.0%} "
                f"{row['of_limit']:>9.0%} {mfu:>6}"
            )
        return "\n".join(lines)


def run(args) -> None:
    """Prints a table, or one JSON object."""
    parts = [part for part in args.parts.split(",") if part]
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"parts={args.parts!r}: {part!r} is not one of {', '.join(PARTS)}")
    if args.model not in MODELS:
        raise ValueError(f"model={args.model!r} is not one of {', '.join(MODELS)}")
    with tempfile.TemporaryDirectory(prefix="nanogpt-bench-") as directory:
        bench = Bench(Path(directory), args)
        if args.profile:
            print(bench.profile())
            return
        for part in parts:
            getattr(bench, part)()
    if args.json:
        print(
            json.dumps(
                {
                    "model": args.model,
                    "environment": bench.run.settings["environment"],
                    "rows": bench.rows,
                }
            )
        )
    else:
        print(bench.table())
