"""Curves of runs as a picture."""

import json

import pytest
from matplotlib.figure import Figure

from nanogpt.cli import main
from nanogpt.run import metrics, plot


def run_with(directory, train=(), val=()):
    directory.mkdir()
    lines = [{"step": x, "tokens": 10 * x, "train_loss": y} for x, y in train]
    lines += [{"step": x, "tokens": 10 * x, "val_loss": y} for x, y in val]
    (directory / metrics.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def test_too_little_to_draw_is_no_drawing(tmp_path):
    assert not plot.curves([tmp_path / "nothing"], tmp_path / "none.png") and not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    "losses", [[(0, float("nan")), (1, float("inf")), (2, 2.0), (3, 1.0)], [(0, 1.0), (1, 1.0), (2, 1.0)]]
)
def test_losses_not_finite_or_all_the_same_are_drawn(tmp_path, losses):
    run = run_with(tmp_path / "run", train=losses, val=losses)
    assert plot.curves([run], tmp_path / "curve.png")


def test_a_name_that_looks_like_a_formula_is_a_name(tmp_path):
    runs = [run_with(tmp_path / "$a_{$", val=[(0, 4.0), (1, 2.0)]), run_with(tmp_path / "b", val=[(0, 4.0), (1, 3.0)])]
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


def test_a_picture_leaves_out_the_high_first_losses(tmp_path, monkeypatch):
    axes, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: (axes.extend(self.axes), save(self, *args)))
    falling = [(1, 9.0), *((x, 3.0 - x / 100) for x in range(10, 101, 3))]
    for name, train in (("long", falling), ("short", falling[:5])):
        run = run_with(tmp_path / name, train, val=[(0, 9.5), (100, 2.5)])
        assert plot.curves([run], tmp_path / f"{name}.png")
    (_, high), (_, whole) = (each.get_ylim() for each in axes)
    assert 2.9 < high < 3.1 and whole > 9.5
