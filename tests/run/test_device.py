"""What launcher, machine and settings come to: device, precision, threads, shares of a batch, compiled blocks."""

import copy
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from torch._dynamo.testing import CompileCounter

from nanogpt import GPT, GPTConfig, TrainConfig
from nanogpt.ops.cpu import CPU
from nanogpt.run import device


def test_accumulation_that_does_not_divide_says_which_counts_do(make_run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="gradient_accumulation_steps=4: take a multiple of 3"):
        make_run(gradient_accumulation_steps=4)


def test_accelerate_is_asked_for_the_timeout_and_a_device_that_it_overrules_is_an_error(monkeypatch):
    asked = {}
    found = SimpleNamespace(num_processes=2, device=torch.device("cpu"), state=PartialState, mixed_precision="no")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(device.atexit, "register", lambda function: None)
    monkeypatch.setattr(device, "Accelerator", lambda **kwargs: asked.update(kwargs) or found)
    device.make_accelerator(TrainConfig(gradient_accumulation_steps=6, timeout=90, device="cpu"))
    group, copies = asked["kwargs_handlers"]
    assert group.timeout.total_seconds() == 90 and copies.gradient_as_bucket_view
    with pytest.raises(ValueError, match=r"device=cuda.* cpu"):
        device.make_accelerator(TrainConfig(gradient_accumulation_steps=6, device="cuda", precision="fp32"))


def test_a_second_run_of_a_process_may_have_another_precision():
    for precision, name in (("bf16", "bf16"), ("fp32", "no")):
        found = device.make_accelerator(TrainConfig(device="cpu", precision=precision))
        assert found.mixed_precision == name


def test_fp16_on_a_cpu_is_refused():
    """Accelerate would train in fp32 without a word."""
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        device.make_accelerator(TrainConfig(device="cpu", precision="fp16"))


def test_precision_is_the_settings_or_launchers_or_machines(monkeypatch):
    monkeypatch.setattr(device, "cpu_computes_in_bf16", lambda: True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert device.mixed_precision(TrainConfig(precision="fp32", device="cpu")) == "no"
    assert device.mixed_precision(TrainConfig(device="cpu")) == "fp16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert device.mixed_precision(TrainConfig(device="cpu")) == "bf16"


@pytest.mark.parametrize(
    "env, threads",
    [
        ({}, 8),
        ({"LOCAL_WORLD_SIZE": "2"}, 4),  # cores are shared among the processes of a machine
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "5,2"}, 5),  # by level of nesting
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, 8),  # the launcher's own
        ({"OMP_NUM_THREADS": "3", "ACCELERATE_MIXED_PRECISION": "no"}, 3),
    ],
)
def test_threads_are_the_physical_cores_or_the_users_choice(monkeypatch, tmp_path, env, threads):
    """On a machine of 12 logical and 8 physical cores."""
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    monkeypatch.setattr(device.psutil, "cpu_count", lambda logical=True: 8)
    monkeypatch.setattr(os, "environ", env)
    assert device.default_threads(1) == threads


