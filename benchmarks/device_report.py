"""A report on the device at hand: tests, then throughput.

    python benchmarks/device_report.py                       # under 9 minutes on one GPU
    python benchmarks/device_report.py --parts tests         # again, a part that was cut short
    python benchmarks/device_report.py --device cpu --tiny   # two minutes, to try it

Writes report.json and report.md, a table for LOG.md, into `--out` after each part, and what failed
parts printed to errors.txt. It downloads nothing, and needs torch, accelerate, transformers,
tiktoken, numpy and pytest. A part that takes too long is ended and reported. `tests` is
`pytest -m device`; `time` trains recipes/shakespeare.py on data/shakespeare_char until it reaches
nanoGPT's loss on a GPU; `bench` is `nanogpt bench` of the baby GPT and of GPT-2; `nanogpt` is
nanoGPT's training step at the same sizes, with the code of a clone (`--nanogpt`) or, without one,
the same formula in plain torch.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a plain copy of the repository, not installed

from data_prep import text  # noqa: E402
from nanogpt.run import metrics  # noqa: E402

PARTS = ("tests", "time", "bench", "nanogpt")
# models of `nanogpt bench`, and sequences: nanoGPT's, and more for a large GPU
CASES = (("baby", 64), ("gpt2", 12), ("gpt2", 64))
TINY = (("classic", 2),)
TARGET = 1.4697  # nanoGPT's README, for the baby GPT
ENVIRONMENT = """
import json, sys
from nanogpt import TrainConfig
from nanogpt.run.device import gpu_gib, make_accelerator, set_up
config = TrainConfig(device=sys.argv[1])
accelerator = make_accelerator(config)
env = set_up(config, accelerator) | {"memory_gib": round(gpu_gib(sys.argv[1]), 1)}
env["kind"] = accelerator.device.type
del env["threads"]
print(json.dumps(env))
"""

# A training step of nanoGPT's model, as its train.py takes one: compiled on CUDA, under autocast.
# The GPT-2 family here, with torch's own operators, is its formula.
NANOGPT = """
import json, statistics, sys, time, torch
from nanogpt import GPT, GPTConfig
from nanogpt.extras.bench import MODELS, STEPS
from nanogpt.run.device import peak_flops
from nanogpt.train import synchronize
folder, name, batch, kind, dtype, rounds = sys.argv[1:]
config, _ = MODELS[name]
names = ("block_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
sizes = {name: getattr(config, name) for name in names} | {"vocab_size": config.padded_vocab_size}
with torch.device("meta"):
    flops = GPT(GPTConfig(**sizes)).flops_per_token()
peak = peak_flops(torch.cuda.get_device_name()) if kind == "cuda" else None
if folder:
    sys.path.insert(0, folder)
    from model import GPT, GPTConfig
model = GPT(GPTConfig(**sizes)).to(kind)
torch.set_float32_matmul_precision("high")
optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.95), fused=True)
model = torch.compile(model) if kind == "cuda" else model
x, y = torch.randint(config.vocab_size, (2, int(batch), config.block_size), device=kind)
half = dtype != "float32"
autocast = torch.autocast(kind, getattr(torch, dtype) if half else None, enabled=half)
seconds = []
for _ in range(1 + int(rounds)):
    synchronize(x.device)
    start = time.perf_counter()
    for _ in range(STEPS):  # as many between two waits as `nanogpt bench` takes
        with autocast:
            loss = model(x, y)[1] if folder else model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    synchronize(x.device)
    seconds.append(time.perf_counter() - start)
