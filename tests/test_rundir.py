"""Out directories: other files are never removed or overwritten, and one process writes at a time."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_checkpoint import save, trained

from nanogpt import GPT, checkpoint, rundir
from nanogpt.config import TrainConfig
from nanogpt.hub.load import load
from nanogpt.run import resume
from nanogpt.text.tokenizer import get_tokenizer


def content(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def home(directory: Path) -> None:
    (directory / "thesis.tex").write_text("years of work")
    (directory / ".tmp-mine").mkdir()
    (directory / ".tmp-mine" / "notes").write_text("mine")


def export(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 1}))
    (directory / "model.safetensors").write_bytes(b"weights")


def one_checkpoint(directory: Path) -> None:
    save(directory.parent / "elsewhere", 1, *trained(1)).rename(directory / "x")
    for path in (directory / "x").iterdir():
        path.rename(directory / path.name)
    (directory / "x").rmdir()


@pytest.mark.parametrize("fill", [home, export, one_checkpoint])
@pytest.mark.parametrize("wish", ["none", "auto"])
def test_a_directory_that_holds_no_run_is_refused_in_one_line_and_left_alone(tmp_path, fill, wish):
    out = tmp_path / "out"
    out.mkdir()
    fill(out)
    before = content(out)
    with pytest.raises(ValueError, match=r"is not a run's directory, it has '.*: name a new or empty") as error:
        resume.find_start(TrainConfig(out_dir=str(out), resume=wish))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="is not a run's directory"):
        save(out, 1, *trained(1))
    assert content(out) == before


@pytest.mark.parametrize("out_dir", ["", "."])
def test_the_current_directory_is_refused_in_one_line(tmp_path, monkeypatch, out_dir):
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"out_dir='.*(is not a name|it has 'notes.txt')"):
        resume.find_start(TrainConfig(out_dir=out_dir))


def test_only_leftovers_of_saves_are_removed(tmp_path):
    save(tmp_path, 1, *trained(1))
    for name in (".tmp-mine", ".old-mine", ".tmp-step-000007"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    save(tmp_path, 2, *trained(1))
    assert sorted(path.name for path in tmp_path.glob(".*-*")) == [".old-mine", ".tmp-mine"]


def test_a_copy_of_a_run_without_its_hidden_files_goes_on(make_run):
    run = make_run()
    run.train()
    rundir.CLAIMED.clear()
    (run.out_dir / ".run").unlink()
    make_run(max_iters=6, resume="auto").train()
    assert (run.out_dir / ".run").exists()


def test_a_copy_of_a_run_that_followed_its_links_goes_on(make_run):
    run = make_run()
    run.train()
    rundir.CLAIMED.clear()
    for link in ("best", "last"):  # as `cp -rL`, and then `rm -r step-*`
        target = (run.out_dir / link).resolve()
        (run.out_dir / link).unlink()
        shutil.copytree(target, run.out_dir / link)
    for path in run.out_dir.glob("step-*"):
        shutil.rmtree(path)
    assert make_run(max_iters=6, resume="best").state.step == 4
    assert checkpoint.find(run.out_dir).name == "step-000004" and (run.out_dir / "best").is_symlink()


HOLDER = """
import sys, time
from pathlib import Path
from nanogpt import rundir
rundir.claim(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_is_killed(make_run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    other = subprocess.Popen([sys.executable, "-c", HOLDER, out], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="out is in use by another process: wait until it ends, or name another"):
            make_run()
        with pytest.raises(ValueError, match="out is in use by another process"):
            save(out, 1, *trained(1))
    finally:
        other.kill()
        other.wait()
    make_run().train()
    assert checkpoint.find(out).name == "step-000004"


def test_a_directory_that_was_replaced_is_locked_anew_or_refused(tmp_path):
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    rundir.claim(out_dir)
    shutil.rmtree(out_dir)
    out_dir.mkdir()
    with rundir.lock(out_dir), pytest.raises(ValueError, match="in use by another process"):
        rundir.claim(out_dir)  # of another run by now
    rundir.claim(out_dir)
    with pytest.raises(ValueError, match="in use"):
        rundir.lock(out_dir)
    rundir.release()
    with rundir.lock(out_dir):
        assert not rundir.CLAIMED


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch, number):
    def refuse(*args):
        raise OSError(number, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    rundir.claim(tmp_path)
    assert rundir.read_id(tmp_path)
    rundir.CLAIMED.clear()
    rundir.claim(tmp_path)  # a process that was killed left no lock behind
    rundir.CLAIMED.clear()


def test_only_the_main_process_locks(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("RANK", "1")
    assert resume.find_start(TrainConfig(out_dir=str(tmp_path / "out"), resume="auto")) is None
    assert list((tmp_path / "out").iterdir()) == []


def test_without_symbolic_links_text_files_name_best_and_last(make_run, monkeypatch):
    def symlink(*args, **options):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "symlink", symlink)
    run = make_run(max_iters=3, eval_interval=1, keep_checkpoints=1)
    run.train()
    last = run.out_dir / "last"
    assert last.is_file() and load(run.out_dir / "last")[2] == load(last)[2] == run.out_dir / "step-000003"
    assert [step.name for step in checkpoint.list_checkpoints(run.out_dir)] == ["step-000003"]
    assert GPT.from_pretrained(last).config.n_layer == 2
    assert get_tokenizer(str(last)).vocab_size == run.tokenizer.vocab_size
    assert make_run(max_iters=4, resume=str(last)).start_step == 3


@pytest.mark.parametrize("text", ["../elsewhere", "step-000009", "", "\udcff", "step-000001/../../x"])
def test_a_text_file_names_nothing_but_a_checkpoint_beside_it(tmp_path, text):
    save(tmp_path, 1, *trained(1))
    (tmp_path / "last").unlink()
    (tmp_path / "last").write_bytes(text.encode(errors="surrogateescape"))
    assert checkpoint.find(tmp_path, "last").name == "step-000001"


def test_a_disk_that_fails_fails_the_save(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        save(tmp_path, 1, *trained(1))
    assert checkpoint.list_checkpoints(tmp_path) == []
