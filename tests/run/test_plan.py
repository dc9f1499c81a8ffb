"""The plan against arithmetic on paper."""

import json

import pytest

from nanogpt.run import plan


@pytest.mark.parametrize("length", [{"max_iters": 240}, {"train_minutes": 2, "max_iters": 7}])
def test_a_plan_names_what_a_user_would_work_out_by_hand(make_run, monkeypatch, capsys, length):
    """With train_minutes the steps are those that fit into them."""
    monkeypatch.setattr(plan, "seconds_per_step", lambda config, parts, state: 0.5)
    run = make_run(batch_size=4, gradient_accumulation_steps=2, **length)
    run.plan(as_json=True)
    found, tokens = json.loads(capsys.readouterr().out.splitlines()[-1]), 240 * 2 * 4 * 16
    assert (found["steps"], found["tokens_per_step"], found["tokens"]) == (240, 128, tokens)
    assert found["epochs"] == pytest.approx(tokens / run.train_data.token_count, abs=1e-4)
    assert found["tokens_per_parameter"] == pytest.approx(tokens / run.gpt.get_num_params(), abs=1e-4)
    assert (found["seconds_per_step"], found["train_seconds"]) == (0.5, 120)


def test_of_many_micro_batches_two_are_timed_on_whole_windows(make_run, monkeypatch):
    run = make_run(gradient_accumulation_steps=10, short_block_iters=4, short_block_size=8)
    run.rehearse()
    sizes = []
    run.gpt.register_forward_pre_hook(lambda model, inputs: sizes.append(inputs[0].size(1)))
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(plan, "rehearse", lambda config, parts, state: config)
    monkeypatch.setattr(plan.time, "perf_counter", lambda: next(clock))
    assert run.measure() == 10 / 2 * 5
    assert sizes == [run.gpt.config.block_size] * 2 * (1 + plan.STEPS)