seconds = seconds[1:]  # without the first, which compiles
median = statistics.median(seconds)
spread = (max(seconds) - min(seconds)) / median
rate = STEPS * x.numel() / median
print(json.dumps({"rate": rate, "spread": spread, "mfu": rate * flops / peak if peak else None}))
"""


class Report:
    def __init__(self, device: str, tiny: bool, out: Path, minutes: float):
        self.device, self.tiny, self.out = device, tiny, out
        self.end = time.monotonic() + 60 * minutes
        self.environment: dict = {"machine": platform.platform()}
        self.tests: list[dict] = []
        self.rows: list[dict] = []
        self.rounds = 1 if tiny else 5
        self.reached: dict = {}  # of `time_to_loss`
        self.problems: list[str] = []

    def run(self, name: str, *command: str, share: float = 1.0) -> str | None:
        """The output of a Python command, which may take a `share` of the time that is left.

        If it fails or takes longer, that is one of the problems, and the result is None.
        """
        env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        if self.device != "auto":
            env["NANOGPT_DEVICE"] = self.device
        patience = max(1.0, share * (self.end - time.monotonic()))
        print(f"{name}, {patience:.0f} s at most …", file=sys.stderr, flush=True)
        command = (sys.executable, *command)
        with subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                printed, errors = process.communicate(timeout=patience)
            except subprocess.TimeoutExpired:
                self.problems.append(f"{name}: not done after {patience:.0f} s")
                process.send_signal(signal.SIGINT)  # pytest then writes the results it has
                try:
                    process.communicate(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                return None
        if process.returncode:
            last = (errors.strip() or printed.strip() or "no message").splitlines()[-1]
            self.problems.append(f"{name}: exit code {process.returncode}: {last:.300}")
            with open(self.out / "errors.txt", "a") as file:
                file.write(f"{name}\n{printed}\n{errors}\n")
            return None
        return printed

    def look(self) -> None:
        """Versions and hardware."""
        printed = self.run("environment", "-c", ENVIRONMENT, self.device)
        if printed:
            self.environment |= json.loads(printed.splitlines()[-1])

    def test(self) -> None:
        """`pytest -m device`."""
        results = self.out / "junit.xml"
        results.unlink(missing_ok=True)
        command = f"-m pytest -q -m device --junitxml={results} tests/device/test_device.py".split()
        if self.tiny:
            command += ["-k", "(gpt2 or batch) and not compiled"]
        self.run("tests", *command, share=0.3)
        if not results.is_file():
            return
        for case in xml.parse(results).getroot().iter("testcase"):
            row = {"test": case.get("name"), "result": "passed", "why": ""}
            row["seconds"] = round(float(case.get("time")), 1)
            for outcome in case:
                if outcome.tag in ("failure", "error", "skipped"):
                    row["result"] = "skipped" if outcome.tag == "skipped" else "FAILED"
                    row["why"] = (outcome.get("message") or "").partition("\n")[0][:200]
            self.tests.append(row)

    def bench(self) -> None:
        """`nanogpt bench` of several models, each in an equal share of the time that is left."""
        for model, batch in TINY if self.tiny else CASES:
            command = f"-m nanogpt bench --model {model} --batch_size {batch}"
            command += f" --rounds {self.rounds} --device {self.device} --json"
            printed = self.run(f"bench {model} {batch}", *command.split(), share=0.4)
            if printed:
                row = json.loads(printed.splitlines()[-1])  # warnings may come before it
                self.rows.append({"who": "nanogpt", **row, "batch": batch})

    def bench_nanogpt(self, folder: Path) -> None:
        """The same training step in nanoGPT's own code, if it is there, or by its formula."""
        env = self.environment
        if "kind" not in env:
            return
        dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(env["precision"], "float32")
        clone = str(folder) if (folder / "model.py").is_file() else ""
        ours = {(row["model"], row["batch"]): row for row in self.rows}
        for model, batch in TINY if self.tiny else CASES:
            sizes = model, str(batch), env["kind"], dtype, str(self.rounds)
            printed = self.run(f"nanoGPT {model} {batch}", "-c", NANOGPT, clone, *sizes, share=0.4)
            if printed:
                row = json.loads(printed.splitlines()[-1])
                row |= {"model": model, "batch": batch}
                row["who"] = "nanoGPT" if clone else "nanoGPT's formula"
                our = ours.get((model, batch))
                row["of_limit"] = our["of_limit"] * row["rate"] / our["rate"] if our else None
                self.rows.append(row)

    def time_to_loss(self) -> None:
        """Seconds of training, and in all, in which recipes/shakespeare.py reaches TARGET."""
        data = ROOT / "data" / "shakespeare_char"
        with tempfile.TemporaryDirectory() as directory:
            flags = f"--out_dir {directory}/out --device {self.device} --sample_tokens 0"
            if self.tiny:
                data = Path(directory) / "data"
                source = Path(directory) / "input.txt"
                source.write_text("To be, or not to be: that is the question.\n" * 200)
                text.prepare([str(source)], data)
                flags += " --max_iters 20 --eval_interval 10"
            elif not (data / "train.bin").is_file():
                self.problems.append(f"time: no {data}: python -m data_prep.shakespeare")
                return
            else:
                flags += " --eval_interval 100"
            start = time.monotonic()
            command = f"recipes/shakespeare.py --data {data} {flags}"
            self.run("time to the loss", *command.split(), share=0.5)
            wall = time.monotonic() - start
            lines = metrics.read(Path(directory) / "out" / metrics.METRICS)  # also if cut short
            losses = [line for line in lines if "val_loss" in line]
            if not losses:
                return
            reached = [line for line in losses if line["val_loss"] <= TARGET]
            best = min(losses, key=lambda line: line["val_loss"])
            self.reached = {"target": TARGET, "first": reached[:1], "best": best, "wall": wall}

    def write(self) -> None:
        """Writes what is known so far: a report that is killed keeps its finished parts."""
        found = {
            "environment": self.environment,
            "tests": self.tests,
            "bench": self.rows,
            "time": self.reached,
            "problems": self.problems,
        }
        (self.out / "report.json").write_text(json.dumps(found, indent=2) + "\n")
        (self.out / "report.md").write_text(self.table() + "\n")

    def table(self) -> str:
        """The report as Markdown."""
        environment = ", ".join(f"{name} {value}" for name, value in self.environment.items())
        lines = [environment, "", "| test | result | seconds |", "| --- | --- | --- |"]
        for row in self.tests:
            why = f": {row['why']}".replace("|", "/") if row["why"] else ""
            lines.append(f"| {row['test']} | {row['result']}{why} | {row['seconds']} |")
        lines += ["", "| model | batch | who | rate | of limit | spread | MFU |"]
        lines.append("| --- " * 7 + "|")
        for row in self.rows:
            mfu = f"{row['mfu']:.1%}" if row.get("mfu") else ""
            of_limit = f"{row['of_limit']:.0%}" if row["of_limit"] else ""
            lines.append(
                f"| {row['model']} | {row['batch']} | {row['who']} "
                f"| {row['rate']:,.0f} tokens/s | {of_limit} | {row['spread']:.0%} | {mfu} |"
            )
        lines.append("")
        for what, line in (
            ("first", self.reached.get("first")),
            ("best", [self.reached.get("best")]),
        ):
            if line and line[0]:
                lines.append(
                    f"- {what} loss{f' of {TARGET} or less' if what == 'first' else ''}: "
                    f"{line[0]['val_loss']:.4f} after {line[0]['train_seconds']:.1f} s of training"
                )
        if self.reached:
            lines.append(f"- the whole run: {self.reached['wall']:.0f} s with compiling")
        return "\n".join([*lines, "", *(f"- {problem}" for problem in self.problems)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="a few tests and one small model")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "device")
    parser.add_argument("--nanogpt", type=Path, default=ROOT / "nanoGPT", help="a clone of it")
    parser.add_argument("--minutes", type=float, default=8.5, help="for all of it (default: 8.5)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    report = Report(args.device, args.tiny, args.out.resolve(), args.minutes)
    do = {
        "tests": report.test,
        "bench": report.bench,
        "nanogpt": lambda: report.bench_nanogpt(args.nanogpt.resolve()),
        "time": report.time_to_loss,
    }
    report.look()
    for part in args.parts.split(","):
        do[part]()
        report.write()
    print(report.table())
    failed = any(row["result"] == "FAILED" for row in report.tests)
    return 1 if failed or report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
