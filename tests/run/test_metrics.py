"""The metrics of a run, and trackers that fail."""

import dataclasses
import json
import os
import shutil
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import TINY

from nanogpt import checkpoint, train
from nanogpt.extras.dashboard import follow
from nanogpt.hub import export
from nanogpt.run import compare, metrics, plot

DROPOUT = dataclasses.replace(TINY, dropout=0.2)


class Disk:
    """A file on a disk with `room` for some bytes."""

    name = "metrics.jsonl"

    def __init__(self, room: int):
        self.room, self.content = room, b""

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = data[: self.room]
        self.room -= len(taken)
        self.content += taken
        return len(taken)

    def close(self):
        pass


def test_lines_that_a_full_disk_does_not_take_are_written_later(tmp_path):
    said = []
    written = metrics.LineFile(tmp_path / "metrics.jsonl", 0, said.append)
    written.file = disk = Disk(room=20)
    for step in range(3):
        written.write({"step": step, "loss": 0.5})
    assert len(said) == 1 and "metrics.jsonl could not be written: [Errno 28] No space left on device" in said[0]
    disk.room = 1000
    written.close()
    assert [json.loads(line)["step"] for line in disk.content.splitlines()] == [0, 1, 2]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2')
    assert metrics.read(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_each_evaluation_leaves_a_text_of_sample_tokens_and_the_same_weights_write_the_same(make_run):
    run = make_run(eval_interval=2, learning_rate=1e-9)
    run.train()
    samples = metrics.read(run.out_dir / metrics.SAMPLES)
    assert [line["step"] for line in samples] == [0, 2, 4]
    assert [len(line["text"]) for line in samples] == [9, 9, 9]  # characters: the first token and eight more
    assert samples[0]["text"] == samples[1]["text"]  # the seed is the run's, and the weights have hardly moved


def test_no_samples_without_sample_tokens(make_run):
    run = make_run(sample_tokens=0)
    run.train()
    assert (run.out_dir / metrics.SAMPLES).read_text() == ""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sampling_changes_nothing_of_the_training(make_run, tmp_path, precision):
    ends = []
    for n in (0, 30):
        run = make_run(DROPOUT, sample_tokens=n, eval_interval=2, precision=precision, out_dir=str(tmp_path / f"{n}"))
        run.train()
        ends.append(run.gpt.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ends[0].values(), ends[1].values(), strict=True))


def test_sampling_is_not_counted_as_training(make_run, monkeypatch):
    hours, real_clock = [], time.perf_counter

    def slow(*args) -> str:
        hours.append(3600)
        return "text"

    monkeypatch.setattr(train, "write_amid_training", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: real_clock() + sum(hours))
    run = make_run(max_iters=2, eval_interval=1)
    run.train()
    assert len(hours) == 3 and run.state["train_seconds"] < 3600


def test_a_resumed_run_takes_back_the_samples_beyond_its_checkpoint(make_run):
    make_run(max_iters=2, eval_interval=1).train()
    run = make_run(max_iters=3, eval_interval=1, resume="auto")
    with open(run.out_dir / metrics.SAMPLES, "a") as file:
        file.write(json.dumps({"step": 3, "text": "of a life that was lost"}) + "\n")
    run.metrics.close()
    run = make_run(max_iters=3, eval_interval=1, resume="auto")
    run.train()
    steps = [line["step"] for line in metrics.read(run.out_dir / metrics.SAMPLES)]
    assert steps == [0, 1, 2, 3]


def test_memory_is_what_the_process_holds(make_run):
    run = make_run(log_interval=4)
    run.train()
    line = next(line for line in metrics.read(run.out_dir / metrics.METRICS) if "memory" in line)
    assert line["memory"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)


class Tracker:
    """What Accelerate makes of a tracker, as far as it is used here; remembers, or raises."""

    def __init__(self, name: str, error: Exception | None = None):
        self.name, self.error, self.shown = name, error, []
        self.writer = SimpleNamespace(add_text=self.show, add_image=self.show)
        self.run = SimpleNamespace(disabled=False, offline=True, project="p", name="n", id="i")  # wandb's

    def show(self, *args, **kwargs) -> None:
        if self.error:
            raise self.error
        self.shown.append(args)

    def log(self, values, step) -> None:
        self.show(values, step)

    def finish(self) -> None:
        self.shown.append("finished")


def make_metrics(tmp_path, tracker: Tracker | None, warnings: list[str]) -> metrics.Metrics:
    accelerator = SimpleNamespace(is_main_process=True, log_with=[tracker.name] if tracker else [])
    accelerator.trackers = [tracker] if tracker else []
    accelerator.init_trackers = lambda *args: None
    return metrics.Metrics(accelerator, tmp_path, 0, {}, warnings.append)


