"""What the launcher, the machine and the settings come to together; `launch-check` itself is in test_commands.py."""

import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from torch._dynamo.testing import CompileCounter

from nanogpt import GPT, GPTConfig, TrainConfig
from nanogpt.run import device


def test_accumulation_that_does_not_divide_says_which_counts_do(make_run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps=4 .* with 3 processes choose 3, 6, 9"):
        make_run(gradient_accumulation_steps=4)


def test_a_device_that_the_launcher_overrules_is_an_error(make_run, monkeypatch):
    on_cpu = SimpleNamespace(num_processes=1, device=torch.device("cpu"), distributed_type=DistributedType.NO)
    monkeypatch.setattr(device, "Accelerator", lambda **kwargs: on_cpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="device=cuda, but the launcher chose cpu"):
        make_run(device="cuda", precision="fp32")


def test_accelerate_is_asked_for_the_share_of_a_process_and_the_timeout(monkeypatch):
    asked, on_cpu = {}, {"device": torch.device("cpu"), "distributed_type": DistributedType.NO}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(device.atexit, "register", lambda function: None)
    monkeypatch.setattr(
        device, "Accelerator", lambda **kwargs: asked.update(kwargs) or SimpleNamespace(num_processes=2, **on_cpu)
    )
    device.make_accelerator(TrainConfig(gradient_accumulation_steps=6, timeout=90, device="cpu"))
    assert asked["gradient_accumulation_plugin"].num_steps == 3
    group, copies = asked["kwargs_handlers"]
    assert group.timeout.total_seconds() == 90 and copies.gradient_as_bucket_view


def test_precision_is_the_settings_else_the_launchers_else_the_machines(monkeypatch):
    monkeypatch.setattr(device, "cpu_computes_in_bf16", lambda: True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert device.mixed_precision(TrainConfig(precision="fp32", device="cpu")) == "no"
    assert device.mixed_precision(TrainConfig(device="cpu")) == "fp16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert device.mixed_precision(TrainConfig(device="cpu")) == "bf16"


def test_bf16_instructions_are_found_without_torchs_own_function(monkeypatch, tmp_path):
    with_torch = device.cpu_computes_in_bf16()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    if Path("/proc/cpuinfo").is_file():
        assert device.cpu_computes_in_bf16() == with_torch
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512_bf16\n")
    assert device.cpu_computes_in_bf16(str(tmp_path / "cpuinfo"))
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512f\n")
    assert not device.cpu_computes_in_bf16(str(tmp_path / "cpuinfo"))
    assert not device.cpu_computes_in_bf16(str(tmp_path / "none"))


def test_the_launcher_or_the_settings_choose_the_cpu(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert device.wants_cpu("cpu") and not device.wants_cpu()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert device.wants_cpu()


def test_cores_are_shared_among_the_processes_of_a_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    monkeypatch.setattr(device.psutil, "cpu_count", lambda logical: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    before = torch.get_num_threads()
    try:
        assert [device.set_threads(wanted, 4) for wanted in (0, 3)] == [4, 3]
    finally:
        torch.set_num_threads(before)


def test_free_memory_is_what_the_container_has_left(monkeypatch):
    files = {"/sys/fs/cgroup/memory.max": "1000", "/sys/fs/cgroup/memory.current": "400"}
    monkeypatch.setattr(device, "Path", lambda name: SimpleNamespace(read_text=lambda: files[name]))
    assert device.free_memory() == 600


def test_a_peak_is_in_operations_a_second():
    assert device.peak_flops("NVIDIA A100-SXM4-40GB") == 312e12 and device.peak_flops("cpu") is None


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP version 1"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_backend"),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "asked for several processes"),
    ],
)
def test_what_the_launcher_can_ask_for_in_vain_is_refused_at_the_start(settings, word):
    with pytest.raises(ValueError, match=word):
        device.check_launcher(settings)


def test_what_the_launcher_sets_for_fsdp2_is_admitted():
    asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_DYNAMO_BACKEND": "NO"}
    assert device.check_launcher(asked) is None


@pytest.mark.parametrize(
    "asked, processes, then",
    [
        ((32, 1), 8, (4, 8)),  # the same sequences in smaller micro-batches
        ((12, 2), 3, (8, 3)),
        ((12, 6), 3, (12, 6)),  # divides as it is
        ((5, 1), 2, (5, 2)),  # a micro-batch for each
        ((5, 4), 3, (5, 4)),  # the user's choice, which make_accelerator refuses
    ],
)
def test_several_processes_share_the_sequences_of_a_step(asked, processes, then):
    shared = device.share_batches(TrainConfig(batch_size=asked[0], gradient_accumulation_steps=asked[1]), processes)
    assert (shared.batch_size, shared.gradient_accumulation_steps) == then


def test_a_peak_is_that_of_the_very_device():
    assert device.peak_flops("NVIDIA L40") == 181e12 and device.peak_flops("NVIDIA L4") == 121e12
    assert device.peak_flops("NVIDIA A10G") == 70e12 and device.peak_flops("NVIDIA H100 80GB HBM3") == 989e12


def test_versions_are_those_of_the_imported_packages(make_run):
    run = make_run()
    assert run.settings["environment"]["torch"] == torch.__version__


def test_a_gpu_that_torch_cannot_use_is_mentioned(monkeypatch):
    monkeypatch.setattr(device, "Path", lambda name: SimpleNamespace(exists=lambda: "nvidia" in name))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "install torch with CUDA" in device.unused_gpu(torch.device("cpu"))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert device.unused_gpu(torch.device("cpu")) == ""


def test_a_process_leaves_all_groups_at_its_end_whatever_the_backend(monkeypatch):
    left = []
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda *groups: left.append(groups))
    device.leave_group()
    assert left == []  # it was in none
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    device.leave_group()
    assert left == [()]  # without a name it is the main group and all others


def test_deterministic_runs_use_deterministic_operators(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    device.make_deterministic()
    assert asked == [True] and not torch.backends.cudnn.benchmark


def test_all_blocks_share_one_compilation_and_the_loss_has_another(monkeypatch):
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True))
    torch.compiler.reset()
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=65, block_size=16, n_layer=5, n_head=2, n_embd=16, position="rope"))
    idx, names = torch.zeros(2, 16, dtype=torch.long), [name for name, _ in model.named_parameters()]
    expected = model(idx, idx)
    device.compile_blocks(model)
    assert torch.equal(model(idx, idx), expected) and counter.frame_count == 2
    assert [name for name, _ in model.named_parameters()] == names
    device.undo_compile(model)
    assert model.h[0].forward.__func__ is type(model.h[0]).forward and "loss" not in vars(model)
