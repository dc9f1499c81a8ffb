"""The bench: what its figures measure, not how large they are."""

import json
import tempfile

import pytest
import torch

from nanogpt import GPTConfig
from nanogpt.extras import bench

TINY = GPTConfig(vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(bench.MODELS, "classic", (TINY, 2))


def test_contenders_take_turns_and_the_first_round_does_not_count():
    order = []
    contenders = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = bench.interleave(contenders, 3, torch.device("cpu"))
    assert order == ["a", "b"] * 4 and [len(v) for v in seconds.values()] == [3, 3]


def test_the_clock_waits_for_a_gpu(monkeypatch):
    order = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: order.append("wait"))
    bench.interleave({"a": lambda: order.append("a")}, 1, torch.device("mps"))
    assert order == ["wait", "a", "wait"] * 2


def test_figures_are_consistent_and_nothing_is_left_behind(tmp_path, monkeypatch, command):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seconds = {"train": [1.0, 2.0, 4.0], "matmul": [0.5] * 3}
    monkeypatch.setattr(bench, "interleave", lambda contenders, rounds, device: seconds)
    found = json.loads(command("bench", "--json", "--device=cpu"))
    assert (found["ms"], found["spread"]) == (2000, 1.5)
    assert found["rate"] == 4 * 2 * 16 / 2  # four steps of 2 x 16 tokens a call
    matrices = 12 * TINY.n_layer * TINY.n_embd**2 + 65 * TINY.n_embd + TINY.n_layer * 2 * TINY.n_embd
    flops = 6 * matrices + 12 * TINY.n_layer * TINY.n_embd * TINY.block_size
    assert found["of_limit"] == pytest.approx(64 * flops / (2 * 1024**3 / 0.5), rel=0.05)


def test_the_profile_lists_operators(command):
    assert "aten::" in command("bench", "--profile")
