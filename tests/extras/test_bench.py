"""The bench: what its figures measure, not how large they are."""

import json
import tempfile
from types import SimpleNamespace

import pytest
import torch

from nanogpt import GPTConfig
from nanogpt.extras import bench
from nanogpt.ops import cpu
from nanogpt.ops.cpu import pack

TINY = GPTConfig(vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(bench.MODELS, "classic", (TINY, 2))


def make_bench(directory, precision: str = "fp32") -> bench.Bench:
    args = SimpleNamespace(model="classic", batch_size=2, rounds=1, precision=precision, device="cpu", against=None)
    return bench.Bench(directory, args)


def test_contenders_take_turns_and_the_first_round_does_not_count():
    order = []
    seconds = bench.interleave({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert order == ["a", "b"] * 4 and [len(v) for v in seconds.values()] == [3, 3]


def test_json_has_every_part_with_consistent_figures(command):
    shown = command("bench", "--rounds", "1", "--parts", "train", "--against", "transformers", "--json")
    rows = {(row["part"], row["who"]): row for row in json.loads(shown)["rows"]}
    assert rows["train", "transformers"]["rate"] > 0
    step = rows["train", "nanogpt"]
    assert step["rate"] == pytest.approx(4 * 2 * 16 / step["ms"] * 1e3)  # four steps of 2 x 16 tokens a call
    limit = rows["train", "matmuls + attention"]
    assert step["of_limit"] == pytest.approx(limit["ms"] / step["ms"])
    assert limit["of_limit"] == 1.0
    assert step["mfu"] is None or 0 < step["mfu"] < 1


def test_the_matmuls_are_those_of_the_model(tmp_path):
    """Their operations, counted by torch, are those of flops_per_token (which counts attention without causality)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        make_bench(tmp_path).matmuls()()
    c, tokens = TINY, 2 * 16
    matrices = 12 * c.n_layer * c.n_embd**2 + c.padded_vocab_size * c.n_embd
    by_operator = counter.get_flop_counts()["Global"]
    matmuls = sum(count for operator, count in by_operator.items() if "mm" in str(operator))
    assert matmuls == 6 * matrices * tokens


def test_a_bench_leaves_nothing_behind(tmp_path, monkeypatch, command):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shown = command("bench", "--rounds", "1", "--parts", "train", "--device", "cpu")
    assert list(tmp_path.iterdir()) == [] and len(shown.splitlines()) == 5  # a table
    assert "aten::" in command("bench", "--profile")


def test_the_others_are_measured_in_the_precision_of_the_run(tmp_path, monkeypatch):
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("no", torch.float32)):
        parts = SimpleNamespace(device=torch.device("cpu"), accelerator=SimpleNamespace(mixed_precision=name))
        monkeypatch.setattr(bench, "prepare", lambda model, config, parts=parts, **options: (config, parts, None))
        with make_bench(tmp_path, "auto").autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_on_a_cpu_sampling_is_timed_with_packed_weights(tmp_path, monkeypatch):
    packed = []
    monkeypatch.setattr(bench, "pack", lambda model, int8: packed.append(pack(model, int8, smallest=0)) or packed[-1])
    monkeypatch.setattr(bench, "X86", True)
    monkeypatch.setattr(cpu, "X86", True)
    measured = make_bench(tmp_path)
    measured.sample(tokens=2)
    rows = [(row["part"], row["who"]) for row in measured.rows]
    parts = ("sample, fp32", "sample, bf16", "sample, int8")
    assert rows == [(part, who) for part in parts for who in ("nanogpt", "reading the weights")] and len(packed) == 3


@pytest.mark.parametrize("gib, sequences", [(80, 12), (0, 1)])
def test_on_a_gpu_gpt2_takes_the_sequences_of_nanogpt(tmp_path, monkeypatch, gib, sequences):
    monkeypatch.setattr(bench, "gpu_gib", lambda device: gib)
    accelerator = SimpleNamespace(mixed_precision="no")
    parts = SimpleNamespace(device=torch.device("cpu"), accelerator=accelerator)
    monkeypatch.setattr(bench, "prepare", lambda model, config, **options: (config, parts, None))
    args = SimpleNamespace(model="gpt2", batch_size=None, rounds=1, precision="fp32", device="auto", against=None)
    assert bench.Bench(tmp_path, args).train_config.batch_size == sequences