def test_text_and_curve_reach_a_tracker_that_can_show_them(tmp_path):
    tracker, warnings = Tracker("tensorboard"), []
    written = make_metrics(tmp_path, tracker, warnings)
    written.sample("<b>first</b>\nsecond", lambda: "a picture", step=5, tokens=50)
    assert tracker.shown == [("sample", "    <b>first</b>\n    second\n", 5), ("curve", "a picture", 5)]
    assert not warnings


def test_trackio_gets_no_step_again_that_it_has_from_before_a_kill(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(Markdown=str, Image=str))
    tracker = Tracker("trackio")
    tracker.run._next_step = 31  # it has steps up to 30
    resumed = make_metrics(tmp_path, tracker, [])
    for step in (20, 30, 40):
        resumed.log(step=step, train_loss=1.0)
        resumed.sample("text", lambda: "a picture", step=step)
    assert [step for _, step in tracker.shown] == [40, 40]
    assert [line["step"] for line in metrics.read(tmp_path / metrics.METRICS)] == [20, 30, 40]


def test_at_the_end_trackers_finish_and_the_processes_stay_together(tmp_path):
    """Accelerate's own end_training would destroy the process group, which the end of a run still needs."""
    tracker, warnings = Tracker("tensorboard"), []
    make_metrics(tmp_path, tracker, warnings).close()
    assert tracker.shown == ["finished"] and not warnings


def test_a_tracker_that_fails_is_one_warning_and_the_files_go_on(tmp_path):
    warnings = []
    written = make_metrics(tmp_path, Tracker("tensorboard", OSError("no network")), warnings)
    for step in (1, 2):
        written.log(step=step, train_loss=1.0)
        written.sample("text", lambda: "a picture", step=step)
    written.close()
    assert len(warnings) == 1 and "no network" in warnings[0]
    assert [line["step"] for line in metrics.read(tmp_path / metrics.METRICS)] == [1, 2]


def test_a_picture_that_cannot_be_drawn_is_a_warning(tmp_path):
    warnings = []
    written = make_metrics(tmp_path, Tracker("tensorboard"), warnings)
    written.sample("text", lambda: 1 / 0, step=1)
    assert len(warnings) == 1 and "division by zero" in warnings[0]
    assert len(metrics.read(tmp_path / metrics.SAMPLES)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_is_one_warning_and_does_not_stop_the_run(tmp_path):
    warnings = []
    written = make_metrics(tmp_path, None, warnings)
    with open("/dev/full", "wb", buffering=0) as full:
        written.files[metrics.METRICS].file = full
        for step in (1, 2):
            written.log(step=step, train_loss=1.0)
        written.files[metrics.METRICS].write()
    assert len(warnings) == 1 and "No space left" in warnings[0]


@pytest.mark.parametrize("key, mode", [(None, "offline"), ("secret", None)])
def test_wandb_is_offline_where_there_is_no_key(monkeypatch, key, mode):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(metrics, "_netrc", lambda: "")
    monkeypatch.setattr(metrics.os, "environ", {"WANDB_API_KEY": key} if key else {})
    assert metrics.available("wandb, none", print) == ["wandb"]
    assert metrics.os.environ.get("WANDB_MODE") == mode


def test_text_is_no_html_for_wandb_and_what_a_tracker_prints_is_dropped(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Html=str, Image=str))
    tracker, warnings = Tracker("wandb"), []
    tracker.log = lambda values, step: (print("an advertisement"), tracker.show(values, step))
    make_metrics(tmp_path, tracker, warnings).sample("<b>", lambda: "a picture", step=5)
    assert tracker.shown == [({"sample": "<pre>&lt;b&gt;</pre>", "curve": "a picture"}, 5)]
    assert warnings == ["wandb   offline: project p, run n, id i"] and capsys.readouterr().out == ""


