"""The plan against arithmetic on paper, and against what a step really takes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanogpt import GPT, GPTConfig, TrainConfig
from nanogpt.run import plan

SMALL = GPTConfig(vocab_size=64, block_size=64, n_layer=2, n_head=2, n_embd=32)
MODELS = [  # of 0.8 and 30 million parameters
    ("vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128", "batch_size=64"),
    pytest.param(
        "vocab_size=50257, block_size=256, n_layer=6, n_head=6, n_embd=384, norm='rmsnorm', position='rope', "
        "mlp='swiglu', qk_norm=True",
        "batch_size=4, optimizer='muon'",
        marks=pytest.mark.nightly,
    ),
]


def test_weights_gradients_and_optimizer_state_have_sixteen_bytes_a_number_and_shards_divide_them():
    numbers = sum(p.numel() for p in GPT(SMALL).parameters())
    train = TrainConfig(batch_size=2, gradient_accumulation_steps=4, device="cpu")
    whole, shard = (plan.memory(SMALL, train, "fp32", shards=n) for n in (1, 4))
    assert whole["model and optimizer"] == pytest.approx(16 * numbers, rel=0.01)  # and step counts
    assert shard["model and optimizer"] == pytest.approx(whole["model and optimizer"] / 4, abs=1)
    assert shard["activations"] == whole["activations"]


def test_activations_grow_with_the_batch_and_shrink_by_checkpointing():
    config = GPTConfig(vocab_size=64, block_size=64, n_layer=4, n_head=2, n_embd=64)
    sizes = [plan.memory(config, TrainConfig(batch_size=b, device="cpu"), "fp32")["activations"] for b in (8, 16)]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.1)
    config.gradient_checkpointing = True
    assert plan.memory(config, TrainConfig(batch_size=16, device="cpu"), "fp32")["activations"] < sizes[1] / 2


@pytest.mark.parametrize("model, train", MODELS)
def test_estimated_memory_is_within_15_percent_of_what_a_step_takes(zygote, tmp_path, model, train):
    script = Path(__file__).with_name("step_memory.py")
    done = zygote.run(script, f"GPTConfig({model})", f"TrainConfig({train})", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    estimated, measured = map(int, done.stdout.split())
    assert estimated == pytest.approx(measured, rel=0.15)


def test_a_plan_names_what_a_user_would_work_out_by_hand(make_run, monkeypatch, capsys):
    monkeypatch.setattr(plan, "median_seconds", lambda step, peers: 0.5)
    run = make_run(batch_size=4, gradient_accumulation_steps=2, max_iters=240)
    run.plan()
    shown, tokens = capsys.readouterr().out, 240 * 2 * 4 * 16
    epochs = tokens / len(run.train_data.tokens)
    assert f"{tokens:,}: 240 steps of 128\n" in shown and f" {epochs:.2f} epochs of " in shown
    assert f"{tokens / run.gpt.get_num_params():.1f} per parameter" in shown
    assert "fits in" in shown and "0:02:00: 500.0 ms a step" in shown


def test_with_train_minutes_the_steps_are_those_that_fit_into_them(make_run, monkeypatch, capsys):
    monkeypatch.setattr(plan, "median_seconds", lambda step, peers: 0.5)
    make_run(train_minutes=2, batch_size=4, max_iters=7).plan(as_json=True)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["steps"], found["tokens"], found["train_seconds"]) == (240, 15_360, 120)


def test_of_many_micro_batches_two_are_timed_on_whole_windows(make_run, monkeypatch):
    run, taken = make_run(gradient_accumulation_steps=10, short_block_iters=4, short_block_size=8), []
    run.rehearse()
    lengths = set()
    run.gpt.register_forward_pre_hook(lambda model, inputs: lengths.add(inputs[0].size(1)))

    def seconds(step, peers):
        step()
        taken.append(run.accelerator.gradient_accumulation_steps)
        return {1: 3.0, 2: 5.0}[taken[-1]]  # 1 for the optimizer, 2 for each micro-batch

    monkeypatch.setattr(plan, "rehearse", lambda config, parts, state: config)
    monkeypatch.setattr(plan, "median_seconds", seconds)
    assert run.measure() == 3 + 9 * 2
    assert taken == [1, 2] and lengths == {run.gpt.config.block_size}


def test_a_slow_step_is_timed_once(monkeypatch):
    clock = iter(range(0, 1000, 13))
    monkeypatch.setattr(plan.time, "perf_counter", lambda: next(clock))
    calls = []
    alone = SimpleNamespace(largest=lambda *values: values)
    assert plan.median_seconds(lambda: calls.append(1), alone) == 13 and len(calls) == 1


@pytest.mark.parametrize("room, verdict", [(0, "DOES NOT FIT"), (1, "fits in")])
def test_what_a_run_has_already_is_not_counted_twice(make_run, monkeypatch, capsys, room, verdict):
    monkeypatch.setattr(plan, "seconds_per_step", lambda *run: 1.0)
    run = make_run()
    needed = sum(plan.memory(run.gpt.config, run.config, "fp32").values())
    taken = 4 * sum(p.numel() for p in run.gpt.parameters())
    monkeypatch.setattr(plan, "available", lambda device: needed - taken + room)
    run.plan()
    assert verdict in capsys.readouterr().out
