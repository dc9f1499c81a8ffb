"""Compiled sampling on a CPU gives the tokens of the plain model, with one graph for all blocks and lengths."""

import functools

import pytest
import torch
from helpers import randomize
from shapes import CASES
from torch._dynamo.utils import counters

from nanogpt import GPT
from nanogpt.ops import decode
from nanogpt.ops.decode import compile_decoding
from nanogpt.sample import generate

IDX = torch.randint(65, (3, 24), generator=torch.Generator().manual_seed(1))


def make_model(case: str) -> GPT:
    """A model with the same random weights each time."""
    return randomize(GPT(CASES[case]).eval())


@pytest.fixture
def traced(monkeypatch):
    """torch.compile traces, but leaves the kernels to torch: no C++ compiler is started."""
    eager = functools.partial(torch.compile, backend="eager")
    rows_sum = eager(decode.rows_sum, dynamic=False)
    monkeypatch.setattr(torch, "compile", eager)
    monkeypatch.setattr(decode, "compiled_rows_sum", lambda: rows_sum)
    monkeypatch.setattr(decode, "has_compiler", lambda: True)
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.parametrize("case", ["gpt2, biases, tanh", "qwen3, untied"])
def test_greedy_tokens_are_those_of_the_plain_model_and_all_blocks_and_lengths_share_one_graph(case, traced):
    model, compiled = make_model(case), compile_decoding(make_model(case))
    for length in (1, 5):
        idx = IDX[:1, :length]
        expected = generate(model, idx, 40, temperature=0)  # beyond the context of 32, too
        assert torch.equal(generate(compiled, idx, 40, temperature=0), expected)
    # a block, and the output projection
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
    with torch.no_grad():
        torch.testing.assert_close(compiled(IDX), model(IDX))


@pytest.mark.parametrize("small", [0, decode.SMALL])  # several rows are a matmul, or a sum
def test_a_batch_draws_the_same(small, traced, monkeypatch):
    monkeypatch.setattr(decode, "SMALL", small)
    model, compiled = make_model("llama"), compile_decoding(make_model("llama"))
    expected = generate(model, IDX[:, :9], 4, temperature=0)
    assert torch.equal(generate(compiled, IDX[:, :9], 4, temperature=0), expected)


@pytest.mark.nightly
@pytest.mark.skipif(not decode.has_compiler(), reason="there is no C++ compiler")
def test_inductors_kernels_compute_the_same():
    model, compiled = make_model("qwen3"), compile_decoding(make_model("qwen3"))
    expected = generate(model, IDX[:1, :4], 16, temperature=0)
    assert torch.equal(generate(compiled, IDX[:1, :4], 16, temperature=0), expected)


def test_another_device_or_a_missing_compiler_is_one_line(monkeypatch):
    with torch.device("meta"), pytest.raises(ValueError, match="meta"):
        compile_decoding(GPT(CASES["gpt2"]))
    monkeypatch.setattr(decode.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"g\+\+"):
        compile_decoding(make_model("gpt2"))
    assert not decode.is_worth_compiling(make_model("gpt2"), 10**12)
