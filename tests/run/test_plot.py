"""Curves of runs as a picture."""

import json

import pytest

from nanogpt.cli import main
from nanogpt.run import metrics, plot


def run_with(directory, train=(), val=()):
    directory.mkdir()
    lines = [{"step": x, "tokens": 10 * x, "train_loss": y} for x, y in train]
    lines += [{"step": x, "tokens": 10 * x, "val_loss": y} for x, y in val]
    (directory / metrics.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def test_losses_that_are_not_finite_are_drawn_and_a_name_like_a_formula_is_a_name(tmp_path):
    odd = [(0, float("nan")), (1, float("inf")), (2, 2.0), (3, 1.0)]
    runs = [run_with(tmp_path / "$a_{$", odd, odd), run_with(tmp_path / "b", val=[(0, 4.0), (1, 3.0)])]
    assert plot.curves(runs, tmp_path / "curves.svg")


def test_the_command_draws_runs_and_refuses_the_rest(tmp_path, capsys):
    run, out = run_with(tmp_path / "run", val=[(0, 4.0), (1, 2.0)]), tmp_path / "curves.png"
    main(["plot", str(run), "--out", str(out)])
    assert out.read_bytes().startswith(b"\x89PNG")
    empty, other = run_with(tmp_path / "empty"), tmp_path / "curves.xyz"
    for wrong, to, word in ((tmp_path, out, "out directory"), (empty, out, "no measurements"), (run, other, "xyz")):
        with pytest.raises(SystemExit, match="2"):
            main(["plot", str(wrong), "--out", str(to)])
        assert word in capsys.readouterr().err
