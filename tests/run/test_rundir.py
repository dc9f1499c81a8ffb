"""Out directories: other files are never removed or overwritten, and one process writes at a time."""

import errno
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from test_checkpoint import save, trained

from nanogpt import GPT, checkpoint, rundir
from nanogpt.config import TrainConfig
from nanogpt.data.tokenizer import get_tokenizer
from nanogpt.hub.load import load
from nanogpt.run import resume


def content(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def left(directory: Path) -> list[str]:
    """Names that look temporary."""
    return sorted(path.name for kind in ("tmp", "old") for path in directory.glob(f".{kind}-*"))


HOME = {"thesis.tex": "years of work", ".tmp-mine": "notes"}
EXPORT = {"config.json": json.dumps({"model_type": "gpt2", "n_layer": 1}), "model.safetensors": "weights"}


@pytest.mark.parametrize("files", [HOME, EXPORT], ids=["home", "an export"])
@pytest.mark.parametrize("wish", ["none", "auto"])
def test_a_directory_that_holds_no_run_is_refused_in_one_line_and_left_alone(tmp_path, files, wish):
    out = tmp_path / "out"
    out.mkdir()
    for name, text in files.items():
        (out / name).write_text(text)
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


@pytest.mark.parametrize("mark", [b"", b"../../x\n", b"\xff"])
def test_a_damaged_mark_removes_nothing_and_is_written_anew(tmp_path, mark):
    save(tmp_path, 1, *trained(1))
    (tmp_path / ".run").write_bytes(mark)
    (tmp_path / ".tmp-mine").mkdir()
    save(tmp_path, 2, *trained(1))
    assert len(rundir.read_id(tmp_path)) == 8
    assert left(tmp_path) == [".tmp-mine"]


HOLDER = """
import sys
from pathlib import Path
from nanogpt import rundir
rundir.claim(Path(sys.argv[1]))
print("locked", flush=True)
input()
"""


def test_a_second_run_is_refused_with_host_and_process_until_the_first_is_killed(make_run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDER, out], **pipes) as other:
        assert other.stdout.readline() == "locked\n"
        expected = rf"out is in use by process {other.pid} on {socket.gethostname()}: wait until"
        with pytest.raises(ValueError, match=expected):
            make_run()
        with pytest.raises(ValueError, match=expected):
            save(out, 1, *trained(1))
        other.kill()
    make_run().train()
    assert checkpoint.find(out).name == "step-000004"


def test_a_released_lock_can_be_taken_again_and_leaves_no_file(tmp_path):
    directory = tmp_path / "new" / "directory"
    for _ in range(2):
        with rundir.Lock(directory), pytest.raises(ValueError, match=f"in use by process {os.getpid()} "):
            rundir.Lock(directory)
    assert list(directory.iterdir()) == []


def test_a_directory_that_cannot_be_locked_is_used_without(tmp_path, monkeypatch):
    def fail(self):
        raise OSError(number, os.strerror(number), str(tmp_path / ".lock"))

    monkeypatch.setattr(FileLock, "acquire", fail)
    number = errno.ENOLCK
    with rundir.Lock(tmp_path):
        pass
    number = errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):
        rundir.Lock(tmp_path)


def test_only_the_main_process_locks(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("RANK", "1")
    assert resume.find_start(TrainConfig(out_dir=str(tmp_path / "out"), resume="auto")) is None
    assert list((tmp_path / "out").iterdir()) == []


def test_without_symbolic_links_best_and_last_are_text_files_that_are_read_like_links(make_run, monkeypatch):
    def symlink(*args, **options):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "symlink", symlink)
    run = make_run(max_iters=4, eval_interval=1, keep_checkpoints=1)
    run.train()
    last = run.out_dir / "last"
    assert last.is_file() and left(run.out_dir) == []
    kept = {f"step-{run.state.best_step:06d}", "step-000004"}
    assert {step.name for step in checkpoint.list_checkpoints(run.out_dir)} == kept
    assert load(run.out_dir, which="last")[2] == load(last)[2] == run.out_dir / "step-000004"
    assert GPT.from_pretrained(last).config.n_layer == 2
    assert get_tokenizer(str(last)).vocab_size == run.tokenizer.vocab_size
    assert make_run(max_iters=5, resume=str(last)).start_step == 4


@pytest.mark.parametrize("text", [b"../elsewhere", b"step-000009", b"\xff", b"step-000001/../../x"])
def test_a_text_file_names_nothing_but_a_checkpoint_beside_it(tmp_path, text):
    save(tmp_path, 1, *trained(1))
    (tmp_path / "last").unlink()
    (tmp_path / "last").write_bytes(text)
    assert checkpoint.find(tmp_path, ("last",)).name == "step-000001"


@pytest.mark.parametrize("number, fails", [(errno.EINVAL, False), (errno.ENOSPC, True), (errno.EIO, True)])
def test_a_disk_that_fails_fails_the_save_but_directories_need_no_sync(tmp_path, monkeypatch, number, fails):
    def fsync(descriptor, fsync=os.fsync):
        if fails or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if fails:
        with pytest.raises(OSError, match=os.strerror(number)):
            save(tmp_path, 1, *trained(1))
        assert checkpoint.list_checkpoints(tmp_path) == []
    else:
        assert checkpoint.find_damage(save(tmp_path, 1, *trained(1))) is None