@pytest.mark.parametrize("quota, threads", [("max 100000", 8), ("350000 100000", 3), ("50000 100000", 1)])
def test_a_containers_quota_limits_the_threads(monkeypatch, tmp_path, quota, threads):
    monkeypatch.setattr(device.psutil, "cpu_count", lambda logical=True: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert device.default_threads(1) == threads


@pytest.mark.parametrize("env, expected", [({}, "1500"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_spin_briefly_from_the_moment_torch_is_imported(tmp_path, env, expected):
    """A stand-in for torch records its environment."""
    (tmp_path / "torch.py").write_text("import os\nos._exit(print(os.environ.get('GOMP_SPINCOUNT'), flush=True) or 0)")
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    clean["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(Path(device.__file__).parents[2])])
    command = [sys.executable, "-c", "import recipes.shakespeare"]
    shown = subprocess.run(command, env=clean | env, capture_output=True, text=True)
    assert shown.stdout.strip() == expected, shown.stderr


@pytest.mark.parametrize(
    "name, peak",
    [
        ("A100-SXM4-40GB", 312),
        ("A800-SXM4-80GB", 312),
        ("L4", 121),
        ("L40S", 362),
        ("H100 80GB HBM3", 989),
        ("H800", 989),
        ("GH200 480GB", 989),
        ("H100 PCIe", 756),
        ("H20", 148),
        ("GeForce RTX 4080", 97.5),  # these three with sums in fp32
        ("GeForce RTX 4070", 58.3),
        ("GeForce RTX 3060", 25.5),
    ],
)
def test_a_peak_is_that_of_nvidias_data_sheet(name, peak):
    assert device.peak_flops(f"NVIDIA {name}") == peak * 1e12
    for other in ("cpu", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4080 SUPER", "NVIDIA H800 PCIe"):
        assert device.peak_flops(other) is None


@pytest.mark.parametrize(
    "asked",
    [
        {"ACCELERATE_USE_DEEPSPEED": "true"},
        {"FSDP_VERSION": "1"},
        {"FSDP_ACTIVATION_CHECKPOINTING": "true"},  # would rename the parameters
        {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"},
        {"ACCELERATE_MIXED_PRECISION": "fp8"},
    ],
)
def test_what_the_launcher_asks_for_in_vain_is_refused(asked, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ | asked)
    with pytest.raises(ValueError, match=f"{next(iter(asked))}=.* is not supported"):
        device.make_accelerator(TrainConfig(device="cpu"))


def test_several_processes_that_the_launcher_did_not_start_are_an_error(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ValueError, match=r"would train alone.* --processes=N"):
        device.make_accelerator(TrainConfig(device="cpu"))


@pytest.mark.parametrize(
    "asked, processes, then",
    [
        ((32, 1), 8, (4, 8)),  # the same sequences in smaller micro-batches
        ((12, 6), 3, (12, 6)),  # divides as it is
        ((12, 6), 4, (6, 12)),
        ((64, 1), 3, (64, 3)),  # no smaller micro-batch divides: one for each process
    ],
)
def test_several_processes_share_the_sequences_of_a_step(asked, processes, then):
    shared = device.share_batches(TrainConfig(batch_size=asked[0], gradient_accumulation_steps=asked[1]), processes)
    assert (shared.batch_size, shared.gradient_accumulation_steps) == then


@pytest.mark.parametrize("whole, graphs", [(True, 1), (False, 2)])
def test_one_graph_is_compiled_or_one_for_all_blocks_and_the_loss(monkeypatch, whole, graphs):
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True))
    torch.compiler.reset()
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=65, block_size=16, n_layer=5, n_head=2, n_embd=16, position="rope"))
    idx, names = torch.zeros(2, 16, dtype=torch.long), [name for name, _ in model.named_parameters()]
    expected = model(idx, idx)
    device.compile_model(model, whole)
    assert torch.equal(model(idx, idx), expected) and counter.frame_count == graphs
    assert [name for name, _ in model.named_parameters()] == names
    model.generate(idx, 3)  # neither sampling nor evaluating compiles anything
    model.eval()(idx[:1, :9], idx[:1, :9])
    assert torch.equal(model.train()(idx, idx), expected) and counter.frame_count == graphs
    copied = copy.deepcopy(model)
    torch.nn.init.zeros_(copied.h[0].mlp.c_proj.weight)
    assert not torch.equal(copied(idx, idx), expected) and torch.equal(model(idx, idx), expected)


def test_one_graph_under_mixed_precision_has_the_loss_of_the_model(monkeypatch):
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True))
    torch.compiler.reset()
    model, idx = GPT(GPTConfig.modern(vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=16)), torch.ones(2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(idx.long(), idx.long())
    accelerator = device.make_accelerator(TrainConfig(device="cpu", precision="bf16"))
    device.compile_model(model, whole=True)
    loss = accelerator.prepare(model)(idx.long(), idx.long())
    assert torch.equal(loss, expected) and loss.dtype == torch.float32 and counter.frame_count == 1


def test_graphs_of_a_cpu_can_be_kept_in_inductors_cache(monkeypatch):
    from torch._functorch import config
    from torch._functorch._aot_autograd import autograd_cache

    if not hasattr(config, "autograd_cache_allow_custom_autograd_functions"):
        pytest.skip("this torch cannot")
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list):
        autograd_cache.check_cacheable(graph)  # or it raises
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    torch.compiler.reset()
    sizes = {"vocab_size": 65, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}
    model, idx = GPT(GPTConfig.modern(**sizes), ops=CPU), torch.zeros(2, 16, dtype=torch.long)
    device.compile_model(model, whole=False)
    with torch.autocast("cpu", torch.bfloat16):
        model(idx, idx).backward()
    assert len(graphs) == 2


@pytest.mark.parametrize(
    "expected, model, settings",
    [
        (True, {}, {"max_iters": 800}),
        (False, {}, {"max_iters": 80}),
        (True, {}, {"max_iters": 80, "train_minutes": 2}),
        (False, {}, {"max_iters": 800, "train_minutes": 0.2}),
        (False, {"dropout": 0.1}, {"max_iters": 800}),  # torch has no kernel for attention with it
        (False, {"norm": "layernorm"}, {"max_iters": 800}),  # little to fuse
        (False, {}, {"max_iters": 800, "compile": "false"}),
        (True, {"dropout": 0.1}, {"max_iters": 1, "compile": "true"}),
    ],
)
def test_on_a_cpu_a_long_run_of_the_modern_family_is_compiled(monkeypatch, expected, model, settings):
    monkeypatch.setattr(device.decode, "has_compiler", lambda: True)
    laptop = {"block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128, "n_inner": 320, "vocab_size": 65}
    gpt, config = GPT(GPTConfig.modern(**laptop | model)), TrainConfig(batch_size=32, **settings)
    assert device.should_compile(config, gpt, torch.device("cpu")) is expected
    monkeypatch.setattr(device.decode, "has_compiler", lambda: False)
    by_itself = settings.get("compile") != "true"
    assert device.should_compile(config, gpt, torch.device("cpu")) is (expected and not by_itself)


@pytest.fixture
def gpu(monkeypatch):
    """Makes a GPU of a compute capability, as torch describes it."""

    def make(major: int) -> None:
        monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, 0))
        supported = lambda including_emulation: including_emulation or major > 7  # noqa: E731
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)

    return make


