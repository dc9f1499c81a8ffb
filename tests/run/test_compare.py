"""Comparison of runs, on curves written by hand."""

import json
import math
from pathlib import Path

import pytest

from nanogpt.run.compare import compare, verdict


def make(directory: Path, seed: int, losses: dict[int, float], tokens: int = 10, **settings) -> Path:
    directory.mkdir()
    config = {
        "model": {"n_layer": 2},
        "train": {"seed": seed, "out_dir": str(directory), "learning_rate": 0.1} | settings,
    }
    (directory / "config.json").write_text(json.dumps(config))
    lines = [{"step": s, "tokens": tokens * s, "train_seconds": 0.5 * s, "val_loss": v} for s, v in losses.items()]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def rows(text: str, title: str) -> dict[str, list[str]]:
    """The lines below a title, by their first column."""
    lines = text.split(f"{title}\n")[1].split("\n\n")[0].splitlines()
    return {line.split("  ")[0]: line[28:].split() for line in lines}


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    return [
        make(tmp_path / "a1", 1, {0: 4.0, 10: 3.0, 20: 2.0}),
        make(tmp_path / "a2", 2, {0: 4.2, 10: 3.2, 20: 2.4}),
        make(tmp_path / "b", 1, {0: 4.0, 5: 3.5, 20: 2.5, 40: 1.5}, tokens=20, learning_rate=0.3),
    ]


def test_runs_that_differ_in_their_seed_are_one_column_with_its_spread(runs):
    text = compare(runs)
    assert text.splitlines()[0].split() == ["a1", "b"]
    assert text.splitlines()[1].split() == ["seeds", "2", "1"]
    # standard deviations of (2.0, 2.4) and (3.0, 3.2): the difference over the square root of 2
    assert rows(text, "by equal steps")["20"] == ["2.2000", "±0.2828", "2.5000"]
    assert rows(text, "by equal steps")["10"] == ["3.1000", "±0.1414", "3.5000"]
    assert text.splitlines()[-1].split() == ["lowest", "2.2000", "±0.2828", "1.5000"]


def test_only_settings_that_differ_are_shown_and_circumstances_are_not(runs):
    text = compare(runs)
    assert next(line for line in text.splitlines() if line.startswith("learning_rate")).split()[1:] == ["0.1", "0.3"]
    assert "n_layer" not in text and "out_dir" not in text and "\nseed " not in text


def test_equal_tokens_and_time_are_not_equal_steps(runs):
    text = compare(runs)
    # 200 tokens: step 20 of a, step 10 of b, whose last evaluation by then was at step 5
    assert rows(text, "by equal tokens")["200"] == ["2.2000", "±0.2828", "3.5000"]
    assert rows(text, "by equal seconds of training")["10.0"] == ["2.2000", "±0.2828", "2.5000"]


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not an out directory"):
        compare([tmp_path])
    with pytest.raises(ValueError, match="has no validation loss yet"):
        compare([make(tmp_path / "new", 1, {})])


def test_runs_of_one_name_and_different_settings_are_told_apart_by_their_paths(tmp_path):
    for name, rate in (("one", 0.1), ("two", 0.3), ("three", 0.1)):
        (tmp_path / name).mkdir()
        make(tmp_path / name / "run", 1, {0: 4.0, 10: 3.0}, learning_rate=rate)
    text = compare([tmp_path / name / "run" for name in ("one", "two", "three")])
    assert text.splitlines()[0].split() == [str(tmp_path / "one" / "run"), str(tmp_path / "two" / "run")]
    assert text.splitlines()[1].split() == ["seeds", "2", "1"]


@pytest.mark.parametrize("digests, columns", [("xx", 1), ("xy", 2), ((None, None), 2)])
def test_runs_are_of_one_kind_where_their_tokens_are_the_same(tmp_path, digests, columns):
    """Without the tokens' SHA-256 (a mixture has none) by the name of the data."""
    for name, digest in zip("ab", digests, strict=True):
        run = make(tmp_path / name, 1, {0: 4.0, 10: 3.0}, data=f"data/{name}")
        config = json.loads((run / "config.json").read_text())
        config["data"] = {split: {"tokens": 100} | ({"sha256": digest} if digest else {}) for split in ("train", "val")}
        (run / "config.json").write_text(json.dumps(config))
    lines = compare([tmp_path / "a", tmp_path / "b"]).splitlines()
    assert len(lines[0].split()) == columns
    assert [line.split() for line in lines if line.startswith("data")] == [["data", "data/a", "data/b"]] * (columns - 1)


def test_runs_that_have_no_step_in_common_are_named(runs, tmp_path):
    late = make(tmp_path / "late", 1, {2000: 2.0, 3000: 1.0}, n_layer=3)
    shown = compare([runs[0], late])
    assert f"late starts after 2,000 steps, but {runs[0]} ends at 20: there is nothing to compare" in shown
    assert shown.splitlines()[-1].split() == ["lowest", "2.0000", "1.0000"]


def test_losses_that_are_no_numbers_are_shown_as_such(tmp_path):
    runs = [make(tmp_path / name, seed, {0: 4.0, 10: loss}) for name, seed, loss in (("a", 1, 3.0), ("b", 2, math.inf))]
    assert compare(runs).splitlines()[-1].split() == ["lowest", "3.5000", "±0.7071"]
    assert "inf ±nan" in compare(runs)


@pytest.mark.parametrize("config", [{}, {"model": 5, "train": {}}, {"model": {}, "train": {}, "data": [1]}])
def test_a_configuration_of_other_types_is_named(tmp_path, config):
    run = make(tmp_path / "a", 1, {0: 4.0})
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json is not a run's configuration"):
        compare([run])


def test_a_verdict_names_the_better_one_and_whether_that_is_more_than_the_seeds_spread(runs):
    found = verdict([*runs[:2], make(runs[0].parent / "c", 3, {0: 4.0, 20: 2.3}, learning_rate=0.3)])
    assert (found["better"], found["beyond_spread"]) == ("a1", False)
    assert (found["by"], found["spread"]) == (pytest.approx(0.1), pytest.approx(0.08**0.5))  # of 2.0 and 2.4
    first, second = found["runs"]
    assert (first["runs"], first["settings"]) == ([str(run) for run in runs[:2]], {"learning_rate": 0.1})
    assert (second["name"], second["val_loss"], second["spread"]) == ("c", 2.3, None)
    far = verdict(runs)
    assert (far["better"], far["by"], far["beyond_spread"]) == ("b", pytest.approx(0.7), True)
    steps = far["at_equal"]["steps"]
    assert (steps["at"], steps["val_loss"]) == (20, {"a1": pytest.approx(2.2), "b": 2.5})


def test_a_verdict_needs_seeds_to_know_the_spread_and_two_kinds_to_compare(runs):
    found = verdict([runs[0], runs[2]])
    assert (found["better"], found["spread"], found["beyond_spread"]) == ("b", None, None)
    assert verdict(runs[:2])["better"] is None
    lost = make(runs[0].parent / "lost", 1, {0: 4.0, 10: math.nan}, learning_rate=0.5)
    assert verdict([lost, runs[0]])["better"] == "a1"
