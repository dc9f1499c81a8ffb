"""The files of metrics and samples hold each step once, whatever happens to the run; a failing tracker is a warning."""

import dataclasses
import json
import os
import resource
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from helpers import curve
from tiny_run import Run

from nanogpt import checkpoint, train
from nanogpt.extras.dashboard import follow
from nanogpt.hub import export
from nanogpt.run import compare, metrics, plot

DROPOUT = dataclasses.replace(TINY, dropout=0.2)


@pytest.fixture
def done(make_run, capsys) -> Run:
    """A run of four steps, evaluated at 0, 2 and 4."""
    run = make_run(max_iters=4, eval_interval=2, log_interval=1)
    run.train()
    capsys.readouterr()
    return run


DAMAGED = ["5", "[1]", '{"a": 1}', '{"step": "one"}', '{"step": NaN}', "[" * 100_000, "\x00garbage\xff", "null"]


def test_everything_that_reads_metrics_takes_damaged_and_odd_lines(make_run, done, tmp_path):
    best = f"{min(curve(done.out_dir).values()):.4f}"
    odd = ['{"step": 4}', '{"step": 4, "val_loss": "low", "tokens": [], "train_seconds": {}}']
    with open(done.out_dir / metrics.METRICS, "a") as file:
        file.write("\n".join([*DAMAGED, *odd, '{"step": 4, "val_loss": 1}', '{"step": 5, "cut']))
    assert compare.compare([done.out_dir]).split()[-1] == best
    assert plot.curves([done.out_dir], tmp_path / "curve.png")
    assert export.export(done.out_dir, tmp_path / "export", say=lambda text: None).is_dir()
    runs = follow.Runs([str(done.out_dir)])
    runs.update()
    (run,) = runs.found.values()
    assert run.summary()["best_step"] == 4
    again = make_run(max_iters=6, eval_interval=2, resume="auto")  # writes the file anew, without the damaged ones
    again.train()
    lines = map(json.loads, (again.out_dir / metrics.METRICS).read_text().splitlines())
    assert {line["step"] for line in lines if "val_loss" in line} == {0, 2, 4, 6}


def test_sampling_changes_nothing_of_the_training(make_run, tmp_path):
    ends = []
    for n in (0, 30):
        run = make_run(DROPOUT, sample_tokens=n, eval_interval=2, out_dir=str(tmp_path / f"{n}"))
        run.train()
        ends.append(run.gpt.state_dict())
        assert bool((run.out_dir / metrics.SAMPLES).read_text()) is (n > 0)
    assert all(torch.equal(a, b) for a, b in zip(ends[0].values(), ends[1].values(), strict=True))


@pytest.mark.parametrize("processes", [1, 3])
def test_mfu_is_a_share_of_the_peaks_of_all_processes(make_run, monkeypatch, processes):
    peak, run = 1e12, make_run(log_interval=2)
    log, run.parts.peak_flops = run.log, peak

    def log_as_one_of_several() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(type(run.accelerator), "num_processes", processes)
            log()

    run.log = log_as_one_of_several
    run.train()
    mfu, speed = curve(run.out_dir, "mfu"), curve(run.out_dir, "tokens_per_second")
    share = run.gpt.flops_per_token() / peak / processes
    assert mfu == {step: pytest.approx(speed[step] * share) for step in (2, 4)}


def test_a_curve_whose_checkpoints_are_gone_is_kept(make_run, done):
    before = (done.out_dir / metrics.METRICS).read_text()
    for step in checkpoint.list_checkpoints(done.out_dir):
        shutil.rmtree(step)
    for link in ("best", "last"):
        (done.out_dir / link).unlink()
    make_run(max_iters=4, eval_interval=4, resume="auto")
    assert (done.out_dir / metrics.METRICS).read_text() == ""
    assert (done.out_dir / "metrics-replaced.jsonl").read_text() == before


def test_the_curve_of_later_checkpoints_is_kept_if_a_run_goes_back(make_run, done):
    before = (done.out_dir / metrics.METRICS).read_text()
    run = make_run(max_iters=4, eval_interval=2, resume=str(done.out_dir / "step-000002"))
    assert list(curve(run.out_dir)) == [0, 2]
    kept, replaced = (run.out_dir / name for name in (metrics.METRICS, "metrics-replaced.jsonl"))
    assert kept.read_text() + replaced.read_text() == before
    assert (run.out_dir / "last").resolve().name == "step-000002"  # a kill now would not leave a hole in the curve


def test_evaluating_an_earlier_checkpoint_changes_no_file(make_run, done):
    names = (metrics.METRICS, metrics.SAMPLES, metrics.RESULT, checkpoint.CONFIG)
    before = [(done.out_dir / name).read_bytes() for name in names]
    make_run(max_iters=0, resume=str(done.out_dir / "step-000002"), learning_rate=1.0).train()
    assert [(done.out_dir / name).read_bytes() for name in names] == before


