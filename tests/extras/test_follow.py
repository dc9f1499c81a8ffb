"""Runs on the disk, read while they grow, are resumed or hold what cannot be drawn."""

import json
import math
import os
import time

import numpy as np
import pytest

from nanogpt.extras.dashboard.follow import FollowedRun, Runs, thin
from nanogpt.run import metrics


def line(step: int, **values) -> str:
    return json.dumps({"step": step, "tokens": 100 * step, "train_seconds": step / 2, **values}) + "\n"


def append(path, text: str) -> None:
    with open(path, "a") as file:
        file.write(text)


@pytest.fixture
def run(tmp_path) -> FollowedRun:
    (tmp_path / "config.json").write_text(
        json.dumps({"model": {"n_layer": 2}, "train": {"max_iters": 3}, "data": {"val": {"sha256": "0"}}})
    )
    (tmp_path / "metrics.jsonl").write_text(line(1, train_loss=3.0) + line(2, train_loss=2.0, val_loss=2.5))
    run = FollowedRun(tmp_path)
    run.update()
    return run


def test_what_was_appended_is_read_once_a_half_line_later(run):
    assert run.curve("train_loss", "step", 100) == ([1, 2], [3.0, 2.0])
    whole = line(3, train_loss=1.0)
    append(run.directory / "metrics.jsonl", whole[:20])
    run.update()
    assert run.curve("train_loss", "step", 100)[0] == [1, 2] and run.summary()["status"] == "training"
    append(run.directory / "metrics.jsonl", whole[20:])
    run.update()
    before = run.version
    run.update()
    assert run.version == before
    assert run.curve("train_loss", "tokens", 100) == ([100, 200, 300], [3.0, 2.0, 1.0])
    assert run.curve("val_loss", "train_seconds", 100) == ([1.0], [2.5])


def test_a_resumed_run_takes_back_what_the_file_no_longer_holds(run):
    replacement = run.directory / "new"
    replacement.write_text(line(1, train_loss=3.0) + line(2, train_loss=1.5) + line(3, train_loss=1.0))
    os.replace(replacement, run.directory / "metrics.jsonl")
    run.update()
    assert run.curve("train_loss", "step", 100) == ([1, 2, 3], [3.0, 1.5, 1.0])
    assert run.summary()["metrics"] == ["train_loss"]


def test_lines_and_values_that_cannot_be_drawn_are_passed_over(run):
    append(run.directory / "metrics.jsonl", '[1]\nnull\n{"step": "3"}\n{"step": NaN}\n{broken\n')
    append(
        run.directory / "metrics.jsonl",
        line(3, train_loss=math.nan, lr=True, note="text", huge=1) + line(6, train_loss=1.0),
    )
    run.update()
    assert run.curve("train_loss", "step", 100) == ([1, 2, 6], [3.0, 2.0, 1.0])
    assert run.summary()["metrics"] == ["train_loss", "val_loss", "huge"]
    assert [alert["kind"] for alert in run.summary()["alerts"]] == ["nan"]


def test_the_summary_says_how_far_a_run_got(run):
    summary = run.summary()
    assert (summary["step"], summary["samples"]) == (2, 0)
    assert (summary["best"], summary["best_step"]) == (2.5, 2) and summary["status"] == "training"
    assert summary["settings"] == {"n_layer": "2", "max_iters": "3"}
    old = time.time() - 1000
    os.utime(run.directory / "metrics.jsonl", (old, old))
    run.update()
    assert run.summary()["status"] == "stopped"
    append(run.directory / "metrics.jsonl", line(3, val_loss=2.0))
    append(run.directory / "samples.jsonl", line(3, text="a text"))
    run.update()
    assert run.summary()["status"] == "training" and run.summary()["best"] == 2.0
    assert [(sample["step"], sample["text"]) for sample in run.samples] == [(3, "a text")]
    (run.directory / "result.json").write_text(json.dumps({"reason": "time limit"}))
    run.update()
    assert run.summary()["status"] == "time limit"


def test_a_run_that_cannot_be_read_hides_no_other(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(line(1, huge=10**400) + line(2))
    read = metrics.read

    def refuse(path):
        if path.parent.name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(metrics, "read", refuse)
    runs = Runs([str(tmp_path)])
    runs.update()
    assert [run.summary()["step"] for run in runs.found.values()] == [2]
    monkeypatch.undo()
    runs.update()
    assert len(runs.found) == 2


def test_thinning_keeps_ends_and_peaks():
    xs = np.arange(100_000.0)
    ys = np.sin(xs / 1e4)
    ys[54_321], ys[77_777] = 9, -9
    few_x, few_y = thin(xs, ys, 600)
    assert len(few_x) <= 602 and (np.diff(few_x) > 0).all()
    assert few_x[0] == 0 and few_x[-1] == 99_999 and {54_321, 77_777} <= set(few_x)
    assert (ys[few_x.astype(int)] == few_y).all()


def test_runs_are_found_two_levels_deep_and_once(tmp_path):
    for name in ("b", "group/c", "group/deep/er"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").write_text(line(1))
    runs = Runs([str(tmp_path), str(tmp_path / "b")])
    runs.update()
    assert [run.directory for run in runs.found.values()] == [tmp_path / "b", tmp_path / "group/c"]
    found = runs.found[str(tmp_path / "b")]
    runs.update()
    assert runs.found[str(tmp_path / "b")] is found
