"""accelerate_configs/slurm.sh, unchanged, on two local processes as nodes, with fakes for srun and scontrol."""

import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from helpers import curve
from test_interruptions import wait_for
from texts import documents, write_jsonl
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


def kill_all(pid: int) -> None:
    with suppress(psutil.Error):
        for process in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
            process.kill()


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "bin").mkdir()
    add_program(tmp_path, "srun", SRUN)
    add_program(tmp_path, "scontrol", SCONTROL)
    for name in ("recipes", "accelerate_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "raw").mkdir()
    for i in range(3):
        write_jsonl(tmp_path / "raw" / f"{i}.jsonl", documents()[i::3])
    return tmp_path


def add_program(home: Path, name: str, code: str) -> None:
    (home / "bin" / name).write_text(code)
    (home / "bin" / name).chmod(0o755)


@pytest.fixture
def job(home):
    """Starts the script: as often as it is called, always as the same job, whose number is an attribute."""
    number, started = str(random.randrange(10_000, 20_000)), []
    slurms = {"JOB_ID": number, "NNODES": "2", "JOB_NODELIST": "node[1-2]", "CPUS_PER_TASK": "1"}
    env = environment(home) | {f"SLURM_{name}": value for name, value in slurms.items()}
    env |= {"RAW": "raw", "DATA": "data/made_up", "TOKENIZER": "bytes", "GPUS": "1"}

    def start(max_iters: int) -> subprocess.Popen:
        recipe = f"recipes/pretrain.py {SETTINGS} --out_dir=out/two --max_iters={max_iters}"
        with open(home / f"log{len(started)}", "w") as log:
            command, options = ["bash", "accelerate_configs/slurm.sh"], {"cwd": home, "stdout": log, "stderr": log}
            started.append(subprocess.Popen(command, env=env | {"RECIPE": recipe}, **options))
        return started[-1]

    start.number = number
    yield start
    for process in started:
        kill_all(process.pid)


def environment(home: Path) -> dict[str, str]:
    clean = clean_environment(home)
    return clean | {"PATH": f"{home / 'bin'}:{clean['PATH']}", "ACCELERATE_USE_CPU": "true"}


def test_a_job_is_queued_again_survives_a_dead_node_and_trains_what_one_process_does(job, home):
    out, data = home / "out" / "two", home / "data" / "made_up"

    first = job(max_iters=10_000)
    wait_for(lambda: len(curve(out, "train_loss")) >= 3 or first.poll() is not None)
    first.send_signal(signal.SIGUSR1)  # as before the time limit
    assert first.wait(PATIENCE) == 0, (home / "log0").read_text()
    assert (home / "requeued").read_text() == f"{job.number}\n"
    stopped, tokenized = checkpoint.list_checkpoints(out)[-1], (data / "meta.json").stat().st_mtime_ns
    text.prepare([str(home / "raw")], home / "data" / "one", "bytes", 0.001, say=lambda said: None)
    for split in ("train", "val"):
        assert (data / f"{split}.bin").read_bytes() == (home / "data" / "one" / f"{split}.bin").read_bytes()

    second = job(max_iters=10_000)
    wait_for(lambda: checkpoint.list_checkpoints(out)[-1] > stopped or second.poll() is not None)
    kill_all(int((home / "pids").read_text().split()[-1]))
    assert second.wait(PATIENCE) != 0
    log, killed = (home / "log1").read_text(), checkpoint.list_checkpoints(out)[-1]
    assert f"out/two, resuming from step {int(stopped.name[5:])} (" in log
    assert "error: process 0 of 2 stops: another process" in log

    last = max(curve(out, "train_loss")) + 3
    assert job(max_iters=last).wait(PATIENCE) == 0
    assert f"out/two, resuming from step {int(killed.name[5:])} (" in (home / "log2").read_text()
    assert (home / "requeued").read_text() == f"{job.number}\n"  # once in all
    assert (data / "meta.json").stat().st_mtime_ns == tokenized

    flags = [*SETTINGS.split(), "--data=data/made_up", "--out_dir=out/one", f"--max_iters={last}"]
    command = [sys.executable, "recipes/pretrain.py", *flags]
    subprocess.run(command, cwd=home, env=environment(home), capture_output=True, timeout=PATIENCE, check=True)
    alone = curve(home / "out" / "one", "train_loss")
    assert len(alone) == last and curve(out, "train_loss") == pytest.approx(alone, abs=1e-6)


WAIT = "echo >> begun; while true; do sleep 0.1; done"


@pytest.mark.parametrize(
    "program, script, code, queue",
    [
        ("python", f"trap 'exit 3' USR1; {WAIT}", 0, 1),
        # torchrun's handlers before torch 2.10: USR1 would end it; SIGTERM is waited for
        ("accelerate", f"trap 'sleep 1; echo >> saved; exit 1' TERM; {WAIT}", 0, 1),
        ("accelerate", "echo >> begun; exit 7", 7, 0),
    ],
)
def test_a_signal_queues_the_job_again_and_an_error_ends_it(job, home, program, script, code, queue):
    """While tokens are made, by python, and while it trains."""
    if program == "accelerate":
        (home / "data" / "made_up").mkdir(parents=True)
        (home / "data" / "made_up" / "meta.json").write_text("{}")
    add_program(home, program, f"#!/bin/bash\n{script}\n")
    started, begun = job(max_iters=1), home / "begun"
    wait_for(lambda: begun.exists() and begun.stat().st_size > 0)
    if queue:
        started.send_signal(signal.SIGUSR1)
    assert started.wait(PATIENCE) == code
    assert (home / "requeued").exists() == queue
    assert (home / "saved").exists() == (queue and program == "accelerate")
