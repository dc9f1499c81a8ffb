"""The plan against arithmetic on paper, and against what a step really takes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nanogpt import GPT, GPTConfig, TrainConfig
from nanogpt.config import Actions
from nanogpt.run import plan

GPT2 = GPTConfig(vocab_size=50257, bias=True)


def test_parameters_by_part_are_those_of_gpt2():
    parts = plan.parameters(GPT2)
    assert sum(parts.values()) == 124_439_808
    assert parts["token embedding"] == 50257 * 768 and parts["position embedding"] == 1024 * 768
    assert parts["attention"] == 12 * 4 * 768**2 and parts["MLP"] == 12 * 8 * 768**2
    assert parts["norms and biases"] == 12 * (9 * 768 + 4 * 768) + 2 * 768


def test_weights_gradients_and_optimizer_state_have_four_bytes_a_number():
    config = GPTConfig(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=32)
    numbers = sum(p.numel() for p in GPT(config).parameters())
    needed = plan.memory(config, TrainConfig(batch_size=2, gradient_accumulation_steps=4, device="cpu"), "fp32")
    assert needed["weights"] == 4 * numbers
    assert needed["gradients"] == 4 * numbers  # they wait while the next micro-batch is computed
    assert needed["optimizer"] == pytest.approx(8 * numbers, rel=0.01)  # and a step count for each parameter


def test_activations_grow_with_the_batch_and_shrink_by_checkpointing():
    config = GPTConfig(vocab_size=64, block_size=64, n_layer=4, n_head=2, n_embd=64)
    sizes = [plan.memory(config, TrainConfig(batch_size=b, device="cpu"), "fp32")["activations"] for b in (8, 16)]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.02)
    config.gradient_checkpointing = True
    assert plan.memory(config, TrainConfig(batch_size=16, device="cpu"), "fp32")["activations"] < sizes[1] / 2


MODELS = [  # of 0.8, 25 and 30 million parameters
    ("vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128", "batch_size=64"),
    ("vocab_size=1000, block_size=256, n_layer=8, n_head=8, n_embd=512", "batch_size=8"),
    (
        "vocab_size=50257, block_size=256, n_layer=6, n_head=6, n_embd=384, norm='rmsnorm', position='rope', "
        "mlp='swiglu', qk_norm=True",
        "batch_size=4, optimizer='muon'",
    ),
]


LARGE = [pytest.param(*model, marks=pytest.mark.nightly) for model in MODELS[1:]]


@pytest.mark.parametrize("model, train", [MODELS[0], *LARGE])
def test_estimated_memory_is_within_15_percent_of_what_a_step_takes(zygote, tmp_path, model, train):
    script = Path(__file__).with_name("step_memory.py")
    done = zygote.run(script, f"GPTConfig({model})", f"TrainConfig({train})", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    estimated, measured = map(int, done.stdout.split())
    assert estimated == pytest.approx(measured, rel=0.15)


def test_the_plan_names_what_a_user_would_work_out_by_hand():
    config = GPTConfig(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=32)
    train = TrainConfig(batch_size=4, gradient_accumulation_steps=2, max_iters=100, device="cpu")
    text = plan.describe(plan.estimate(config, train, "fp32", train_tokens=6400))
    assert "12,800: 100 steps of 128" in text and "2.00 epochs of 6,400" in text
    assert f"{12800 / GPT(config).get_num_params():.1f} per parameter" in text
    assert f"{12800 * GPT(config).flops_per_token() / 1e12:,.2f} TFLOP" in text
    assert "fits in" in text


def test_with_train_minutes_the_steps_are_those_that_fit_into_them(make_run, monkeypatch, capsys):
    monkeypatch.setattr(plan, "median_seconds", lambda step, peers: 0.5)
    run = make_run(train_minutes=2, batch_size=4, max_iters=7, eval_interval=100)
    run.plan(Actions(price=6))
    shown = capsys.readouterr().out
    assert "15,360: 240 steps of 64" in shown
    assert "0:02:00: 500.0 ms a step" in shown and "dollars" in shown
    run.plan(Actions(json=True))
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["steps"], found["tokens"], found["train_seconds"]) == (240, 15_360, 120)


def test_of_many_micro_batches_two_are_timed(make_run, monkeypatch):
    run, taken = make_run(gradient_accumulation_steps=10), []

    def seconds(step, peers):
        step()
        taken.append(run.accelerator.gradient_accumulation_steps)
        return {1: 3.0, 2: 5.0}[taken[-1]]  # 1 for the optimizer, 2 for each micro-batch

    monkeypatch.setattr(plan, "median_seconds", seconds)
    assert run.measure() == 3 + 9 * 2
    assert taken == [1, 2]


def test_steps_of_whole_windows_are_timed(make_run, monkeypatch):
    run, lengths = make_run(short_block_iters=4, short_block_size=8), []
    run.rehearse()
    run.gpt.register_forward_pre_hook(lambda model, inputs: lengths.append(inputs[0].size(1)))
    monkeypatch.setattr(plan, "rehearse", lambda config, parts, state: config)
    monkeypatch.setattr(plan, "median_seconds", lambda step, peers: step() or 1.0)
    assert run.measure() == 1.0 and lengths == [run.gpt.config.block_size] != [8]


@pytest.mark.parametrize("eval_iters, tokens", [(0, 4 * 2038), (3, 3 * 3 * 4 * 16 + 2038)])
def test_the_last_evaluation_is_of_the_whole_split(make_run, eval_iters, tokens):
    run = make_run(eval_interval=10, eval_iters=eval_iters)
    assert plan.evaluated_tokens(run.config, run.parts, steps=30) == tokens


def test_a_slow_step_is_timed_once(monkeypatch):
    clock = iter(range(0, 1000, 13))
    monkeypatch.setattr(plan.time, "perf_counter", lambda: next(clock))
    calls = []
    alone = SimpleNamespace(largest=lambda *values: values)
    assert plan.median_seconds(lambda: calls.append(1), alone) == 13 and len(calls) == 1


def test_what_a_run_has_already_is_not_counted_twice(monkeypatch):
    config, train = GPTConfig(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=32), TrainConfig(device="cpu")
    needed = sum(plan.memory(config, train, "fp32").values())
    monkeypatch.setattr(plan, "available", lambda device: needed - 1000)
    assert "DOES NOT FIT" in plan.describe(plan.estimate(config, train, "fp32", train_tokens=6400, taken=1000))
    assert "fits in" in plan.describe(plan.estimate(config, train, "fp32", train_tokens=6400, taken=1001))


def test_the_memory_of_a_plan_has_python_and_torch_in_it(monkeypatch):
    config, train = GPTConfig(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=32), TrainConfig(device="cpu")
    monkeypatch.setattr(plan, "memory_in_use", lambda device: 400_000_000)
    found = plan.estimate(config, train, "fp32", train_tokens=6400, taken=30_000_000)
    assert found["memory"] == sum(plan.memory(config, train, "fp32").values()) + 370_000_000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a torch with CUDA and a driver")
def test_a_step_on_cuda_is_simulated():
    """On fake tensors of that device, in blocks of 512 bytes, and without what a CPU's allocator takes."""
    config = GPTConfig(vocab_size=64, block_size=64, n_layer=2, n_head=2, n_embd=64, norm="rmsnorm", position="rope")
    numbers = sum(p.numel() for p in GPT(config).parameters())
    needed = [plan.memory(config, TrainConfig(batch_size=size), "fp32", device="cuda") for size in (8, 16)]
    for parts in needed:
        assert parts.keys() == {"weights", "gradients", "optimizer", "activations"}
        assert parts["weights"] == pytest.approx(4 * numbers, rel=0.01)
        assert parts["optimizer"] == pytest.approx(8 * numbers, rel=0.1)
    assert needed[1]["activations"] == pytest.approx(2 * needed[0]["activations"], rel=0.02)


def test_shards_divide_weights_gradients_and_optimizer_state():
    config, train = GPTConfig(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=32), TrainConfig(device="cpu")
    whole, shard = (plan.memory(config, train, "fp32", processes=4, shards=n) for n in (1, 4))
    for part in ("weights", "gradients", "optimizer"):
        assert shard[part] == pytest.approx(whole[part] / 4, abs=1)
    assert shard["activations"] == whole["activations"]
