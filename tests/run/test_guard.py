import dataclasses
import errno
import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import TINY

from nanogpt import GPTConfig, checkpoint, train
from nanogpt.checkpoint import State
from nanogpt.run import device, guard, metrics


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_has_a_gradient_that_is_not(value):
    x = torch.ones(3, requires_grad=True)
    (train.nan_if_not_finite(x.sum() + value)).backward()
    assert not x.grad.isfinite().any()


@pytest.mark.parametrize("size, then", [(12, (6, 2)), (25, (5, 5))])
def test_a_batch_is_halved_or_divided_and_the_step_has_as_many_sequences(make_run, size, then):
    run = limited(make_run(batch_size=size), size - 1)
    run.rehearse()
    assert (run.config.batch_size, run.config.gradient_accumulation_steps) == then


def limited(run, most: int):
    """A run whose forward pass needs too much memory for more than `most` sequences."""
    forward = run.gpt.forward

    def checked(idx, *args, **kwargs):
        if len(idx) > most and run.gpt.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(idx, *args, **kwargs)

    run.gpt.forward = checked
    return run


def test_too_large_a_batch_is_halved_at_the_first_step_and_trains_the_same(make_run, tmp_path, capsys):
    whole = make_run(batch_size=8, out_dir=str(tmp_path / "whole"), log_interval=1)
    whole.train()
    run = limited(make_run(batch_size=8, log_interval=1), 2)
    run.train()
    shown = capsys.readouterr().out
    for size in (8, 4):
        now = f"--batch_size={size // 2} --gradient_accumulation_steps={16 // size}"
        assert f"warning: out of memory with batch_size={size}: now {now}" in shown
    losses = [
        [line["train_loss"] for line in metrics.read(r.out_dir / "metrics.jsonl") if "lr" in line] for r in (whole, run)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    _, trained = checkpoint.load_configs(checkpoint.find(run.out_dir))
    assert (trained.batch_size, trained.gradient_accumulation_steps) == (2, 4)
    assert checkpoint.load_configs(run.out_dir)[1].batch_size == 2
    assert run.state.tokens == whole.state.tokens


def test_a_single_sequence_that_does_not_fit_says_what_to_do(make_run, capsys):
    with pytest.raises(SystemExit) as exit:
        limited(make_run(batch_size=2), 0).train()
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: a single sequence does not fit into memory: ") and error.count("\n") == 1
    assert "--gradient_checkpointing=True" in error


def test_the_rehearsal_changes_nothing(make_run):
    run = make_run(dataclasses.replace(TINY, dropout=0.2), optimizer="muon")
    before = [p.detach().clone() for p in run.gpt.parameters()]
    run.rehearse()
    assert all(torch.equal(a, b) for a, b in zip(before, run.gpt.parameters(), strict=True))
    assert all(p.grad is None for p in run.gpt.parameters())
    assert all(not optimizer.state for optimizer in run.optimizers)


def test_settings_that_cannot_be_written_are_a_warning(make_run, monkeypatch, capsys):
    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    run = make_run(max_iters=2)
    monkeypatch.setattr(guard, "write_json", full)
    run.train()
    assert "warning: config.json could not be written: [Errno 28] No space left" in capsys.readouterr().out
    assert checkpoint.find(run.out_dir).name == "step-000002"


def test_what_cannot_fit_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(guard.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
    large = GPTConfig(vocab_size=65, n_layer=1000, n_embd=1024, n_head=2)
    with pytest.raises(ValueError, match=r"take at least 201\.\d GB, but 1\.0 GB of memory are free"):
        guard.check_room(large)  # 16 bytes for each of 12 * 1024 ** 2 numbers in a block
    guard.check_room(dataclasses.replace(large, n_layer=4))


def test_a_run_that_cannot_fit_is_refused_before_its_model_is_made(make_run, monkeypatch):
    monkeypatch.setattr(guard.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(ValueError, match="of memory are free"):
        make_run()


def test_a_containers_cache_of_files_counts_as_free_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(guard, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("2000000000\n")
    (tmp_path / "memory.current").write_text("1950000000\n")
    (tmp_path / "memory.stat").write_text("anon 100000000\nactive_file 150000000\ninactive_file 1700000000\n")
    model = GPTConfig(vocab_size=65, n_layer=10, n_embd=1024, n_head=2)  # 2.0 GB
    with pytest.raises(ValueError, match=r"take at least 2\.0 GB, but 1\.9 GB of memory are free"):
        guard.check_room(model)
    guard.check_room(dataclasses.replace(model, n_layer=9))
    (tmp_path / "memory.max").write_text("max\n")
    guard.check_room(model)


def test_masks_that_would_differ_in_the_second_forward_pass_are_refused():
    model = dataclasses.replace(TINY, dropout=0.2, gradient_checkpointing=True)
    with pytest.raises(ValueError, match="needs --dropout=0"):
        guard.check_masks(model, torch.device("mps"))
    guard.check_masks(model, torch.device("cpu"))
    guard.check_masks(dataclasses.replace(model, dropout=0.0), torch.device("mps"))


class FP16OnCPU(Accelerator):
    """fp16 as on a GPU; on a CPU Accelerate computes in fp32 instead, without a gradient scaler."""

    def __init__(self, **options):
        super().__init__(**options)
        self.state._mixed_precision, self.native_amp = "fp16", True
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=2)


def test_fp16_resumes_to_the_bit_with_the_scale_that_it_had(make_run, monkeypatch, tmp_path):
    monkeypatch.setattr(device, "Accelerator", FP16OnCPU)
    settings = {"log_interval": 1, "lr_decay_iters": 40, "eval_interval": 20}
    whole = make_run(max_iters=40, out_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    make_run(max_iters=24, **settings).train()  # between two changes of the scale
    saved = checkpoint.read_state(tmp_path / "out" / "step-000024")
    assert 0 < saved.skipped_steps < 24 and saved.loss_scale < 2**22 and saved.loss_scale_steps == 1
    resumed = make_run(max_iters=40, resume="auto", **settings)
    resumed.train()
    for file in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        files = [run.out_dir / "step-000040" / file for run in (whole, resumed)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert resumed.accelerator.scaler.state_dict() == whole.accelerator.scaler.state_dict()


def test_a_skipped_step_is_counted_and_its_loss_is_not_in_the_mean():
    tally, in_a_row = train.Tally(torch.device("cpu"), State()), []
    for loss, skipped in ((2.0, 0.0), (float("nan"), 1.0), (4.0, 0.0), (1.0, 1.0), (1.0, 1.0)):
        tally.add(torch.tensor(loss), torch.tensor(1.0), torch.tensor(skipped), 1e-3)
        in_a_row.append(int(tally.bad_in_a_row))
    assert (tally.loss, tally.skipped, in_a_row) == (6, 3, [0, 1, 0, 1, 2])


@pytest.mark.parametrize("asked", [True, False])
def test_a_failed_compilation_is_one_line_with_its_cause(make_run, capsys, monkeypatch, asked):
    run, stances = limited(make_run(compile="true" if asked else "auto", batch_size=4), 2), []
    monkeypatch.setattr(torch.compiler, "set_stance", stances.append)
    forward, run.parts.compiled = run.gpt.forward, True

    def fail(*args, **options):
        if run.parts.compiled:
            message = "backend='inductor' raised:\nInvalidCxxCompiler: no C++ compiler\n\nSet TORCHDYNAMO_VERBOSE"
            raise RuntimeError(message)
        return forward(*args, **options)

    run.gpt.forward = fail
    with pytest.raises(SystemExit, match="2") if asked else nullcontext():
        run.rehearse()
    out, err = capsys.readouterr()
    said = err if asked else out
    assert "InvalidCxxCompiler: no C++ compiler\n" in said
    assert ("--compile=false" in said) == asked and stances == ([] if asked else ["force_eager"])
    if not asked:
        recorded = json.loads((run.out_dir / "config.json").read_text())["environment"]["compiled"]
        assert recorded is run.parts.compiled is False and run.config.batch_size == 2  # it tried again
