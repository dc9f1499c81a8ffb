"""What must hold on the device at hand: CUDA, an Apple GPU, several GPUs. `pytest -m device`

Each test compares with the CPU, with fp32, or with one process. On a machine without a GPU they skip;
`NANOGPT_DEVICE=cpu pytest -m device` runs those that can be run on a CPU, to test the tests.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import curve, randomize
from shapes import CASES

from nanogpt import GPT, GPTConfig, checkpoint

# deterministic runs need it; torch looks only once in a process, before its first matmul on CUDA
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

pytestmark = pytest.mark.device
ROOT = Path(__file__).parents[2]
SMALL = GPTConfig(block_size=32, n_layer=2, n_head=2, n_embd=64)
MODERN = dataclasses.replace(SMALL, norm="rmsnorm", position="rope", mlp="swiglu", qk_norm=True, n_kv_head=1)
FIFTY = {"max_iters": 50, "eval_interval": 50, "log_interval": 1, "learning_rate": 3e-3, "sample_tokens": 0}
# largest difference of the last ten losses of fifty to fp32's; of fp16 some first steps overflow and are skipped
BOUNDS = {"bf16": 0.03, "fp16": 0.1}


@pytest.fixture(autouse=True)
def exact_products():
    """fp32 products in fp32: a run on CUDA turns TF32 on."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def device() -> str:
    """NANOGPT_DEVICE, else the GPU of this machine."""
    gpu = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else ""
    return os.environ.get("NANOGPT_DEVICE", gpu) or pytest.skip("no GPU here; NANOGPT_DEVICE=cpu runs what can be run")


@pytest.fixture
def train(make_run, device, tmp_path):
    """Trains on the device; returns the run and its training losses by step."""

    def train(name: str, model: GPTConfig = SMALL, prepare=lambda run: None, **settings):
        options = {"device": device, "compile": "false", "out_dir": str(tmp_path / name)} | settings
        run = make_run(model, **options)
        prepare(run)
        run.train()
        return run, curve(run.out_dir, "train_loss")

    return train


def needs_cuda(device: str, count: int = 1) -> None:
    if device != "cuda" or torch.cuda.device_count() < count:
        pytest.skip(f"needs {count} CUDA GPU" + "s" * (count > 1))


def needs_compile(device: str) -> None:
    if device == "mps":
        pytest.skip("torch.compile is for CUDA and the CPU")


