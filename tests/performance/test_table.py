import json
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

path = Path(__file__).with_name("table.py")
spec = spec_from_file_location("table", path)
table = module_from_spec(spec)
spec.loader.exec_module(table)


def evaluation(loss: float, seconds: float) -> dict:
    return {"val_loss": loss, "train_seconds": seconds, "tokens": 2_000_000}


@pytest.mark.parametrize(
    "losses, said", [((1.9, 1.89, 1.88), "passed: 1.890"), ((1.95, 1.89, 1.9), "not reached: 1.900")]
)
def test_times_are_ratios_and_the_median_of_the_losses_decides(monkeypatch, tmp_path, losses, said):
    ends = [evaluation(loss, 10.0 * seed) for seed, loss in enumerate(losses, 1)] + [evaluation(1.5, 119.0)]
    seeds: list[int] = []
    monkeypatch.setattr(table, "nanogpts_seconds", lambda clone, scratch: 120.0)

    def train(recipe: str, flags: str, out_dir: Path) -> list[dict]:
        assert recipe == "shakespeare.py" and ("--train_minutes=2.0" in flags.split()) == (out_dir.name == "same")
        seeds.append(int(flags.split("--seed=")[1]))
        return [evaluation(4.2, 0.0), ends.pop(0)]

    monkeypatch.setattr(table, "train", train)
    first, second = table.learning(None, tmp_path)
    assert said in first[0] and first[1].startswith("20.0 s") and first[2] == "1/6.0 (1/4.0 to 1/12.0)"
    assert seeds == [1, 2, 3, 1]
    assert second == ("loss of recipes/shakespeare.py after these 120.0 s", "1.5000", "one seed")


def test_nanogpts_loss_on_a_gpu_is_reached_with_fewer_steps_than_the_recipe_has(monkeypatch, tmp_path):
    ends = {"fewer": evaluation(1.46, 200), "best": evaluation(1.44, 300)}

    def train(recipe: str, flags: str, out_dir: Path) -> list[dict]:
        assert recipe == "shakespeare_best.py" and ("--max_iters" in flags) == (out_dir.name == "fewer")
        return [evaluation(4.2, 0), ends[out_dir.name]]

    monkeypatch.setattr(table, "train", train)
    first, second = table.best(tmp_path)
    assert "passed: 1.4600" in first[0] and first[1:] == ("200 s", "2.00 million tokens")
    assert second == ("loss of recipes/shakespeare_best.py", "1.4400", "300 s")
    ends["fewer"] = evaluation(1.48, 200)
    assert "not reached: 1.4800" in next(table.best(tmp_path))[0]


def test_shares_come_from_nanogpt_bench(monkeypatch):
    row = {"part": "train", "who": "nanogpt", "rate": 1234.5, "unit": "tokens/s", "of_limit": 0.5, "spread": 0.1}
    shown = json.dumps({"rows": [row, row | {"who": "products + attention"}]})
    monkeypatch.setattr(table, "call", lambda *command: f"a note\n{shown}\n")
    assert list(table.bench("laptop", "train")) == [
        ("train, nanogpt, laptop, share of its limit", "1234.5 tokens/s", "50% (spread 10%)")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["", "g++"])
def test_ten_samples_at_once_are_timed_against_nanogpts_loop(monkeypatch, compiler):
    monkeypatch.setattr(table.shutil, "which", lambda name: compiler)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    rows = list(table.batch_of_ten(rounds=2, tokens=8))
    assert ["compiled" in row[0] for row in rows] == ([False, True] if compiler else [False])
    for _, rate, ratio in rows:
        assert re.fullmatch(r"\d+ tokens/s", rate) and re.fullmatch(r"[\d.]+ times \([\d.]+ to [\d.]+\)", ratio)
