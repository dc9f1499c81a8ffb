"""Compiled sampling on a CPU gives the tokens of the plain model, with one program for all blocks and lengths."""

import sys

import pytest
import torch
from helpers import randomize
from shapes import CASES

from nanogpt import GPT
from nanogpt.model import Block, Linear
from nanogpt.ops import aot, cpu, decode
from nanogpt.ops.decode import compile_decoding, round_to_int8, rows_sum

IDX = torch.randint(65, (3, 24), generator=torch.Generator().manual_seed(1))


def make_model(case: str) -> GPT:
    """A model with the same random weights each time."""
    return randomize(GPT(CASES[case]).eval())


@pytest.fixture
def traced(monkeypatch) -> list[str]:
    """Programs are traced and then run by torch: no C++ compiler is started. The result lists their names."""
    names = []

    def run_traced(program, inputs):
        names.append(program.name)
        module = aot.trace(program, inputs).module()
        return lambda inputs: [module(inputs)]

    monkeypatch.setattr(aot, "load_library", run_traced)
    monkeypatch.setattr(decode, "has_compiler", lambda: True)
    return names


@pytest.mark.parametrize("case", ["gpt2, biases, tanh", "llama", "qwen3, untied"])
def test_greedy_tokens_are_those_of_the_plain_model_and_all_lengths_share_a_program(case, traced):
    model, compiled = make_model(case), compile_decoding(make_model(case))
    for length in (1, 5):
        idx = IDX[:1, :length]
        expected = model.generate(idx, 40, temperature=0)  # beyond the context of 32, too
        assert torch.equal(compiled.generate(idx, 40, temperature=0), expected)
    assert len(traced) == 2 and "linear" in traced and all(traced)  # a block, and the output projection
    with torch.no_grad():
        torch.testing.assert_close(compiled(IDX), model(IDX))


class Doubled(Block):
    """Somebody's own block, of which each one has a factor that is not a parameter."""

    factor = 1.0

    def forward(self, x, rope=None, cache=None, mask=None):
        return super().forward(x, rope, cache, mask) * self.factor


def test_blocks_of_foreign_code_have_programs_of_their_own_that_are_not_kept(traced):
    model = make_model("llama")
    for i, block in enumerate(model.h):
        block.__class__ = Doubled
        block.factor = 1.0 + i
    expected = model.generate(IDX[:1, :4], 6, temperature=0)
    assert torch.equal(compile_decoding(model).generate(IDX[:1, :4], 6, temperature=0), expected)
    assert traced.count("") == len(model.h) > 1


def test_other_operators_or_settings_are_another_program():
    model = make_model("llama")
    names = {decode.identity(model), decode.identity(make_model("qwen3"))}
    names |= {decode.identity(model.use(model.ops._replace(rms_norm=cpu.fused_rms_norm)))}
    assert len(names) == 3 and "" not in names


@pytest.mark.parametrize("small", [0, decode.SMALL])  # several rows are a matmul, or a sum
def test_a_batch_draws_the_same(small, traced, monkeypatch):
    monkeypatch.setattr(decode, "SMALL", small)
    model, compiled = make_model("llama"), compile_decoding(make_model("llama"))
    expected = model.generate(IDX[:, :9], 4, temperature=0)
    assert torch.equal(compiled.generate(IDX[:, :9], 4, temperature=0), expected)


@pytest.mark.parametrize("C", [24, 22])  # 22 numbers of 8 bits do not fill words of 32
@pytest.mark.parametrize("has_avx512", [True, False])
def test_numbers_of_8_bits_are_the_same_in_words(has_avx512, C, monkeypatch):
    monkeypatch.setattr(decode, "HAS_AVX512", has_avx512)
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-9, 10, (2, 1, C), generator=generator).float()  # sums of integers are exact
    numbers = torch.randint(-127, 128, (10, C), generator=generator).float()
    numbers[:, 0] = 127  # the largest: the scale is 1
    columns = round_to_int8(numbers).columns()
    assert len(columns) == (1 if has_avx512 or C == 22 else 4)
    assert torch.equal(torch.cat(columns, dim=1), numbers)
    assert torch.equal(rows_sum(x, columns), x @ numbers.T)


@pytest.mark.skipif(not decode.has_compiler(), reason="there is no C++ compiler")
def test_the_library_computes_the_same_and_is_kept_for_the_next_process(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, compiled = make_model("qwen3"), compile_decoding(make_model("qwen3"))
    expected = model.generate(IDX[:1, :4], 16, temperature=0)
    assert torch.equal(compiled.generate(IDX[:1, :4], 16, temperature=0), expected)
    monkeypatch.setattr(aot, "build", None)  # nothing is compiled again
    assert torch.equal(compile_decoding(make_model("qwen3")).generate(IDX[:1, :4], 16, temperature=0), expected)
    assert len(list((tmp_path / "nanogpt").iterdir())) == 2


def test_a_failing_compiler_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def build(exported):
        raise RuntimeError("g++: internal error\nmore")

    monkeypatch.setattr(aot, "build", build)
    with pytest.raises(ValueError, match=r"internal error\).*--compile"):
        compile_decoding(make_model("gpt2")).generate(IDX[:1, :4], 4, temperature=0)


def test_a_weight_is_rounded_by_less_than_a_half_step_of_its_row():
    torch.manual_seed(0)
    weight = torch.randn(48, 40) * torch.logspace(-3, 3, 48)[:, None]
    rounded = round_to_int8(weight)
    numbers, scale = torch.cat(rounded.columns(), dim=1), rounded.scale
    steps = weight.abs().amax(dim=1) / 127
    error = (numbers * scale[:, None] - weight).abs()
    assert rounded.numbers.nbytes == weight.numel() and (error <= 0.501 * steps[:, None]).all()
    assert error.max(dim=1).values.gt(0.4 * steps).all()


def test_weights_of_8_bits_leave_the_loss_nearly_as_it_is(traced):
    model, rounded = make_model("qwen3"), compile_decoding(make_model("qwen3"), int8=True)
    assert not any(isinstance(m.weight, torch.Tensor) for m in rounded.modules() if isinstance(m, Linear))
    with torch.no_grad():
        loss, change = model(IDX, IDX), rounded(IDX, IDX) - model(IDX, IDX)
    assert 0 < abs(change) < 0.01 * loss
    assert rounded.generate(IDX[:1, :4], 12, temperature=0).shape == (1, 16)


def test_another_device_or_a_missing_compiler_is_one_line(monkeypatch):
    with torch.device("meta"), pytest.raises(ValueError, match="meta"):
        compile_decoding(GPT(CASES["gpt2"]))
    monkeypatch.setattr(decode.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"g\+\+"):
        compile_decoding(make_model("gpt2"))
    assert not decode.is_worth_compiling(make_model("gpt2"), 10**12)
    monkeypatch.undo()
    monkeypatch.setattr(decode.sysconfig, "get_path", lambda name: "/nowhere")  # without Python's headers
    assert sys.platform != "linux" or not decode.has_compiler()
