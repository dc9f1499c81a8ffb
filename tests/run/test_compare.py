"""Comparing runs: equal steps, tokens and time, spread over seeds, and a verdict by Welch's test."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from nanogpt.run.compare import ALPHA, compare, group, verdict, welch


def make(directory: Path, seed: int, losses: dict[int, float], tokens: int = 10, kept=None, **settings) -> Path:
    """A finished run whose curve is written by hand, of half a second a step."""
    directory.mkdir(parents=True)
    (directory / "result.json").write_text('{"reason": "finished"}')
    train = {"seed": seed, "out_dir": str(directory), "learning_rate": 0.1, "train_minutes": 1} | settings
    config = {"model": {"n_layer": 2}, "train": train, "data": kept or {}}
    (directory / "config.json").write_text(json.dumps(config))
    lines = [{"step": s, "tokens": tokens * s, "train_seconds": 0.5 * s, "val_loss": v} for s, v in losses.items()]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def row(text: str, name: str) -> list[str]:
    """The columns of the line that begins with `name`."""
    return next((line.removeprefix(name).split() for line in text.splitlines() if line.startswith(name)), [])


def judge(runs: list[Path]) -> dict:
    return verdict(group(runs), runs[0])


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    return [
        make(tmp_path / "a1", 1, {0: 4.0, 10: 3.0, 20: 2.0}),
        make(tmp_path / "a2", 2, {0: 4.2, 10: 3.2, 20: 2.4}),
        make(tmp_path / "b", 1, {0: 4.0, 5: 3.5, 20: 2.5, 40: 1.5}, tokens=20, learning_rate=0.3),
    ]


def test_seeds_share_a_column_at_equal_steps_tokens_and_time(runs):
    text = compare(runs)
    assert text.splitlines()[0].split() == [str(runs[2]), str(runs[0])] and row(text, "seeds") == ["1", "2"]
    # standard deviation of (2.0, 2.4): the difference over the square root of 2
    assert row(text, "at 20 steps") == ["2.5000", "2.2000", "±0.2828"]
    assert row(text, "lowest") == ["1.5000", "2.2000", "±0.2828"]
    # 200 tokens: step 20 of a, step 10 of b, a third of the way from 3.5 at step 5 to 2.5 at step 20
    assert row(text, "at 200 tokens") == ["3.1667", "2.2000", "±0.2828"]
    assert row(text, "at 10 seconds of training") == ["2.5000", "2.2000", "±0.2828"]
    assert row(text, "learning_rate") == ["0.3", "0.1"]  # a setting that differs
    assert "n_layer" not in text and "\nout_dir" not in text and "\nseed " not in text


def test_nothing_is_interpolated_before_the_second_evaluation(tmp_path):
    runs = [make(tmp_path / "a", 1, {0: 4.0, 10: 2.0})]
    runs.append(make(tmp_path / "b", 1, {0: 4.0, 12: 2.0}, learning_rate=0.3))
    rows = [line for line in compare(runs).splitlines() if line.startswith("at ")]
    assert len(rows) == 3 and all(line.count("too few evaluations") == 2 for line in rows)


def test_each_of_three_ideas_is_tested_against_the_first_named(tmp_path):
    lowest = {"base": (2.0, 2.1), "better": (1.0, 1.2), "same": (1.9, 2.3)}
    runs = []
    for rate, (name, losses) in enumerate(lowest.items()):
        for seed, loss in enumerate(losses):
            runs.append(make(tmp_path / f"{name}{seed}", seed, {0: 4.0, 10: loss}, learning_rate=rate))
    p = [welch(lowest[name], lowest["base"]) for name in ("better", "same")]
    assert [idea["p"] for idea in judge(runs)["runs"]] == [p[0], None, p[1]]  # better, base, same
    assert row(compare(runs), "p against the first named") == [f"{each:.2g}" for each in p]


def test_a_step_that_was_divided_otherwise_is_the_same_idea(tmp_path):
    a = make(tmp_path / "a", 1, {0: 4.0, 10: 3.0}, batch_size=8, gradient_accumulation_steps=2)
    b = make(tmp_path / "b", 2, {0: 4.0, 10: 3.0}, batch_size=2, gradient_accumulation_steps=8)
    c = make(tmp_path / "c", 1, {0: 4.0, 10: 3.0}, batch_size=2, gradient_accumulation_steps=16)
    assert sorted(len(curves) for curves in group([a, b, c])) == [1, 2]
    assert sorted(row(compare([a, b, c]), "sequences")) == ["16", "32"]


@pytest.mark.parametrize("digests, columns", [("xx", 1), ("xy", 2), ((None, None), 2)])
def test_runs_are_of_one_kind_if_their_tokens_are_the_same(tmp_path, digests, columns):
    """Without the tokens' SHA-256 (a mixture has none) by the name of the data. Other data allow no verdict."""
    for seed, (name, digest) in enumerate(zip("ab", digests, strict=True)):
        kept = {split: {"tokens": 100} | ({"sha256": digest} if digest else {}) for split in ("train", "val")}
        make(tmp_path / name, seed, {0: 4.0, 10: 3.0}, kept=kept, data=f"data/{name}")
    text = compare([tmp_path / "a", tmp_path / "b"])
    assert len(text.splitlines()[0].split()) == columns
    assert row(text, "data") == ["data/a", "data/b"][: 2 * (columns - 1)]
    assert ("validation data differ" in text) is (digests == "xy")


