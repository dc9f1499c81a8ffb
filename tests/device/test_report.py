"""The report on a CPU, with a few tests and one small model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nanogpt.ops.cpu import X86

REPORT = Path(__file__).with_name("report.py")
# as much of nanoGPT's model.py as its train.py uses
THEIRS = """
from dataclasses import dataclass
import torch

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = torch.nn.Embedding(config.vocab_size, config.n_embd)

    def forward(self, idx, targets):
        logits = self.wte(idx) @ self.wte.weight.T
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), learning_rate, betas, weight_decay=weight_decay)
"""


@pytest.mark.slow
def test_it_tests_and_measures_and_writes_json_and_markdown(tmp_path):
    (tmp_path / "model.py").write_text(THEIRS)
    command = [sys.executable, REPORT, "--device", "cpu", "--tiny", "--out", tmp_path, "--nanogpt", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    report, table = json.loads((tmp_path / "report.json").read_text()), (tmp_path / "report.md").read_text()
    assert done.returncode == 0, (report["problems"], report["tests"])
    assert report["environment"]["device"] == "cpu" and report["problems"] == []
    results = {row["test"]: row["result"] for row in report["tests"]}
    assert results["test_logits_and_gradients_are_the_cpus_in_fp32[gpt2]"] == "passed"
    assert results["test_a_batch_that_does_not_fit_is_halved"] == "skipped" and "FAILED" not in results.values()
    parts = {"train", "sample, fp32", "sample, bf16"} | ({"sample, int8"} if X86 else set())
    assert {row["part"] for row in report["bench"]} == parts
    assert [row["who"] for row in report["bench"]].count("nanoGPT") == 1 and "| classic | train | nanoGPT |" in table
    assert table.strip() == done.stdout.strip() and "| classic | train | nanogpt |" in table


@pytest.mark.slow
def test_what_does_not_end_in_time_is_said_and_the_report_is_written_all_the_same(tmp_path):
    command = [sys.executable, REPORT, "--device", "cpu", "--tiny", "--minutes", "0", "--out", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    problems = json.loads((tmp_path / "report.json").read_text())["problems"]
    assert [problem.split(":")[0] for problem in problems] == ["environment", "tests", "bench classic"]
    assert "- tests: not done after 1 s" in (tmp_path / "report.md").read_text()
