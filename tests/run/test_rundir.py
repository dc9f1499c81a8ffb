"""Out directories: other files are never removed or overwritten, and one process writes at a time."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from test_checkpoint import save, trained

from nanogpt import GPT, checkpoint, rundir
from nanogpt.config import TrainConfig
from nanogpt.data.tokenizer import get_tokenizer
from nanogpt.hub.load import load
from nanogpt.run import resume
from nanogpt.run.flags import recorded


def content(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def left(directory: Path) -> list[str]:
    """Names that look temporary."""
    return sorted(path.name for kind in ("tmp", "old") for path in directory.glob(f".{kind}-*"))


def home(directory: Path) -> None:
    (directory / "thesis.tex").write_text("years of work")
    (directory / ".tmp-mine").mkdir()
    (directory / ".tmp-mine" / "notes").write_text("mine")


def export(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 1}))
    (directory / "model.safetensors").write_bytes(b"weights")


def other_tool(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps({"lr": 1}))
    (directory / "metrics.jsonl").write_text('{"step": 1}\n')


def one_checkpoint(directory: Path) -> None:
    save(directory.parent / "elsewhere", 1, *trained(1)).rename(directory / "x")
    for path in (directory / "x").iterdir():
        path.rename(directory / path.name)
    (directory / "x").rmdir()


@pytest.mark.parametrize("fill", [home, export, other_tool, one_checkpoint])
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


def test_only_what_the_run_has_marked_is_removed(tmp_path):
    save(tmp_path, 1, *trained(1))
    for name in (".tmp-mine", ".old-mine", ".old-step-000009", ".tmp-00000000-step-000009"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("mine")
    for path in (rundir.temporary(tmp_path / "step-000007"), rundir.temporary(tmp_path / "step-000007", "old")):
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"half")
    rundir.temporary(tmp_path / "last").symlink_to("step-000001")
    save(tmp_path, 2, *trained(1))
    assert left(tmp_path) == [".old-mine", ".old-step-000009", ".tmp-00000000-step-000009", ".tmp-mine"]


@pytest.mark.parametrize("mark", ["", "../../x\n", "*\n", "\udcff"])
def test_a_damaged_mark_removes_nothing_and_is_written_anew(tmp_path, mark):
    save(tmp_path, 1, *trained(1))
    (tmp_path / ".run").write_bytes(mark.encode(errors="surrogateescape"))
    (tmp_path / ".tmp-mine").mkdir()
    save(tmp_path, 2, *trained(1))
    assert len(rundir.read_id(tmp_path)) == 8
    assert left(tmp_path) == [".tmp-mine"]


@pytest.mark.parametrize("gone", [(), ("step-000004", "last", "best"), ("config.json",), ("metrics.jsonl",)])
def test_a_run_of_an_earlier_version_has_no_mark_and_goes_on(make_run, gone):
    run = make_run()
    run.train()
    rundir.release(run.out_dir)
    for name in (".run", *gone):
        path = run.out_dir / name
        if path.is_dir() and not path.is_symlink():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        else:
            path.unlink()
    again = make_run(max_iters=6, resume="auto")
    assert again.start_step == (0 if "last" in gone else 4)
    again.train()
    assert rundir.read_id(run.out_dir)


HOLDER = """
import sys, time
from pathlib import Path
from nanogpt import rundir
rundir.claim(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


def test_a_second_run_is_refused_with_host_and_process_until_the_first_is_killed(make_run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    other = subprocess.Popen([sys.executable, "-c", HOLDER, out], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        expected = rf"out is in use by process {other.pid} on {os.uname().nodename}: "
        with pytest.raises(ValueError, match=expected):
            make_run()
        with pytest.raises(ValueError, match=expected):
            save(out, 1, *trained(1))
    finally:
        other.kill()
        other.wait()
    make_run().train()
    assert checkpoint.find(out).name == "step-000004"


def test_only_the_main_process_locks(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("RANK", "1")
    assert resume.find_start(TrainConfig(out_dir=str(tmp_path / "out"), resume="auto")) is None
    assert list((tmp_path / "out").iterdir()) == []


def test_a_checkpoint_that_is_removed_while_it_is_looked_at_gives_way_to_the_next(tmp_path, monkeypatch):
    model, optimizers = trained(1)
    save(tmp_path, 1, model, optimizers)
    check, said = checkpoint.find_damage, []

    def racing(path, names):
        if path.name == "step-000001":
            save(tmp_path, 2, model, optimizers, keep=0)
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        return check(path, names)

    monkeypatch.setattr(checkpoint, "find_damage", racing)
    monkeypatch.setattr(checkpoint.logger, "warning", said.append)
    assert checkpoint.find(tmp_path).name == "step-000002"
    assert said == []


def without_links(monkeypatch, number):
    def symlink(*args, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "symlink", symlink)


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EPERM, errno.ENOSYS])
def test_without_symbolic_links_best_and_last_are_found_and_old_checkpoints_are_pruned(tmp_path, monkeypatch, number):
    without_links(monkeypatch, number)
    model, optimizers = trained(1)
    for step in (1, 2, 3, 4):
        save(tmp_path, step, model, optimizers, best=step == 2, keep=1)
    assert not (tmp_path / "last").is_symlink() and left(tmp_path) == []
    assert [step.name for step in checkpoint.list_checkpoints(tmp_path)] == ["step-000002", "step-000004"]
    assert checkpoint.find(tmp_path).name == "step-000002"
    assert checkpoint.find(tmp_path, ("last",)).name == "step-000004"


def test_a_text_file_in_place_of_a_link_is_read_wherever_a_checkpoint_is_named(make_run, monkeypatch):
    without_links(monkeypatch, errno.ENOTSUP)
    run = make_run(max_iters=2, eval_interval=1)
    run.train()
    last = run.out_dir / "last"
    assert last.is_file() and load(run.out_dir, which="last")[2] == load(last)[2] == run.out_dir / "step-000002"
    assert GPT.from_pretrained(last).config.n_layer == 2
    assert get_tokenizer(str(last)).vocab_size == run.tokenizer.vocab_size
    assert recorded(str(last))["max_iters"] == 2
    assert make_run(max_iters=3, resume=str(last)).start_step == 2


@pytest.mark.parametrize("text", ["../elsewhere", "step-000009", "", "\udcff", "step-000001/../../x"])
def test_a_text_file_names_nothing_but_a_checkpoint_beside_it(tmp_path, text):
    save(tmp_path, 1, *trained(1))
    (tmp_path / "last").unlink()
    (tmp_path / "last").write_bytes(text.encode(errors="surrogateescape"))
    assert checkpoint.find(tmp_path, ("last",)).name == "step-000001"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES])
def test_a_checkpoint_is_saved_where_directories_cannot_be_synced(tmp_path, monkeypatch, number):
    def fsync(descriptor, fsync=os.fsync):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert checkpoint.find_damage(save(tmp_path, 1, *trained(1))) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_fails_the_save(tmp_path, monkeypatch, number):
    def fsync(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=os.strerror(number)):
        save(tmp_path, 1, *trained(1))
    assert checkpoint.list_checkpoints(tmp_path) == []
