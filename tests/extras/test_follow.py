"""Runs on the disk, read while they grow, are resumed or hold what is not theirs."""

import json
import math
import os
import time

import numpy as np
import pytest

from nanogpt.extras.dashboard import follow
from nanogpt.extras.dashboard.follow import FollowedRun, Runs, thin


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
    return FollowedRun(tmp_path, "a run")


def test_what_was_appended_is_read_once_a_half_line_later(run):
    run.update()
    assert run.curve("train_loss", "step", 100) == ([1, 2], [3.0, 2.0])
    whole = line(3, train_loss=1.0)
    append(run.metrics.path, whole[:20])
    before = run.version
    run.update()
    assert run.version == before and run.status(2) == "training"
    append(run.metrics.path, whole[20:])
    run.update()
    assert run.version > before
    assert run.curve("train_loss", "tokens", 100) == ([100, 200, 300], [3.0, 2.0, 1.0])
    assert run.curve("val_loss", "train_seconds", 100) == ([1.0], [2.5])


def test_a_resumed_run_takes_back_what_the_file_no_longer_holds(run):
    run.update()
    replacement = run.directory / "new"
    replacement.write_text(line(1, train_loss=3.0) + line(2, train_loss=1.5) + line(3, train_loss=1.0))
    os.replace(replacement, run.metrics.path)
    run.update()
    assert run.curve("train_loss", "step", 100) == ([1, 2, 3], [3.0, 1.5, 1.0])
    assert "val_loss" not in run.summary()["last"]


def test_a_long_file_is_read_in_parts_and_says_that_there_is_more(run, monkeypatch):
    monkeypatch.setattr(follow, "AT_ONCE", 300)
    append(run.metrics.path, "".join(line(step, train_loss=1.0) for step in range(3, 23)))
    counts = []
    while not counts or run.summary()["behind"]:
        run.update()
        counts.append(len(run.x["step"]))
    assert len(counts) > 3 and counts == sorted(set(counts)) and counts[-1] == 22


def test_lines_and_values_that_cannot_be_drawn_are_passed_over(run):
    append(run.metrics.path, '[1]\nnull\n"text"\n{"step": "3"}\n{"step": NaN}\n{broken\n' + "[" * 5000 + "\n\xff\n")
    append(run.metrics.path, line(3, train_loss=math.nan, lr=True, note="text", huge=1) + line(4, train_loss=math.inf))
    append(run.metrics.path, '{"step": 5, "train_loss": 1' + "0" * 400 + "}\n" + line(6, train_loss=1.0))
    run.update()
    assert run.curve("train_loss", "step", 100) == ([1, 2, 6], [3.0, 2.0, 1.0])
    assert run.summary()["last"].keys() == {"train_loss", "val_loss", "huge"}
    json.dumps(run.summary(), allow_nan=False)
    assert [alert["kind"] for alert in run.alerts] == ["nan"]


def test_the_summary_says_how_far_a_run_got(run):
    run.update()
    summary = run.summary()
    assert summary["end"] == {"step": 2, "tokens": 200, "train_seconds": 1.0}
    assert (summary["best"], summary["best_step"]) == (2.5, 2) and summary["status"] == "training"
    assert summary["settings"] == {"n_layer": "2", "max_iters": "3"}
    old = time.time() - 100
    os.utime(run.metrics.path, (old, old))
    assert run.summary()["status"] == "stopped"
    append(run.metrics.path, line(3, val_loss=2.0))
    run.update()
    assert run.summary()["status"] == "finished" and run.summary()["best"] == 2.0


def test_samples_are_followed_and_cut_to_a_length(run, monkeypatch):
    append(run.texts.path, line(1, text="first") + line(2, text="x" * 9999) + line(3, text=5))
    run.update()
    assert [(each["step"], len(each["text"])) for each in run.samples] == [(1, 5), (2, follow.LONGEST_TEXT)]
    monkeypatch.setattr(follow, "MOST", 20)
    append(run.texts.path, "".join(line(step, text="more") for step in range(4, 100)))
    run.update()
    assert [each["step"] for each in run.samples] == [1, 2, *range(4, 12), *range(90, 100)]


def test_invisible_characters_are_escaped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(line(1, **{"a\x1b[2Jb": 1.0, "caf\u00e9": 2.0}))
    (tmp_path / "samples.jsonl").write_text(line(1, text="one\n\ttwo\x1b[31m\u202ethree"))
    (tmp_path / "config.json").write_text(json.dumps({"train": {"na\x00me": "\x9b31m"}, "format": 1}))
    run = FollowedRun(tmp_path, "gpj\u202e.exe\udcff")
    run.update()
    summary = run.summary()
    assert summary["name"] == r"gpj\u202e.exe\udcff" and list(summary["last"]) == [r"a\x1b[2Jb", "caf\u00e9"]
    assert summary["settings"] == {r"na\x00me": r"\x9b31m"}
    assert run.samples == [{"step": 1.0, "text": "one\n\ttwo\\x1b[31m\\u202ethree"}]


def test_thinning_keeps_ends_and_peaks(run):
    xs = np.arange(100_000.0)
    ys = np.sin(xs / 1e4)
    ys[54_321], ys[77_777] = 9, -9
    few_x, few_y = thin(xs, ys, 600)
    assert len(few_x) <= 602 and (np.diff(few_x) > 0).all()
    assert few_x[0] == 0 and few_x[-1] == 99_999 and {54_321, 77_777} <= set(few_x)
    assert (ys[few_x.astype(int)] == few_y).all()
    assert [part.tolist() for part in thin(xs[:5], ys[:5], 600)] == [xs[:5].tolist(), ys[:5].tolist()]


def test_a_part_of_a_curve_has_all_detail_and_its_neighbours(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(line(step, lr=step) for step in range(2000)))
    run = FollowedRun(tmp_path, "run")
    run.update()
    assert run.curve("lr", "step", 100, 500, 510)[0] == list(range(499, 512))
    assert run.curve("lr", "step", 100, 0, 2)[0] == [0, 1, 2, 3]


def test_runs_are_found_two_levels_deep_and_keep_their_places(tmp_path):
    for name in ("b", "group/c", "group/deep/er"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").write_text(line(1))
    runs = Runs([str(tmp_path)])
    runs.update()
    names = [str(tmp_path / name) for name in ("b", "group/c")]
    assert [run.name for run in runs.found.values()] == names
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.jsonl").write_text(line(1))
    runs.update()
    assert [run.name for run in runs.found.values()] == [*names, str(tmp_path / "a")]
    alone = Runs([str(tmp_path / "b"), str(tmp_path)])
    alone.update()
    assert [run.name for run in alone.found.values()].count(str(tmp_path / "b")) == 1
    with pytest.raises(ValueError, match="nowhere is not a directory"):
        Runs([str(tmp_path / "nowhere")])
