"""recipes/speedrun.py: an entry is trained for its minutes, evaluated again, and held to the rules."""

import json
import re

import pytest
import speedrun

TINY = "--n_layer=1 --n_head=2 --n_embd=16 --n_inner=32 --train_minutes=0.003 --sample_tokens=0".split()


@pytest.fixture
def prepared(shakespeare, tmp_path):
    (tmp_path / speedrun.DATA).mkdir(parents=True)
    (tmp_path / speedrun.DATA / "input.txt").write_bytes(shakespeare.read_bytes())
    return tmp_path


def test_a_tiny_entry_prints_its_row(prepared, recipe, monkeypatch):
    done = recipe("speedrun", "--track=2", *TINY, "--block_size=64", "--seeds=2", "--seed=1")
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    losses = [float(loss) for loss in re.search(r"\(([\d., ]+)\)", last)[1].split(", ")]
    monkeypatch.chdir(prepared)
    for seed, loss in zip((1, 2), losses, strict=True):
        recorded = json.loads((prepared / f"out/speedrun-2-seed{seed}/result.json").read_text())
        assert loss == pytest.approx(recorded["val_loss"], abs=2e-3)  # which was in bf16, perhaps
    runs = [prepared / f"out/speedrun-2-seed{seed}" for seed in (1, 2)]
    with pytest.raises(ValueError, match=r"took \d+ s"):
        speedrun.row(runs, -1)
    monkeypatch.setattr(speedrun, "VALIDATION", 7)
    with pytest.raises(ValueError, match="not nanoGPT's split"):
        speedrun.row(runs, 0.003)