def test_runs_that_have_no_step_in_common_are_compared_by_their_lowest_loss(runs, tmp_path):
    late = make(tmp_path / "late", 1, {2000: 2.0, 3000: 1.0}, n_layer=3)
    shown = compare([runs[0], late])
    assert row(shown, "at 20 steps") == ["too", "few", "evaluations"] * 2
    assert row(shown, "lowest") == ["1.0000", "2.0000"]


def test_what_is_no_run_or_the_same_one_is_named(runs, tmp_path):
    with pytest.raises(ValueError, match="no validation loss"):
        compare([tmp_path])
    with pytest.raises(ValueError, match="no validation loss"):
        compare([make(tmp_path / "new", 1, {})])
    with pytest.raises(ValueError, match=r"a1, .*again: two have the same settings, code and seed"):
        compare([runs[0], make(tmp_path / "again", 1, {0: 4.0})])
    (runs[0] / "config.json").write_text(json.dumps({"model": 5, "train": {}}))
    with pytest.raises(ValueError, match=r"config\.json"):
        compare(runs)


def test_a_verdict_names_the_better_and_whether_seeds_explain_it(runs):
    near = judge([*runs[:2], make(runs[0].parent / "c", 3, {0: 4.0, 20: 2.3}, learning_rate=0.3)])
    assert (near["better"], near["by"]) == (str(runs[0]), pytest.approx(0.1))  # 2.3 - (2.0 + 2.4) / 2
    first, second = near["runs"]
    assert (first["runs"], first["settings"]) == ([str(run) for run in runs[:2]], {"learning_rate": 0.1})
    assert (first["spread"], second["val_loss"], second["spread"]) == (pytest.approx(0.08**0.5), 2.3, None)

    far = judge([*runs, make(runs[0].parent / "b2", 2, {0: 4.0, 40: 1.5001}, learning_rate=0.3)])
    # both variances 0.08 and 5e-9: t = 0.69995 / 0.2, df = 1, and p = 1 - 2 / pi * atan(t) (Cauchy's distribution)
    assert (far["better"], far["significant"]) == (str(runs[2]), False)
    assert far["p"] == pytest.approx(1 - 2 / math.pi * math.atan(0.69995 / 0.2), rel=1e-4)
    assert judge(runs[:2])["better"] is None


def test_a_significant_difference_is_the_last_line(tmp_path):
    for i, (a, b) in enumerate(((2.00, 1.50), (2.01, 1.51), (2.02, 1.52))):
        make(tmp_path / f"a{i}", i, {0: 4.0, 10: a})
        make(tmp_path / f"b{i}", i, {0: 4.0, 10: b}, learning_rate=0.3)
    # t = 0.5 / sqrt(2 * 0.0001 / 3) = 61.2 at df 4: p by scipy.stats.t.sf
    found = judge(sorted(tmp_path.iterdir()))
    assert found["significant"] and found["p"] == pytest.approx(4.26e-7, rel=0.01)
    assert "p = 4.3e-07" in compare(sorted(tmp_path.iterdir())).splitlines()[-1]


def test_a_single_seed_gets_no_p_and_nan_is_the_worst_loss(runs):
    for some in (runs, [runs[0], runs[2]]):  # 2 seeds against 1, 1 against 1
        found = judge(some)
        assert (found["better"], found["p"], found["significant"]) == (str(runs[2]), None, None)
        assert "at least two seeds" in compare(some).splitlines()[-1]
    lost = make(runs[0].parent / "lost", 1, {0: math.nan, 10: math.nan}, learning_rate=0.5)
    assert judge([lost, runs[0]])["better"] == str(runs[0])


@pytest.mark.parametrize("n, m, scale", [(2, 2, 1), (5, 5, 1), (2, 3, 1), (3, 3, 3)])
def test_without_a_difference_few_comparisons_are_significant(n, m, scale):
    """At most 6 % of them; one standard deviation would be exceeded in 33 % (2 against 2) to 10 % (5 against 5)."""
    rng = np.random.default_rng(1)
    found = [welch(rng.normal(size=n), scale * rng.normal(size=m)) for _ in range(5000)]
    assert np.mean(np.array(found) < ALPHA) < 0.06


@pytest.mark.parametrize("tokens, minutes, why_not", [(10, 0, "not trained for"), (5, 0, None), (10, 1, None)])
def test_a_longer_run_is_not_a_better_idea(tmp_path, tokens, minutes, why_not):
    for seed in (1, 2):  # twice as many steps: comparable if they have half as many tokens, or take equal time
        make(tmp_path / f"a{seed}", seed, {0: 4.0, 10: 2.0 + 0.1 * seed}, train_minutes=minutes)
        longer = {0: 4.0, 20: 1.0 + 0.1 * seed}
        make(tmp_path / f"b{seed}", seed, longer, tokens, train_minutes=minutes, max_iters=20)
    found = judge(sorted(tmp_path.iterdir()))
    assert (found["better"] is None, found["p"] is None) == (bool(why_not), bool(why_not))
    assert (why_not or "") in (found["why_not"] or "")


@pytest.mark.parametrize("result", [None, '{"reason": "interrupted"}'])
def test_an_unfinished_run_allows_no_verdict(runs, result):
    (runs[2] / "result.json").unlink()
    if result:
        (runs[2] / "result.json").write_text(result)
    assert f"not finished: {runs[2]}" in compare(runs)
