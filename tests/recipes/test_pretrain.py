"""recipes/pretrain.py: its rules against arithmetic on paper, and what its flags change of them."""

import json
import math
import sys
from dataclasses import replace

import pretrain
import pytest

from nanogpt.model import GPT

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32)
VOCABULARY = 4096


def rules(depth: int, **options):
    model = replace(pretrain.shape(depth), vocab_size=VOCABULARY)
    return model, pretrain.training(model, **options)


def tokens_per_step(model, train) -> int:
    return train.batch_size * train.gradient_accumulation_steps * model.block_size


def test_depth_12_is_as_large_as_gpt2():
    model, train = rules(12)
    assert (model.n_layer, model.n_head, model.n_embd, model.head_size, model.block_size) == (12, 12, 768, 64, 1024)
    assert (model.norm, model.position, model.mlp, model.qk_norm) == ("rmsnorm", "rope", "swiglu", True)
    # attention 4 C^2, three matrices of C x 2048 in the MLP, two norms of C and two of 64; last norm, embeddings
    count = 12 * (4 * 768**2 + 3 * 768 * 2048 + 2 * 768 + 2 * 64) + 768 + VOCABULARY * 768
    assert GPT(model).get_num_params() == pretrain.on_meta(model).get_num_params() == count
    compute = 20 * count * (6 * count + 12 * 12 * 768 * 1024)  # 20 tokens a parameter, PaLM's operations for each
    assert tokens_per_step(model, train) == pytest.approx(0.292 * compute**0.3271, rel=0.13)
    assert train.max_iters * tokens_per_step(model, train) == pytest.approx(20 * count, rel=0.001)
    assert train.learning_rate == pytest.approx(0.01 * (128 / 768) ** 0.5)
    assert (train.optimizer, train.muon_learning_rate, train.weight_decay, train.min_lr) == ("muon", 0.02, 0.1, 0.0)


@pytest.mark.parametrize("sequences, expected", [(0.3, 4), (5.6, 6), (9.1, 10), (10.9, 10), (51.2, 48), (270, 256)])
def test_a_step_has_4_5_6_or_7_times_a_power_of_two_sequences(sequences, expected):
    found = pretrain.rounded(sequences)
    assert found == expected
    while found % 2 == 0 and found > 7:
        found //= 2
    assert found in (4, 5, 6, 7)


def test_the_machine_changes_the_micro_batch_and_not_the_step():
    for depth in DEPTHS:
        (model, cpu), (_, gpu), (_, small) = rules(depth), rules(depth, gib=80), rules(depth, gib=24)
        assert tokens_per_step(model, cpu) == tokens_per_step(model, gpu)
        assert replace(cpu, batch_size=1, gradient_accumulation_steps=1) == replace(
            gpu, batch_size=1, gradient_accumulation_steps=1
        )
        assert cpu.batch_size * model.block_size <= max(4096, 7 * model.block_size)
        assert gpu.batch_size * model.block_size <= 65_536 and small.batch_size * model.block_size <= 16_384
        assert math.log2(gpu.gradient_accumulation_steps).is_integer()  # any usual number of GPUs can share it


def test_flags_override_what_follows_from_the_depth(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def plan_of(flags: str) -> dict:
        words = f"{flags} --depth=2 --aspect_ratio=16 --block_size=16 --dry_run --json --device=cpu --precision=fp32"
        monkeypatch.setattr(sys, "argv", ["pretrain.py", "--data=data", *words.split()])
        pretrain.run()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    found = plan_of("--tokens_per_parameter=3")
    assert found["tokens"] == pytest.approx(3 * found["parameters"], rel=0.05)
    short = plan_of("--n_layer=1 --max_iters=7")
    assert short["steps"] == 7 and short["parameters"] < found["parameters"]
    assert short["tokens_per_step"] % 16 == 0