def test_an_interrupted_evaluation_of_an_earlier_checkpoint_changes_no_file(make_run, done, monkeypatch):
    def interrupted(*args, check, **options):
        os.kill(os.getpid(), signal.SIGINT)
        check()

    def contents() -> dict:
        return {path: path.is_symlink() or path.read_bytes() for path in done.out_dir.rglob("*") if path.is_file()}

    monkeypatch.setattr(train, "evaluate", interrupted)
    before, last = contents(), (done.out_dir / "last").resolve()
    with pytest.raises(SystemExit) as exit:
        make_run(max_iters=0, resume=str(done.out_dir / "step-000002")).train()
    assert exit.value.code == 130
    assert contents() == before and (done.out_dir / "last").resolve() == last


def test_half_a_line_that_a_full_disk_took_is_removed(tmp_path, caplog):
    written = make_metrics(tmp_path, Tracker())
    written.log(step=1, train_loss=1.0)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / metrics.METRICS).stat().st_size + 5, -1))
        written.log(step=2, train_loss=1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    written.log(step=3, train_loss=1.0)
    assert "metrics.jsonl could not be written: the disk is full" in caplog.text
    assert list(curve(tmp_path, "train_loss")) == [1, 3]


class Tracker:
    """What Accelerate makes of a tracker, as far as it is used here; remembers, or raises."""

    def __init__(self, error: Exception | None = None):
        self.error, self.shown = error, []

    def log(self, values, step) -> None:
        print("an advertisement")
        if self.error:
            raise self.error
        self.shown.append((values, step))

    def finish(self) -> None:
        self.shown.append("finished")


def make_metrics(tmp_path, tracker: Tracker) -> metrics.Metrics:
    accelerator = SimpleNamespace(is_main_process=True, log_with=["some"], trackers=[tracker])
    accelerator.init_trackers = lambda *args: None
    return metrics.Metrics(accelerator, tmp_path, -1, {})


def test_a_tracker_gets_text_and_curve_and_is_finished_and_its_output_is_dropped(tmp_path, capsys):
    """Accelerate's own end_training would destroy the process group, which the end of a run still needs."""
    tracker = Tracker()
    written = make_metrics(tmp_path, tracker)
    written.log(step=5, tokens=50)
    written.sample("<b>first</b>\nsecond", step=5, tokens=50)
    written.close()
    assert tracker.shown == [({"tokens": 50}, 5), ({"sample": "    <b>first</b>\n    second"}, 5), "finished"]
    assert "advertisement" not in capsys.readouterr().out


def test_a_tracker_that_fails_is_one_warning(tmp_path, caplog):
    written = make_metrics(tmp_path, Tracker(OSError("no network")))
    for step in (1, 2):
        written.log(step=step, train_loss=1.0)
    written.close()
    (warning,) = caplog.messages
    assert "no network" in warning and list(curve(tmp_path, "train_loss")) == [1, 2]


def test_an_evaluation_does_not_finish_a_run_that_was_killed(make_run, done):
    (done.out_dir / metrics.RESULT).unlink()
    make_run(max_iters=0, resume="auto").train()
    assert not (done.out_dir / metrics.RESULT).exists()


@pytest.mark.parametrize("key, mode", [(None, "offline"), ("secret", None)])
def test_wandb_is_offline_without_a_key(monkeypatch, key, mode):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(metrics.os, "environ", {"HOME": "/nowhere"} | ({"WANDB_API_KEY": key} if key else {}))
    assert metrics.available("wandb, none") == ["wandb"]
    assert metrics.os.environ.get("WANDB_MODE") == mode


def test_a_resumed_run_continues_in_its_trackers(make_run, tmp_path, monkeypatch):
    started = []
    for name in ("WANDB_NAME", "WANDB_RUN_ID", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(metrics, "available", lambda report_to: ["wandb"])
    monkeypatch.setattr("accelerate.Accelerator.init_trackers", lambda self, *args: started.append(args))
    for name, resume in (("a", "none"), ("a", "auto"), ("b", "none")):
        make_run(max_iters=2, out_dir=str(tmp_path / "search" / name), resume=resume).train()
    (project, _, first), (_, _, again), (_, _, other) = started
    assert (project, first["wandb"]["name"], first["wandb"]["resume"]) == ("search", "a", "allow")
    assert first["wandb"] == again["wandb"] and first["wandb"]["id"] != other["wandb"]["id"]
    assert [each["trackio"]["resume"] for each in (first, again, other)] == ["never", "allow", "never"]
    monkeypatch.setenv("WANDB_RUN_ID", "sweep-1")
    make_run(max_iters=2, out_dir=str(tmp_path / "c"))
    assert started[-1][2]["wandb"]["id"] == "sweep-1"
