"""docs/make_pictures.py: curves from nanoGPT's log and from runs."""

import importlib.util
import json

import pytest
from pages import ROOT

spec = importlib.util.spec_from_file_location("make_pictures", ROOT / "docs" / "make_pictures.py")
make_pictures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_pictures)

LOG = """\
step 0: train loss 4.2, val loss 4.1
iter 0: loss 4.1, time 900.00ms, mfu -100.00%
iter 1: loss 4.0, time 10.00ms, mfu -100.00%
iter 3: loss 3.0, time 30.00ms, mfu 0.02%
step 4: train loss 2.9, val loss 2.8
iter 4: loss 2.9, time 700.00ms, mfu 0.02%
"""


def test_seconds_of_nanogpt_leave_evaluations_out():
    # iterations 0 to 3: 10 (as the next), 10, 20 (between its neighbors) and 30 ms
    assert make_pictures.nanogpt_curve(LOG) == [(0.0, 4.1), (pytest.approx(0.070), 2.8)]


def test_a_picture_of_a_run_beside_nanogpt(tmp_path):
    (tmp_path / "run").mkdir()
    lines = [{"step": s, "tokens": s, "train_seconds": s, "val_loss": loss} for s, loss in ((0, 4.2), (9, 1.9))]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "nanogpt.log").write_text(LOG)
    out = tmp_path / "speed.png"
    assert make_pictures.run_curve(tmp_path / "run") == [(0, 4.2), (9, 1.9)]
    make_pictures.main([f"main job={tmp_path / 'run'}", "--nanogpt", str(tmp_path / "nanogpt.log"), "--out", str(out)])
    assert out.read_bytes().startswith(b"\x89PNG")
