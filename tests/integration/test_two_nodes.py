"""accelerate_configs/slurm.sh, unchanged, on two local processes as nodes, with fakes for srun and scontrol.

One job is started three times: the first makes the tokens, trains, and gets the signal before the time limit; in the
second a node dies; the third reaches the end.
"""

import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow
import pyarrow.parquet
import pytest
from helpers import curve
from zygote import PATIENCE, ROOT, clean_environment

from data_prep import text
from nanogpt import checkpoint

pytestmark = pytest.mark.nightly
SETTINGS = "--depth=2 --aspect_ratio=32 --precision=fp32 --threads=1 --gradient_accumulation_steps=4 --batch_size=32 "
SETTINGS += "--learning_rate=1e-3 --muon_learning_rate=2e-3 --lr_schedule=constant --log_interval=1 --eval_interval=5 "
SETTINGS += "--sample_tokens=0 --timeout=60"

# starts the command on both nodes, passes signals on, and ends the other node a minute after one that failed
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys, time

command = [word for i, word in enumerate(sys.argv) if i and not word.startswith("--kill")]
nodes = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: [node.send_signal(number) for node in nodes])
for i in "01":
    task = os.environ | {{"SLURM_NODEID": i, "SLURM_PROCID": i, "SLURM_NTASKS": "2"}}
    nodes.append(subprocess.Popen(command, env=task))
    with open("pids", "a") as file:
        print(nodes[-1].pid, file=file, flush=True)
failed = None
while None in (codes := [node.poll() for node in nodes]):
    failed = failed or (any(codes) and time.monotonic())
    if failed and time.monotonic() > failed + 60:
        [node.kill() for node in nodes]
    time.sleep(0.02)
sys.exit(max(abs(code) for code in codes))
"""
SCONTROL = """#!/bin/sh
case "$1" in
show) [ "$2 $3" = "hostnames node[1-2]" ] && printf '127.0.0.1\\n127.0.0.1\\n' ;;
requeue) echo "$2" >> requeued ;;
esac
"""


def free_job_id() -> int:
    """The number of a job whose port is free (see slurm.sh)."""
    while True:
        number = random.randrange(10_000)
        with socket.socket() as port, suppress(OSError):
            port.bind(("127.0.0.1", 20_000 + number))
            return 10_000 + number


def raw_shards(folder: Path) -> None:
    """Three files with columns of FineWeb-Edu."""
    folder.mkdir()
    rng = random.Random(0)
    words = "the school of a river and its water is one where many learn how plants grow from light to seed".split()
    for shard in range(3):
        texts = [" ".join(rng.choices(words, k=rng.randint(30, 90))).capitalize() + "." for _ in range(100)]
        columns = {"text": texts, "id": [f"<urn:uuid:{shard}-{i}>" for i in range(100)], "int_score": [3] * 100}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{shard:03}_00000.parquet")


def environment(home: Path) -> dict[str, str]:
    clean = clean_environment(home)
    return clean | {"PATH": f"{home / 'bin'}:{clean['PATH']}", "ACCELERATE_USE_CPU": "true"}


class Job:
    """The script's starts, in the directory `home`. A line of bash may stand for the `python` that makes the tokens."""

    def __init__(self, home: Path, python: str = ""):
        self.home, self.number, self.starts = home, free_job_id(), []
        (home / "bin").mkdir()
        programs = {"srun": SRUN, "scontrol": SCONTROL} | ({"python": f"#!/bin/bash\n{python}\n"} if python else {})
        for name, code in programs.items():
            (home / "bin" / name).write_text(code)
            (home / "bin" / name).chmod(0o755)
        for name in ("recipes", "accelerate_configs"):
            (home / name).symlink_to(ROOT / name)
        raw_shards(home / "raw")

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        """Ends what a failed test leaves."""
        for process in self.starts:
            if process.poll() is None:
                for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                    with suppress(psutil.Error):
                        each.kill()
                process.wait()

    def start(self, max_iters: int) -> subprocess.Popen:
        slurms = {"JOB_ID": str(self.number), "NNODES": "2", "JOB_NODELIST": "node[1-2]", "CPUS_PER_TASK": "1"}
        env = environment(self.home) | {f"SLURM_{name}": value for name, value in slurms.items()}
        recipe = f"recipes/pretrain.py {SETTINGS} --out_dir=out/two --max_iters={max_iters}"
        env |= {"RAW": "raw", "DATA": "data/made_up", "TOKENIZER": "bytes", "GPUS": "1", "RECIPE": recipe}
        with open(self.home / f"log{len(self.starts)}", "w") as log:
            command = ["bash", "accelerate_configs/slurm.sh"]
            self.starts.append(subprocess.Popen(command, cwd=self.home, env=env, stdout=log, stderr=log))
        return self.starts[-1]

    def start_and_signal(self, when, max_iters: int = 10_000) -> int:
        """Sends the signal before the time limit once `when` is true; returns the exit code."""
        script = self.start(max_iters)
        self.wait_for(when, script)
        script.send_signal(signal.SIGUSR1)
        return script.wait(timeout=PATIENCE)

    def log(self, start: int) -> str:
        return (self.home / f"log{start}").read_text()

    def wait_for(self, what, process: subprocess.Popen) -> None:
        end = time.monotonic() + PATIENCE
        while not what():
            assert process.poll() is None and time.monotonic() < end, self.log(len(self.starts) - 1)
            time.sleep(0.02)

    def curve(self, run: str) -> dict[int, float]:
        return curve(self.home / "out" / run, "train_loss")

    def steps_saved(self) -> list[int]:
        return [int(path.name[5:]) for path in checkpoint.list_checkpoints(self.home / "out" / "two")]


