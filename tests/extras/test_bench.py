"""The bench: what its figures measure, not how large they are."""

import json
import tempfile
from types import SimpleNamespace

import pytest

from nanogpt import GPTConfig
from nanogpt.extras import bench

TINY = GPTConfig(vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(bench.MODELS, "classic", (TINY, 2))


def start(directory):
    args = SimpleNamespace(model="classic", batch_size=None, precision="fp32", device="cpu")
    return bench.start(TINY, directory, args)


def test_contenders_take_turns_and_the_first_round_does_not_count():
    order = []
    seconds = bench.interleave({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert order == ["a", "b"] * 4 and [len(v) for v in seconds.values()] == [3, 3]


def test_figures_are_consistent_and_nothing_is_left_behind(tmp_path, monkeypatch, command):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shown = command("bench", "--rounds", "1", "--json")
    step, limit = json.loads(shown)["rows"]
    assert step["rate"] == pytest.approx(4 * 2 * 16 / step["ms"] * 1e3)  # four steps of 2 x 16 tokens a call
    assert step["of_limit"] == pytest.approx(limit["ms"] / step["ms"]) and limit["of_limit"] == 1.0
    assert "aten::" in command("bench", "--profile")
    assert not list(tmp_path.glob("nanogpt-bench-*"))


def test_the_matmuls_are_those_of_the_model(tmp_path):
    """Their operations, counted by torch, are those of flops_per_token (which counts attention without causality)."""
    from torch.utils.flop_counter import FlopCounterMode

    _, parts, _ = start(tmp_path)
    with FlopCounterMode(display=False) as counter:
        bench.matmuls(parts, 2)()
    matrices = 12 * TINY.n_layer * TINY.n_embd**2 + TINY.padded_vocab_size * TINY.n_embd
    by_operator = counter.get_flop_counts()["Global"]
    assert sum(n for operator, n in by_operator.items() if "mm" in str(operator)) == 6 * matrices * 2 * 16
