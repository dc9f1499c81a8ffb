"""Throughput on this machine, compared with the machine's limits in the same run.

    nanogpt bench               # the classic small model: 4 layers, 128 channels, 12 x 64 tokens
    nanogpt bench --model gpt2 --against transformers
    nanogpt bench --profile     # the operators that take the time of a training step

Contenders take turns for several rounds, and the median is shown with its spread: machines are
noisy, and ratios of interleaved measurements mean more than absolute figures.
"""

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nanogpt.config import TrainConfig
from nanogpt.data.tokenizer import CharTokenizer
from nanogpt.hub import weights
from nanogpt.model import GPT, GPTConfig
from nanogpt.ops import ops_for
from nanogpt.ops.cpu import X86, pack
from nanogpt.optim import make_optimizers
from nanogpt.run.device import gpu_gib, peak_flops
from nanogpt.run.prepare import prepare
from nanogpt.sample import generate
from nanogpt.train import step

SMALL = {"vocab_size": 65, "block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}
BABY = {"vocab_size": 65, "block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384}
MODELS = {  # configuration and sequences in a batch; a GPU measures its launches with a small one
    "classic": (GPTConfig(**SMALL), 12),
    "laptop": (GPTConfig.modern(**SMALL, n_inner=320, tie_embeddings=False), 32),
    "baby": (GPTConfig.modern(**BABY), 64),
    "gpt2": (GPTConfig(vocab_size=50257, bias=True, mlp="gelu_tanh"), 12),
}
ON_CPU = {"gpt2": 1}  # sequences, where another number than on a GPU
PARTS = ("train", "sample")
# by Accelerate's names
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}
STEPS = 4  # training steps in a call that is timed
Contenders = dict[str, Callable[[], object]]


def interleave(contenders: Contenders, rounds: int) -> dict[str, list[float]]:
    """Seconds of every call. Contenders take turns; a first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
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
    """Waits until a GPU has finished its queue."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def repeat(times: int, run: Callable) -> Callable[[], None]:
    def several() -> None:
        for _ in range(times):
            run()

    return several


class Bench:
    """Measures one model on this machine; every part adds rows, one for each contender."""

    def __init__(self, directory: Path, args):
        """`directory` is for data and checkpoints, `args` are the command's."""
        self.directory = directory
        self.rounds = args.rounds
        self.against = args.against
        self.config, default_batch = MODELS[args.model]
        if not gpu_gib(args.device):
            default_batch = ON_CPU.get(args.model, default_batch)
        self.batch_size = args.batch_size or default_batch
        self.tokens = self.batch_size * self.config.block_size  # in a batch
        self.make_data(max(200_000, 4 * self.tokens))
        train_config = TrainConfig(
            out_dir=str(directory / "out"),
            data=str(directory),
            batch_size=self.batch_size,
            precision=args.precision,
            device=args.device,
            optimizer="muon" if self.config.norm == "rmsnorm" else "adamw",
        )
        self.train_config, self.run, self.state = prepare(self.config, train_config, quiet=True)
        self.device = self.run.device
        self.dtype = DTYPES[self.run.accelerator.mixed_precision]
        self.rows: list[dict] = []

    def make_data(self, tokens: int) -> None:
        """Writes a data directory of random tokens."""
        vocab_size = self.config.vocab_size
        ids = np.random.default_rng(0).integers(vocab_size, size=tokens, dtype="<u2")
        counts = {"tokens": tokens, "bytes": tokens}
        for split in ("train", "val"):
            ids.tofile(self.directory / f"{split}.bin")
        splits = {"train": counts, "val": counts}
        meta = {"vocab_size": vocab_size, "dtype": "uint16", "splits": splits}
        (self.directory / "meta.json").write_text(json.dumps(meta))
        CharTokenizer("".join(chr(256 + i) for i in range(vocab_size))).save(self.directory)

    def measure(self, part: str, amount: float, contenders: Contenders, share: float = 1.0) -> None:
        """Adds the rows of a part, with `amount` tokens a call.

        The last contender is the limit; only a `share` of its time is counted.
        """
        seconds = interleave(contenders, self.rounds)
        last = list(contenders)[-1]
        seconds[last] = [share * s for s in seconds[last]]
        limit = statistics.median(seconds[last])
        for name, values in seconds.items():
            median = statistics.median(values)
            self.rows.append(
                {
                    "part": part,
                    "who": name,
                    "ms": median * 1e3,
                    "rate": amount / median,
                    "unit": "tokens/s",
                    "spread": (max(values) - min(values)) / median,
                    "of_limit": limit / median,
                }
            )

    def step(self) -> None:
        step(self.train_config, self.run, self.state)

    def train(self) -> None:
        """A training step: this loop, plain torch, transformers; the limit is its matmuls."""
        model = GPT(self.config, ops_for(self.device, self.config, self.tokens)).to(self.device)
        # Muon's matmuls are in bf16 in a run in bf16, but never in fp16
        muon_dtype = torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32
        optimizers = make_optimizers(model, self.train_config, muon_dtype)
        contenders = {"nanogpt": self.step, "plain torch": self.plain_step(model, optimizers)}
        if self.against:
            native = weights.to_transformers(GPT(self.config)).to(self.device).train()
            adamw = torch.optim.AdamW(native.parameters(), fused=True)
            contenders["transformers"] = self.plain_step(native, [adamw])
        contenders["matmuls + attention"] = self.matmuls()
        contenders = {name: repeat(STEPS, run) for name, run in contenders.items()}
        self.measure("train", STEPS * self.tokens, contenders)
        peak = peak_flops(self.run.settings["environment"]["device"])
        for row in self.rows:
            if row["part"] == "train":
                row["mfu"] = row["rate"] * self.run.gpt.flops_per_token() / peak if peak else None

    def autocast(self) -> torch.autocast:
        mixed = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if mixed else None, enabled=mixed)

    def plain_step(self, model: nn.Module, optimizers: list) -> Callable[[], None]:
        """A bare step on a fixed batch: forward, backward, clip, update."""
        x, y = (t.to(self.device) for t in self.run.train_data.batch(0, 0, self.batch_size))

        def plain_step() -> None:
            with self.autocast():
                loss = model(x, y) if isinstance(model, GPT) else model(x, labels=x).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

        return plain_step

    def matmuls(self) -> Callable[[], None]:
        """The matmuls of a step, forward and backward, and its attention, with nothing else."""
        c, gpt = self.config, self.run.gpt
        like: dict = {"device": self.device, "dtype": self.dtype}
        tensors = []  # each layer has its own, as in the model
        for weight in [*(p for p in gpt.h.parameters() if p.ndim == 2), gpt.head.weight]:
            outer, inner = weight.shape
            x = torch.randn(self.tokens, inner, **like)
            w = torch.randn(outer, inner, **like)
            g = torch.randn(self.tokens, outer, **like)
            tensors.append((x, w, g, *map(torch.empty_like, (g, x, w))))
        if self.device.type == "cpu":
            like["dtype"] = torch.float32  # as the model's attention
        heads = (self.batch_size, c.n_head, c.block_size, c.head_size)
        grad = torch.randn(heads, **like)
        like["requires_grad"] = True
        layers = [[torch.randn(heads, **like) for _ in "qkv"] for _ in range(c.n_layer)]

        def matmuls() -> None:
            for x, w, g, y, dx, dw in tensors:
                torch.mm(x, w.t(), out=y)
                torch.mm(g, w, out=dx)
                torch.mm(g.t(), x, out=dw)
            for q, k, v in layers:
                F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(grad)
                q.grad = k.grad = v.grad = None

        return matmuls

    def sample(self, tokens: int = 64) -> None:
        """Greedy sampling of one sequence, with weights in fp32, bf16 and, on a CPU, int8.

        The limit reads the weights from memory.
        """
        model = GPT(self.config).to(self.device).eval()
        looked_up = ("wpe.weight", "wte.weight" if model.lm_head else "")  # a row a token
        read = sum(p.numel() for name, p in model.named_parameters() if name not in looked_up)
        block = torch.ones(max(read, 2**27), device=self.device)
        idx = torch.zeros(1, 8, dtype=torch.long, device=self.device)
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
        if self.device.type == "cpu" and X86:
            dtypes["int8"] = torch.int8
        for name, dtype in dtypes.items():
            int8 = dtype == torch.int8
            packed = copy.deepcopy(model).to(torch.float32 if int8 else dtype)
            sample = partial(generate, pack(packed, int8), idx, tokens, temperature=0)
            contenders: Contenders = {"nanogpt": sample}
            if self.device.type != "cpu":  # a CPU would compile for minutes
                contenders["nanogpt, compiled"] = partial(sample, compile=True)
            contenders["reading the weights"] = block.sum
            share = tokens * read * dtype.itemsize / (block.numel() * block.itemsize)
            self.measure(f"sample, {name}", tokens, contenders, share)

    def profile(self, steps: int = 10) -> str:
        """The operators in which a training step spends its time."""
        self.step()
        with torch.profiler.profile() as profile:
            for _ in range(steps):
                self.step()
        by = f"self_{'cuda' if self.device.type == 'cuda' else 'cpu'}_time_total"
        return profile.key_averages().table(sort_by=by, row_limit=20, max_name_column_width=50)

    def table(self) -> str:
        """The rows as text."""
        env = self.run.settings["environment"]
        lines = [
            f"{self.run.gpt.get_num_params():,} parameters, "
            f"batches of {self.batch_size} x {self.config.block_size}; {env['device']}, "
            f"{env['threads']} threads, {env['precision']}; median of {self.rounds} rounds",
            f"{'spread':>74} {'of limit':>9} {'MFU':>6}",
        ]
        for row in self.rows:
            mfu = f"{row['mfu']:.1%}" if row.get("mfu") else ""
            lines.append(
                f"{row['part']:16} {row['who']:22} {row['rate']:>15,.1f} {row['unit']:10} "
                f"{row['spread']:>7.0%} {row['of_limit']:>9.0%} {mfu:>6}"
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
        environment = bench.run.settings["environment"]
        print(json.dumps({"model": args.model, "environment": environment, "rows": bench.rows}))
    else:
        print(bench.table())