def test_the_signal_queues_the_job_again_while_it_makes_tokens_too(tmp_path):
    begun = tmp_path / "begun"
    with Job(tmp_path, "trap 'exit 3' USR1; echo >> begun; while true; do sleep 0.1; done") as job:
        assert job.start_and_signal(lambda: begun.exists() and begun.stat().st_size == 2) == 0, job.log(0)
    assert (tmp_path / "requeued").read_text() == f"{job.number}\n"


def test_tokens_that_cannot_be_made_end_the_job_with_an_error(tmp_path):
    with Job(tmp_path, "exit 7") as job:
        assert job.start(max_iters=1).wait(timeout=PATIENCE) == 7, job.log(0)
    assert not (tmp_path / "requeued").exists()


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    with Job(tmp_path_factory.mktemp("home")) as job:
        job.stopped = SimpleNamespace(code=job.start_and_signal(lambda: len(job.curve("two")) >= 3))
        job.stopped.step, job.stopped.queue = job.steps_saved()[-1], (job.home / "requeued").read_text()
        job.stopped.tokenized = (job.home / "data" / "made_up" / "meta.json").stat().st_mtime_ns

        second = job.start(max_iters=10_000)
        job.wait_for(lambda: job.steps_saved()[-1] > job.stopped.step, second)
        node = psutil.Process(int((job.home / "pids").read_text().split()[-1]))
        for process in [*node.children(recursive=True), node]:
            process.kill()
        job.killed = SimpleNamespace(code=second.wait(timeout=PATIENCE), step=job.steps_saved()[-1])

        last = max(job.curve("two")) + 3
        job.done = SimpleNamespace(code=job.start(max_iters=last).wait(timeout=PATIENCE), step=last)
        yield job


def test_two_tasks_make_the_tokens_that_one_would_make(job):
    text.prepare([str(job.home / "raw")], job.home / "data" / "one", "bytes", 0.001, say=lambda said: None)
    for split in ("train", "val"):
        parts = sorted((job.home / "data" / "made_up").glob(f"{split}-*.bin"))
        assert len(parts) == 2
        one = (job.home / "data" / "one" / f"{split}.bin").read_bytes()
        assert b"".join(part.read_bytes() for part in parts) == one


def test_before_the_time_limit_the_run_saves_and_is_queued_again(job):
    assert job.stopped.code == 0, job.log(0)
    assert job.stopped.queue == f"{job.number}\n" == (job.home / "requeued").read_text()  # once in all
    assert f"out/two, resuming from step {job.stopped.step}\n" in job.log(1)


def test_a_dead_node_ends_the_job_and_the_next_start_resumes(job):
    assert job.killed.code != 0
    assert "error: process 0 of 2 stops: another process" in job.log(1)
    assert job.done.code == 0, job.log(2)
    assert f"out/two, resuming from step {job.killed.step}\n" in job.log(2)
    assert (job.home / "data" / "made_up" / "meta.json").stat().st_mtime_ns == job.stopped.tokenized
    assert job.steps_saved()[-1] == job.done.step > job.killed.step


def test_the_nodes_are_one_run_which_loses_what_one_process_loses(job):
    flags = [*shlex.split(SETTINGS), "--data=data/made_up", "--out_dir=out/one", f"--max_iters={job.done.step}"]
    command = [sys.executable, "recipes/pretrain.py", *flags]
    done = subprocess.run(command, cwd=job.home, env=environment(job.home), capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert len(job.curve("two")) == job.done.step
    assert job.curve("two") == pytest.approx(job.curve("one"), abs=1e-6)