def on_cpu_and(device: str, config: GPTConfig) -> list[tuple[GPT, torch.Tensor]]:
    """The same random model and tokens (4, 24) on the CPU and on the device."""
    idx = torch.randint(config.vocab_size, (4, 24), generator=torch.Generator().manual_seed(1))
    pairs = []
    for where in ("cpu", device):
        model = GPT(config)
        randomize(model)
        pairs.append((model.to(where), idx.to(where)))
    return pairs


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_are_the_cpus_in_fp32(device, name):
    (model, idx), (other, same) = on_cpu_and(device, CASES[name])
    with torch.no_grad():
        torch.testing.assert_close(other(same).cpu(), model(idx), atol=2e-3, rtol=1e-3)
    model(idx, idx).backward()
    other(same, same).backward()
    for (parameter, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        difference = (p.grad - q.grad.cpu()).norm()
        assert difference <= 1e-3 * p.grad.norm() + 1e-6, f"{parameter}: {difference / p.grad.norm():.1e}"


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama, all heads, own head size", "qwen3, head size 64"])
def test_greedy_samples_are_the_cpus(device, name):
    """Beyond block_size, where the context begins anew; what the vocabulary is padded with is never sampled."""
    (model, idx), (other, same) = on_cpu_and(device, CASES[name])
    expected = model.generate(idx, 40, temperature=0)
    assert torch.equal(other.generate(same, 40, temperature=0).cpu(), expected)
    assert expected.max() < CASES[name].vocab_size


@pytest.mark.parametrize("model", [SMALL, MODERN], ids=["gpt2", "modern"])
@pytest.mark.parametrize("precision", BOUNDS)
def test_half_precision_stays_near_fp32(train, device, precision, model):
    if (device, precision) == ("cpu", "fp16"):
        pytest.skip("fp16 needs a GPU")
    _, expected = train("fp32", model, **FIFTY)
    run, losses = train(precision, model, precision=precision, **FIFTY)
    assert run.state.skipped_steps <= (10 if precision == "fp16" else 0)
    last = range(41, 51)
    assert [losses[i] for i in last] == pytest.approx([expected[i] for i in last], abs=BOUNDS[precision])


def test_a_run_resumes_to_the_bit_with_deterministic(train):
    model, settings = dataclasses.replace(MODERN, dropout=0.1), {"deterministic": True, "log_interval": 1}
    settings |= {"lr_decay_iters": 8, "eval_interval": 4}
    try:
        whole, expected = train("whole", model, max_iters=8, **settings)
        train("half", model, max_iters=4, **settings)
        resumed, losses = train("half", model, max_iters=8, resume="auto", **settings)
    finally:
        torch.use_deterministic_algorithms(False)
    assert losses == expected
    files = [run.out_dir / "step-000008" / checkpoint.MODEL for run in (whole, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_batch_that_does_not_fit_is_halved(train, device):
    needs_cuda(device)
    total, room = torch.cuda.get_device_properties(0).total_memory, torch.cuda.memory_reserved() + 2**30
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        run, losses = train("large", batch_size=8192, max_iters=2, eval_interval=2, log_interval=1, eval_iters=1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    fits = checkpoint.load_configs(run.out_dir)[1]
    assert len(losses) == 2 and fits.batch_size < 8192
    assert fits.batch_size * fits.gradient_accumulation_steps == 8192


def test_a_gradient_that_is_not_finite_changes_nothing(train):
    before = []

    def poison(run) -> None:
        run.gpt.wte.weight.register_hook(lambda grad: grad * float("nan"))
        before.extend(p.detach().clone() for p in run.gpt.parameters())

    run, _ = train("poisoned", prepare=poison, max_iters=3, eval_interval=3)
    assert run.state.skipped_steps == 3
    assert all(torch.equal(p, q) for p, q in zip(before, run.gpt.parameters(), strict=True))


@pytest.mark.parametrize("precision, most", [("fp32", 1e-3), ("bf16", 2e-2), ("fp16", 2e-2)])
def test_compiled_losses_are_the_plain_ones(train, device, precision, most):
    needs_compile(device)
    if device == "cpu" and precision == "fp16":
        pytest.skip("a CPU trains in fp32 or bf16")
    few = {"max_iters": 10, "eval_interval": 5, "log_interval": 1, "learning_rate": 1e-3, "precision": precision}
    _, expected = train("plain", MODERN, **few)
    run, losses = train("compiled", MODERN, compile="true", **few)
    assert run.compiled and losses == pytest.approx(expected, abs=most)


def test_the_batch_on_the_device_is_the_batch(make_run, device):
    """Many at once, from pinned memory and without waiting for any."""
    run = make_run(SMALL, device=device, batch_size=64, gradient_accumulation_steps=100)
    copies = [run.micro_batch(index) for index in range(100)]
    for index, (x, y) in enumerate(copies):
        expected = run.train_data.batch(run.config.seed, index * 64, 64)
        assert torch.equal(x.cpu(), expected[0]) and torch.equal(y.cpu(), expected[1])


@pytest.mark.parametrize("config", ["ddp", "fsdp2"])
@pytest.mark.parametrize(
    "own, most",
    [
        ("--precision=fp32 --compile=false", 1e-4),
        ("--precision=bf16 --compile=false", 5e-3),
        # without dropout: compiled as one graph, a single GPU draws other masks than blocks do
        ("--precision=bf16 --compile=true --optimizer=muon --dropout=0", 5e-3),
    ],
)
def test_two_gpus_lose_what_one_does(data, tmp_path, device, config, own, most):
    needs_cuda(device, count=2)
    losses = []
    for name, count in (("single_gpu", 1), (config, 2)):
        launcher = f"--config_file {ROOT}/accelerate_configs/{name}.yaml --num_processes {count} --mixed_precision no"
        flags = f"--out_dir out/{name} --data data {own} --max_iters 20 --log_interval 1 "
        flags += "--gradient_accumulation_steps 2 --sample_tokens 0 --n_layer 2 --n_embd 64 --n_head 2"
        recipe = str(ROOT / "recipes" / "shakespeare_nanogpt.py")
        command = [sys.executable, "-m", "accelerate.commands.launch", *launcher.split(), recipe, *flags.split()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        losses.append(curve(tmp_path / "out" / name, "train_loss"))
    assert len(losses[0]) == 20 and losses[1] == pytest.approx(losses[0], abs=most)


def test_between_two_log_lines_cuda_refuses_no_wait(make_run, device):
    """Whatever would synchronize is an error to torch in this mode."""
    needs_cuda(device)
    run = make_run(SMALL, device=device, compile="false", max_iters=20, log_interval=10)
    run.rehearse()
    run.interrupts.begin()
    run.step()  # which makes the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            run.step()
            run.interrupts.check_step(run.config, run.parts, run.state)
    finally:
        torch.cuda.set_sync_debug_mode("default")