def test_a_resumed_run_continues_its_run_in_the_trackers_and_wandbs_variables_come_first(tmp_path, monkeypatch):
    started, said = [], []
    accelerator = SimpleNamespace(is_main_process=True, log_with=["wandb", "trackio"])
    accelerator.trackers = [Tracker("wandb")]
    accelerator.init_trackers = lambda *args: started.append(args)
    for name in (*metrics.WANDB.values(), "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    out = tmp_path / "search" / "wide"
    out.mkdir(parents=True)
    for step in (0, 10, 0):
        metrics.Metrics(accelerator, out, step, {}, said.append)
    (first, _, options), (_, _, again), (_, _, anew) = started
    assert (first, options["wandb"]["name"], options["trackio"]) == (
        "search",
        "wide",
        {"name": "wide", "resume": "never"},
    )
    assert options["wandb"] == again["wandb"] and options["wandb"]["resume"] == "allow"
    assert again["trackio"]["resume"] == "allow" and anew["wandb"]["id"] != again["wandb"]["id"]
    assert "wandb   offline: project p, run n, id i" in said
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_RUN_ID", "sweep-1")
    metrics.Metrics(accelerator, out, 0, {}, said.append)
    assert started[-1][0] == "mine" and started[-1][2]["wandb"].keys() == {"name", "resume"}


@pytest.mark.parametrize("processes", [1, 3])
def test_mfu_is_a_share_of_the_peaks_of_all_processes(make_run, monkeypatch, processes):
    peak, log = 1e12, train.Run.log

    def log_as_one_of_several(run: train.Run) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(type(run.accelerator), "num_processes", processes)
            log(run)

    monkeypatch.setattr(train, "peak_flops", lambda device: peak)
    monkeypatch.setattr(train.Run, "log", log_as_one_of_several)
    run = make_run(log_interval=2)
    run.train()
    lines = [line for line in metrics.read(run.out_dir / "metrics.jsonl") if "mfu" in line]
    flops = [line["tokens_per_second"] * run.gpt.flops_per_token() for line in lines]
    assert [line["mfu"] for line in lines] == pytest.approx([each / peak / processes for each in flops])
    assert len(lines) == 2


DAMAGED = ["5", "[1]", '{"a": 1}', '{"step": "one"}', '{"step": NaN}', "[" * 100_000, "\x00garbage\xff", "null"]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_line_is_skipped_with_a_note_wherever_metrics_are_read(make_run, tmp_path, capsys, damaged):
    run = make_run(max_iters=4, eval_interval=2)
    run.train()
    path = run.out_dir / metrics.METRICS
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], damaged, *lines[2:]]) + "\n")
    capsys.readouterr()
    assert metrics.read(path) == [json.loads(line) for line in lines]
    assert capsys.readouterr().err == f"note: {path} has 1 damaged lines, skipped; the first is line 3\n"
    assert compare.compare([run.out_dir])
    assert plot.curves([run.out_dir], tmp_path / "curve.png")
    assert export.export(run.out_dir, tmp_path / "export", say=lambda text: None).is_dir()
    runs = follow.Runs([str(run.out_dir)])
    runs.update()
    assert runs.found[0].summary()["best_step"] == 4
    capsys.readouterr()
    again = make_run(max_iters=6, eval_interval=2, resume="auto")  # writes the file anew, without it
    assert "damaged lines, skipped" in capsys.readouterr().out
    again.train()
    assert [line["step"] for line in map(json.loads, path.read_text().splitlines()) if "val_loss" in line] == [
        0,
        2,
        4,
        6,
    ]


def test_lines_that_lack_values_or_have_wrong_ones_are_no_traceback(make_run, tmp_path):
    run = make_run(max_iters=4, eval_interval=2)
    run.train()
    odd = [
        '{"step": 4}',
        '{"step": 4, "val_loss": "low", "tokens": [], "train_seconds": {}}',
        '{"step": 4, "val_loss": 1}',
    ]
    with open(run.out_dir / metrics.METRICS, "a") as file:
        file.write("\n".join(odd) + "\n")
    assert compare.compare([run.out_dir]) and plot.curves([run.out_dir], tmp_path / "curve.png")
    assert export.export(run.out_dir, tmp_path / "export", say=lambda text: None).is_dir()


def test_a_curve_whose_checkpoints_are_gone_is_kept(make_run, capsys):
    run = make_run(max_iters=4, eval_interval=2)
    run.train()
    curve = (run.out_dir / metrics.METRICS).read_text()
    for step in checkpoint.steps(run.out_dir):
        shutil.rmtree(step)
    for link in ("best", "last"):
        (run.out_dir / link).unlink()
    for wish, kept in (("auto", "metrics-1.jsonl"), ("none", "metrics-2.jsonl")):
        capsys.readouterr()
        run = make_run(max_iters=4, eval_interval=4, resume=wish)
        assert f"belongs to an earlier run without checkpoints: kept as {kept}" in capsys.readouterr().out
        run.metrics.log(step=1, tokens=1, train_seconds=1)
        run.metrics.close()
    assert (run.out_dir / "metrics-1.jsonl").read_text() == curve
    assert len(metrics.read(run.out_dir / "metrics-2.jsonl")) == 1


