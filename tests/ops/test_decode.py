"""Compiled sampling on a CPU gives the tokens of the plain model, with one program for all blocks and lengths."""

import dataclasses
import functools
import sys
from pathlib import Path

import pytest
import torch
from helpers import randomize
from shapes import CASES

from nanogpt import GPT
from nanogpt.model import Block, Linear
from nanogpt.ops import aot, cpu, decode
from nanogpt.ops.decode import compile_decoding, round_to_int8, rows_sum
from nanogpt.sample import KVCache

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


class Scaled(Block):
    """Somebody's own block, with a factor that is not a parameter."""

    factor = 1.0

    def forward(self, x, rope=None, cache=None, mask=None):
        return super().forward(x, rope, cache, mask) * self.factor


def double(module, inputs, output):
    return output * 2


def own_class(model: GPT):
    for i, block in enumerate(model.h):
        block.__class__ = Scaled
        block.factor = 1.0 + i


def own_hook(model: GPT):
    model.h[0].mlp.register_forward_hook(double)
    model.h[1].register_forward_hook(double)


def own_forward(model: GPT):
    plain = model.h[0].forward
    model.h[0].forward = lambda *args: 2 * plain(*args)
    model.h[1].mlp.forward = torch.sin


def own_wrapper(model: GPT):
    for block in model.h:
        block.forward = functools.wraps(block.forward)(functools.partial(twice, block.forward))


def twice(forward, *args):
    return 2 * forward(*args)


def own_operator(model: GPT):
    norm = model.ops.rms_norm
    model.use(model.ops._replace(rms_norm=lambda *args: 2 * norm(*args)))


def own_attention(model: GPT):
    model.use(model.ops._replace(attention=lambda q, k, v, *args, **options: v[:, :, -q.size(2) :].repeat(1, 2, 1, 1)))


@pytest.mark.parametrize("change", [own_class, own_hook, own_forward, own_wrapper, own_operator, own_attention])
@pytest.mark.parametrize("int8", [False, True])
def test_code_of_ones_own_stays_as_it_is(change, int8, traced):
    model = make_model("qwen3, untied" if int8 else "llama")
    assert decode.is_worth_compiling(model, 10**12)
    change(model)
    assert not decode.is_worth_compiling(model, 10**12)
    expected = model.generate(IDX[:1, :4], 6, temperature=0)
    found = compile_decoding(model, int8).generate(IDX[:1, :4], 6, temperature=0)
    assert traced == ["linear"] and not any(isinstance(module, decode.Int8) for module in model.h.modules())
    assert int8 or torch.equal(found, expected)  # with int8 the output projection is rounded


def test_only_blocks_with_the_same_settings_and_operators_share_a_program(traced):
    model = make_model("gpt2")
    model.h[1].mlp.kind = "gelu_tanh"
    model.h[1].ln_1.eps = 0.5
    expected = model.generate(IDX[:1, :4], 6, temperature=0)
    assert torch.equal(compile_decoding(model).generate(IDX[:1, :4], 6, temperature=0), expected)
    assert len({*traced} - {"linear"}) == 2
    llama = make_model("llama")
    before = decode.description(llama.use(llama.ops).h[0])
    assert decode.description(llama.use(llama.ops._replace(rms_norm=cpu.fused_rms_norm)).h[0]) != before
    assert " at 0x" not in before  # other processes find the same library


@pytest.mark.parametrize("int8", [False, True])
def test_compiling_twice_is_compiling_once(int8, traced):
    model = compile_decoding(make_model("qwen3"), int8)
    expected = model.generate(IDX[:2, :4], 6, temperature=0)
    assert torch.equal(compile_decoding(model, int8).generate(IDX[:2, :4], 6, temperature=0), expected)
    assert len(traced) == 4  # the block and the projection, again


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
@pytest.mark.parametrize(
    "case, dtype, int8, B",
    [
        ("qwen3", torch.float32, False, 1),
        pytest.param("gpt2, biases, tanh", torch.bfloat16, False, 3, marks=pytest.mark.nightly),
        pytest.param("llama", torch.float32, True, 1, marks=pytest.mark.nightly),
    ],
)
def test_the_library_computes_the_same_for_all_lengths_and_serves_later_processes(
    case, dtype, int8, B, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = dataclasses.replace(CASES[case], block_size=aot.TYPICAL + 90)
    model, compiled = (randomize(GPT(config).eval()).to(dtype) for _ in range(2))
    if int8:  # not compiled, but with rounded weights
        model = decode.compile_decoding(model, int8=True)
        for block in model.h:
            del block.forward
        model.use(model.ops._replace(linear=decode.linear))
    compile_decoding(compiled, int8)
    tokens = torch.randint(65, (B, config.block_size, 1))
    close = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.2}
    with torch.inference_mode():
        caches = [KVCache(config, B, dtype=dtype, cache_memory=m.ops.cache_memory) for m in (model, compiled)]
        for token in tokens.unbind(1):
            plain, fast = (m(token, cache=c) for m, c in zip((model, compiled), caches, strict=True))
            torch.testing.assert_close(fast, plain, **close)
        caches = [KVCache(config, B, dtype=dtype) for _ in range(2)]  # the other layout works, too
        for token in tokens[:, :5].unbind(1):
            plain, fast = (m(token, cache=c) for m, c in zip((model, compiled), caches, strict=True))
            torch.testing.assert_close(fast, plain, **close)
    monkeypatch.setattr(aot, "build", None)  # nothing is compiled again
    compile_decoding(randomize(GPT(config).eval()).to(dtype), int8).generate(tokens[:, :2, 0], 2)
    assert len(list((tmp_path / "nanogpt").iterdir())) == 2


def test_a_library_is_built_again_if_it_was_not_kept_or_is_damaged(tmp_path, monkeypatch):
    built = []

    class Runner:
        run = staticmethod(lambda inputs: [inputs[0]])

        def __init__(self, path: str, models: int):
            if Path(path).read_bytes() != b"library":
                raise RuntimeError("cannot be loaded")

    def builds(folder: str) -> int:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / folder))
        before = len(built)
        assert aot.Program(torch.sin, "sin").run(torch.ones(3)).tolist() == [1.0, 1.0, 1.0]
        return len(built) - before

    monkeypatch.setattr(torch._C._aoti, "AOTIModelContainerRunnerCpu", Runner)
    monkeypatch.setattr(aot, "build", lambda exported: built.append(exported) or b"library")
    (tmp_path / "file").write_text("not a directory")
    assert [builds(folder) for folder in ("kept", "kept", "file", "file")] == [1, 0, 1, 1]
    (library,) = (tmp_path / "kept" / "nanogpt").iterdir()
    library.write_bytes(b"damaged")
    assert [builds("kept"), builds("kept")] == [1, 0]


def test_a_failing_compiler_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(decode, "has_compiler", lambda: True)

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
