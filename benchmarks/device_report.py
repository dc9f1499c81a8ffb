"""A report on the device at hand: tests, then throughput.

    PYTHONPATH=. python benchmarks/device_report.py                    # under 9 minutes on one GPU
    PYTHONPATH=. python benchmarks/device_report.py --device cpu --tiny    # a minute, to try it

Writes report.json and report.md, a table for LOG.md, into `--out`. It downloads nothing, and needs
torch, accelerate, transformers, tiktoken and pytest. A part that takes too long is ended and
reported. With a clone of nanoGPT (`--nanogpt`), its training step is measured as well.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from pathlib import Path

ROOT = Path(__file__).parents[1]
# models of `nanogpt bench`, and sequences: nanoGPT's, and more for a large GPU
CASES = (("classic", 12), ("baby", 64), ("gpt2", 12), ("gpt2", 64))
THEIRS = ("classic", "gpt2")  # those that nanoGPT has
LIMIT = "matmuls + attention"  # of a training step, in `nanogpt bench`
ENVIRONMENT = """
import json, sys
from nanogpt import TrainConfig
from nanogpt.run.device import environment_of, gpu_gib, make_accelerator
accelerator = make_accelerator(TrainConfig(device=sys.argv[1]))
env = environment_of(accelerator, 0) | {"memory_gib": round(gpu_gib(sys.argv[1]), 1)}
env["kind"] = accelerator.device.type
del env["threads"]
print(json.dumps(env))
"""

# seconds of a training step of nanoGPT's model, as its train.py takes one: compiled on CUDA, under autocast
NANOGPT = """
import json, statistics, sys, time, torch
from nanogpt.extras.bench import MODELS
from nanogpt.train import synchronize
folder, name, batch, kind, dtype, rounds = sys.argv[1:]
sys.path.insert(0, folder)
from model import GPT, GPTConfig
config, _ = MODELS[name]
names = ("block_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
sizes = {name: getattr(config, name) for name in names}
model = GPT(GPTConfig(vocab_size=config.padded_vocab_size, **sizes)).to(kind)
optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), kind)
model = torch.compile(model) if kind == "cuda" else model
x, y = torch.randint(config.vocab_size, (2, int(batch), config.block_size), device=kind)
half = dtype != "float32"
autocast = torch.autocast(kind, getattr(torch, dtype) if half else None, enabled=half)
seconds = []
for _ in range(3 + int(rounds)):
    synchronize(x.device)
    start = time.perf_counter()
    with autocast:
        _, loss = model(x, y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    synchronize(x.device)
    seconds.append(time.perf_counter() - start)
median = statistics.median(seconds[3:])
spread = (max(seconds[3:]) - min(seconds[3:])) / median
print(json.dumps({"rate": x.numel() / median, "spread": spread}))
"""


class Report:
    def __init__(self, device: str, tiny: bool, out: Path, minutes: float):
        self.device, self.tiny, self.out = device, tiny, out
        self.end = time.monotonic() + 60 * minutes
        self.environment: dict = {"machine": platform.platform()}
        self.tests: list[dict] = []
        self.rows: list[dict] = []
        self.problems: list[str] = []

    def run(self, name: str, *command: str, share: float = 1.0) -> str | None:
        """The output of a Python command, which may take a `share` of the time that is left.

        If it fails or takes longer, that is one of the problems; None if it takes longer.
        """
        env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        if self.device != "auto":
            env["NANOGPT_DEVICE"] = self.device
        patience = max(1.0, share * (self.end - time.monotonic()))
        print(f"{name}, {patience:.0f} s at most …", file=sys.stderr, flush=True)
        command = (sys.executable, *command)
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=patience
            )
        except subprocess.TimeoutExpired:
            self.problems.append(f"{name}: not done after {patience:.0f} s")
            return None
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            self.problems.append(f"{name}: exit code {done.returncode}: {last:.300}")
        return done.stdout

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
        self.run("tests", *command, share=0.6)
        if not results.is_file():
            return
        for case in xml.parse(results).getroot().iter("testcase"):
            row = {"test": case.get("name"), "result": "passed", "why": ""}
            row["seconds"] = round(float(case.get("time")), 1)
            for outcome in case:
                if outcome.tag in ("failure", "error", "skipped"):
                    row["result"] = "skipped" if outcome.tag == "skipped" else "FAILED"
                    row["why"] = (outcome.get("message") or "").splitlines()[0][:200]
            self.tests.append(row)

    def bench(self) -> None:
        """`nanogpt bench` of several models, each in an equal share of the time that is left."""
        cases = (("classic", 2),) if self.tiny else CASES
        rounds = 1 if self.tiny else 3
        for i, (model, batch) in enumerate(cases):
            command = f"-m nanogpt bench --model {model} --batch_size {batch} --rounds {rounds}"
            command += f" --device {self.device} --json"
            name = f"bench {model} {batch}"
            printed = self.run(name, *command.split(), share=1 / (len(cases) - i))
            if printed and printed.startswith("{"):
                rows = json.loads(printed.splitlines()[-1])["rows"]
                self.rows += [{"model": model, "batch": batch, **row} for row in rows]

    def bench_nanogpt(self, folder: Path) -> None:
        """The same training step in nanoGPT's own code, if it is there."""
        env = self.environment
        if not (folder / "model.py").is_file() or "kind" not in env:
            return
        dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(env["precision"], "float32")
        for limit in [row for row in self.rows if row["who"] == LIMIT and row["model"] in THEIRS]:
            model, batch = limit["model"], limit["batch"]
            sizes = model, str(batch), env["kind"], dtype, "2" if self.tiny else "20"
            printed = self.run(f"nanoGPT {model} {batch}", "-c", NANOGPT, str(folder), *sizes)
            if printed:
                row = json.loads(printed.splitlines()[-1])
                row |= {"model": model, "batch": batch, "part": "train", "who": "nanoGPT"}
                row |= {"unit": "tokens/s", "of_limit": row["rate"] / limit["rate"]}
                self.rows.append(row)

    def table(self) -> str:
        """The report as Markdown."""
        environment = ", ".join(f"{name} {value}" for name, value in self.environment.items())
        lines = [environment, "", "| test | result | seconds |", "| --- | --- | --- |"]
        for row in self.tests:
            why = f": {row['why']}".replace("|", "/") if row["why"] else ""
            lines.append(f"| {row['test']} | {row['result']}{why} | {row['seconds']} |")
        lines += ["", "| model | batch | part | who | rate | of limit | spread | MFU |"]
        lines.append("| --- " * 8 + "|")
        for row in self.rows:
            mfu = f"{row['mfu']:.1%}" if row.get("mfu") else ""
            lines.append(
                f"| {row['model']} | {row['batch']} | {row['part']} | {row['who']} | {row['rate']:,.0f} "
                f"{row['unit']} | {row['of_limit']:.0%} | {row['spread']:.0%} | {mfu} |"
            )
        return "\n".join([*lines, "", *(f"- {problem}" for problem in self.problems)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--tiny", action="store_true", help="a few tests and one small model")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "device")
    parser.add_argument("--nanogpt", type=Path, default=ROOT / "nanoGPT", help="a clone of it")
    parser.add_argument("--minutes", type=float, default=8.5, help="for all of it (default: 8.5)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    report = Report(args.device, args.tiny, args.out.resolve(), args.minutes)
    report.look()
    report.test()
    report.bench()
    report.bench_nanogpt(args.nanogpt.resolve())
    found = {
        "environment": report.environment,
        "tests": report.tests,
        "bench": report.rows,
        "problems": report.problems,
    }
    (args.out / "report.json").write_text(json.dumps(found, indent=2) + "\n")
    (args.out / "report.md").write_text(report.table() + "\n")
    print(report.table())
    failed = any(row["result"] == "FAILED" for row in report.tests)
    return 1 if failed or report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