@pytest.mark.parametrize("major, precision", [(8, "bf16"), (7, "fp16"), (6, "no")])
@pytest.mark.parametrize("launcher", ["bf16", "no"])
def test_bf16_that_a_gpu_only_emulates_becomes_fp16_or_fp32(gpu, monkeypatch, launcher, major, precision):
    gpu(major)
    notes = []
    monkeypatch.setattr(device.logger, "info", notes.append)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    assert device.mixed_precision(TrainConfig()) == precision
    assert len(notes) == (launcher == "bf16" and major < 8)
    assert device.mixed_precision(TrainConfig(precision="bf16")) == "bf16"  # the user's choice


def test_more_processes_than_gpus_are_refused(gpu, monkeypatch):
    gpu(8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="3 processes cannot share 2 GPUs: --num_processes 2"):
        device.make_accelerator(TrainConfig(gradient_accumulation_steps=3))


@pytest.mark.parametrize("hidden, asked, noticed", [(None, "auto", True), (None, "cpu", False), ("", "auto", False)])
def test_a_gpu_that_torch_does_not_find_is_noticed_unless_it_is_hidden(monkeypatch, tmp_path, hidden, asked, noticed):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    (tmp_path / "version").write_text("NVRM version: 535.54")
    notes = []
    monkeypatch.setattr(device, "NVIDIA_DRIVER", str(tmp_path / "version"))
    monkeypatch.setattr(device, "wants_cpu", lambda device="auto": device == "cpu")
    monkeypatch.setattr(device.logger, "info", notes.append)
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1, mixed_precision="no")
    device.set_up(TrainConfig(device=asked), accelerator)
    assert ["does not find this machine's NVIDIA GPU" in note for note in notes] == [True] * noticed


def test_under_ddp_a_block_is_one_graph(monkeypatch):
    """DDP would cut it at 1 MiB of parameters, its first bucket."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    torch.compiler.reset()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = GPT(GPTConfig(vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=256))
        device.compile_model(model, whole=False)
        idx = torch.zeros(2, 16, dtype=torch.long)
        torch.nn.parallel.DistributedDataParallel(model)(idx, idx).backward()
        assert counter.frame_count == 2  # the loss is the other
    finally:
        torch.distributed.destroy_process_group()
