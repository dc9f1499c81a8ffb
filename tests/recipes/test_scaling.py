"""recipes/scaling.py finds a known law, and a tiny ladder of real runs is trained, fitted, checked and reused."""

import json
import sys

import numpy as np
import pytest
import scaling
from texts import write_data

COMPUTE = np.array([1e11, 1e12, 6e12, 3e13])


@pytest.mark.parametrize("law", [(0.6, 60.0, 0.17), (0.0, 12.0, 0.08), (1.7, 400.0, 0.25)])
def test_the_fit_finds_a_known_law(law):
    losses = law[0] + law[1] * COMPUTE ** -law[2]
    assert scaling.fit(COMPUTE, losses) == pytest.approx(law, rel=0.01, abs=0.001)
    assert scaling.fit(COMPUTE[:3], losses[:3])[0] == 0  # three do not determine a floor


LADDER = "--data=~/data --out_dir=~/out --depths=1,2,3 --aspect_ratio=8 --block_size=16 --tokens_per_parameter=0.1"
LADDER += " --device=cpu --precision=fp32 --threads=1 --sample_tokens=0 --log_interval=1000"


def test_a_tiny_ladder_is_trained_fitted_checked_and_reused(tmp_path, text, monkeypatch):
    write_data(tmp_path / "data", text[:5000], "bytes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["scaling.py", *LADDER.split(), "--check", "--seeds=2"])
    scaling.run()
    found = json.loads((tmp_path / "out" / "scaling.json").read_text())
    paths = sorted(tmp_path.glob("out/*/result.json"))
    runs = [f"depth-{depth}-seed{seed}" for depth in (1, 2) for seed in (1337, 1338)]
    assert [path.parent.name for path in paths] == [*runs, "depth-3", "depth-4"]
    losses = [json.loads(path.read_text())["val_loss"] for path in paths]
    means = [np.mean(losses[:2]), np.mean(losses[2:4]), losses[4], losses[5]]
    assert losses[0] != losses[1]
    assert [rung["val_loss"] for rung in (*found["rungs"], found["check"])] == pytest.approx(means)
    assert found["check"]["compute"] == pytest.approx(4 * found["rungs"][-1]["compute"], rel=0.1)
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/step-*")}
    flags = [flag for flag in LADDER.split() if not flag.startswith(("--out_dir", "--depths"))]
    assert scaling.train(3, 1, "out", flags) == found["rungs"][-1]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/step-*")} == trained
