"""The programs in benchmarks/ still run: their shortest form."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.nightly
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_table_times_ten_samples_at_once(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import table

    rows = list(table.batch_of_ten(rounds=2, tokens=8))
    assert rows and all(row[1].endswith(" tokens/s") for row in rows)


def test_sampling_is_compared_with_the_programs_that_are_installed(monkeypatch, tmp_path, gpt2_files):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import sampling

    sampling.make_model(tmp_path, n_layer=1, n_head=2, n_embd=64, n_positions=64)
    assert all(" tokens/s, " in line for line in sampling.compare(tmp_path, rounds=2, tokens=4))


def test_the_device_report_tests_and_measures_a_cpu(zygote, tmp_path):
    done = zygote.run(BENCHMARKS / "device_report.py", *"--device cpu --tiny --out".split(), tmp_path, cwd=tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert done.returncode == 0 and report["problems"] == [], report
    assert {row["result"] for row in report["tests"]} == {"passed", "skipped"}
    assert {row["who"] for row in report["bench"]} == {"nanogpt", "nanoGPT's formula"} and report["time"]["best"]
    assert all(row["of_limit"] > 0 for row in report["bench"])  # of a large matmul, measured in the same run


def test_the_share_of_matmuls_and_attention_is_a_part_of_the_step(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import step_share

    line = step_share.measure(
        SimpleNamespace(model="classic", precision="fp32", rounds=3, device="cpu", batch_size=None)
    )
    assert 0 < int(re.search(r"share (\d+)%", line)[1]) <= 110, line  # of neighboring times, so about 100 at most


@pytest.mark.parametrize("name", ["cpu_parts", "against_nanogpt"])
def test_the_others_start(zygote, tmp_path, name):
    assert zygote.run(BENCHMARKS / f"{name}.py", "--help", cwd=tmp_path).returncode == 0