def test_an_earlier_checkpoint_is_evaluated_again_without_a_change_of_the_run(make_run):
    run = make_run(max_iters=4, eval_interval=2)
    run.train()
    names = (metrics.METRICS, metrics.SAMPLES, checkpoint.CONFIG)
    before = [(run.out_dir / name).read_bytes() for name in names]
    make_run(max_iters=0, resume=str(run.out_dir / "step-000002"), learning_rate=1.0).train()
    assert [(run.out_dir / name).read_bytes() for name in names] == before


def test_the_curve_of_later_checkpoints_is_kept_where_a_run_goes_back(make_run, capsys):
    run = make_run(max_iters=4, eval_interval=2)
    run.train()
    curve = (run.out_dir / metrics.METRICS).read_text()
    capsys.readouterr()
    run = make_run(max_iters=4, eval_interval=2, resume=str(run.out_dir / "step-000002"))
    assert "metrics.jsonl goes on after step 2: kept as metrics-1.jsonl" in capsys.readouterr().out
    assert (run.out_dir / "metrics-1.jsonl").read_text() == curve
    assert [line["step"] for line in metrics.read(run.out_dir / metrics.METRICS)][-1] == 2


def test_metrics_samples_and_settings_are_synced_with_each_checkpoint(make_run, monkeypatch):
    run = make_run(max_iters=4, eval_interval=2, log_interval=1)
    synced, fsync = {}, os.fsync

    def record(descriptor):
        fsync(descriptor)
        synced[os.fstat(descriptor).st_ino] = os.fstat(descriptor).st_size

    monkeypatch.setattr(os, "fsync", record)
    run.train()
    whole = (run.out_dir / metrics.METRICS).stat()
    assert synced[whole.st_ino] == whole.st_size
    assert (run.out_dir / metrics.SAMPLES).stat().st_ino in synced
    monkeypatch.undo()
    again = make_run(max_iters=4, resume="auto")
    assert (again.out_dir / checkpoint.CONFIG).stat().st_size > 0


def test_files_that_a_failing_disk_has_emptied_are_named_and_rebuilt(make_run, capsys):
    make_run(max_iters=4, eval_interval=2, log_interval=1).train()
    run = make_run(max_iters=4, resume="auto")
    for name in (metrics.METRICS, metrics.SAMPLES, checkpoint.CONFIG):
        (run.out_dir / name).write_bytes(b"")
    capsys.readouterr()
    run = make_run(max_iters=6, eval_interval=2, log_interval=1, resume="auto")
    assert "metrics.jsonl has no lines between steps 0 and 4" in capsys.readouterr().out
    assert json.loads((run.out_dir / checkpoint.CONFIG).read_text())["train"]["max_iters"] == 6
    run.train()
    assert [line["step"] for line in metrics.read(run.out_dir / metrics.METRICS) if "lr" in line] == [5, 6]


def test_an_out_dir_that_is_emptied_while_a_run_writes_it_is_told_and_filled_again(make_run, capsys):
    run = make_run(max_iters=6, eval_interval=2, log_interval=1)
    step, empty = run.step, run.out_dir.with_name("empty")

    def vanishing():
        step()
        run.saver.wait()
        if run.state["step"] == 3:
            run.out_dir.rename(empty)
            run.out_dir.mkdir()

    run.step = vanishing
    run.train()
    said = capsys.readouterr().out
    assert "metrics.jsonl was removed during the run: its earlier lines are lost" in said
    assert [step.name for step in checkpoint.steps(run.out_dir)] == ["step-000004", "step-000006"]
    assert (run.out_dir / checkpoint.CONFIG).is_file() and (run.out_dir / ".run").is_file()
    assert max(line["step"] for line in metrics.read(run.out_dir / metrics.METRICS)) == 6
    assert make_run(max_iters=8, resume="auto").start_step == 6


def test_tokens_count_every_micro_batch(make_run):
    run = make_run(max_iters=3, batch_size=2, gradient_accumulation_steps=5, log_interval=1)
    run.train()
    lines = metrics.read(run.out_dir / metrics.METRICS)
    assert [line["tokens"] for line in lines if "lr" in line] == [n * 5 * 2 * 16 for n in (1, 2, 3)]


def test_an_evaluation_that_is_done_again_is_in_the_curve_once(make_run, monkeypatch):
    """A kill came after the line of metrics, and before the checkpoint knew of the evaluation."""
    run = make_run(max_iters=4, eval_interval=2)
    monkeypatch.setattr(run, "add_evaluation", lambda best: None)
    run.train()
    again = make_run(max_iters=6, eval_interval=2, resume="auto")
    again.train()
    for name, key in ((metrics.METRICS, "val_loss"), (metrics.SAMPLES, "text")):
        assert [line["step"] for line in metrics.read(run.out_dir / name) if key in line] == [0, 2, 4, 6]
