"""The commands of the README as a user types them, in a directory of their own, with real processes."""

import contextlib
import json
import os
import re
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fresh import reset_accelerate
from transformers import GPT2Config, GPT2LMHeadModel

from data_prep import writer
from nanogpt import checkpoint
from nanogpt.data.tokenizer import BPETokenizer
from nanogpt.sample import stream

ROOT = Path(__file__).parents[2]
RECIPE, CLASSIC = ROOT / "recipes" / "shakespeare.py", ROOT / "recipes" / "shakespeare_nanogpt.py"
FINETUNE, EVAL_GPT2 = ROOT / "recipes" / "finetune_shakespeare.py", ROOT / "recipes" / "eval_gpt2.py"
BIN = Path(sys.executable).parent
SMALL = "--n_layer=1 --n_head=2 --n_embd=16 --n_inner=32 --block_size=16 --batch_size=4 --report_to=none".split()
TWO = {"ACCELERATE_USE_CPU": "true"}
TWO_PROCESSES = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no".split()


@pytest.fixture
def home(tmp_path, text) -> Path:
    """A directory like a new user's, with a text of the right name so that nothing is downloaded."""
    (tmp_path / "data" / "shakespeare_char").mkdir(parents=True)
    (tmp_path / "data" / "shakespeare_char" / "input.txt").write_text(text)
    return tmp_path


def shell(home: Path, *command, env=None, timeout=120) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "OMP_"))}
    clean |= {"HF_HOME": str(home / "hf")} | (env or {})  # no accelerate configuration of this machine's
    return subprocess.run(map(str, command), cwd=home, env=clean, capture_output=True, text=True, timeout=timeout)


def launch(home: Path, *arguments, env=None) -> subprocess.CompletedProcess:
    return shell(home, BIN / "accelerate", "launch", *arguments, env=env)


@pytest.mark.slow
def test_launch_prepares_trains_and_samples_at_full_speed_without_a_warning(home):
    done = launch(home, RECIPE, *SMALL, "--max_iters=20", "--eval_interval=10")
    assert done.returncode == 0, done.stderr
    cores = len(os.sched_getaffinity(0))
    assert "input.txt, which is already here" in done.stdout
    assert f"1 process with {cores} threads, " in done.stdout  # the launcher asks for one
    assert re.findall(r"step +(\d+)  validation loss \d\.\d{4}", done.stdout) == ["0", "10", "20"]
    assert "nanogpt sample out/shakespeare" in done.stdout
    _, _, rest = done.stderr.partition("run `accelerate config`.\n")
    assert "Warning" not in done.stderr and rest == "", done.stderr

    sampled = shell(home, BIN / "nanogpt", "sample", "out/shakespeare", "--prompt", "FIRST:", "--max_new_tokens", "20")
    assert sampled.returncode == 0 and sampled.stdout.startswith("FIRST:") and sampled.stderr == ""
    evaluated = shell(home, BIN / "nanogpt", "eval", "out/shakespeare")
    final = float(re.findall(r"best validation loss (\d\.\d{4})", done.stdout)[0])
    again = float(re.findall(r"loss (\d\.\d{4}) nats per token", evaluated.stdout)[0])
    assert again == pytest.approx(final, abs=2e-3)  # this one in fp32, the run perhaps in bf16


@pytest.mark.slow
def test_python_alone_works_too_and_stopping_and_resuming_loses_nothing(home):
    flags = [*SMALL, "--max_iters=3000", "--eval_interval=10000", "--log_interval=1", "--out_dir=out/a"]
    process = subprocess.Popen(
        [sys.executable, RECIPE, *flags], cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = home / "out" / "a" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("train_loss") > 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    stopped = int(re.search(r"stopped: step (\d+) is saved; to resume: .*--resume=auto", out)[1])
    more = [
        *flags[:-4],
        f"--max_iters={stopped + 2}",
        "--eval_interval=10000",
        "--out_dir=out/a",
        "--lr_decay_iters=3000",
    ]
    done = shell(home, sys.executable, RECIPE, *more, "--resume=auto")
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {stopped:,}" in done.stdout
    assert f"{stopped + 2:,} steps in" in done.stdout


@pytest.mark.slow
def test_on_a_terminal_a_bar_shows_loss_speed_and_time_left(home):
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))  # rows, columns
    command = [sys.executable, CLASSIC, *SMALL, "--max_iters=400", "--eval_interval=400"]
    process = subprocess.Popen(map(str, command), cwd=home, stdout=subprocess.DEVNULL, stderr=slave)
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # a terminal ends with an error
        while block := os.read(master, 1 << 16):
            shown += block
    assert process.wait(timeout=60) == 0
    assert re.search(rb"\d+/400 \[\d\d:\d\d<\d\d:\d\d, .*step/s, loss \d\.\d{3}, [\d,]+ tokens/s", shown), shown[-2000:]


@pytest.mark.slow
def test_two_processes_train_on_a_mixture_what_one_trains(home, text):
    flags = [*SMALL, "--max_iters=6", "--eval_interval=6", "--log_interval=1", "--dropout=0.1", "--optimizer=muon"]
    flags += ["--gradient_accumulation_steps=2", "--data=data/a:0.7,data/b:0.3"]
    writer.write(home / "data" / "a", text, "char", 0.1, "made up")
    writer.write(home / "data" / "b", text[::-1], "char", 0.1, "made up")
    one = launch(home, CLASSIC, *flags, "--out_dir=out/one", "--device=cpu")
    two = launch(home, *TWO_PROCESSES, "--main_process_port", "0", CLASSIC, *flags, "--out_dir=out/two", env=TWO)
    assert one.returncode == 0 and two.returncode == 0, one.stderr + two.stderr
    assert "2 processes with" in two.stdout
    curves = []
    for name in ("one", "two"):
        lines = [json.loads(line) for line in (home / "out" / name / "metrics.jsonl").read_text().splitlines()]
        curves.append([line.get("train_loss", line.get("val_loss")) for line in lines])
    assert curves[0] == pytest.approx(curves[1], abs=1e-6)
    assert two.stdout.count("output  out/two") == 1  # one process speaks


@pytest.mark.slow
def test_a_launch_that_became_two_replicas_stops_with_the_right_command(home):
    flags = [*SMALL, "--max_iters=2", "--gradient_accumulation_steps=2"]
    done = launch(home, *TWO_PROCESSES, "--main_process_port", "0", CLASSIC, *flags)
    assert done.returncode != 0
    assert "started 2 processes, but each trains on its own" in done.stderr
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2" in done.stderr
    assert not (home / "out").exists()


@pytest.mark.slow
def test_the_cpu_configuration_launches(home):
    config = ROOT / "accelerate_configs" / "cpu.yaml"
    done = launch(home, "--config_file", config, CLASSIC, *SMALL, "--max_iters=2")
    assert done.returncode == 0, done.stderr
    assert "device  cpu, 1 process" in done.stdout


@pytest.mark.slow
def test_a_mistake_is_one_line_and_exit_code_2(home):
    done = shell(home, sys.executable, CLASSIC, "--n_leyer=3")
    assert done.returncode == 2
    assert done.stderr == "error: unknown flag --n_leyer: did you mean --n_layer? --help lists them all\n"
    launched = launch(home, CLASSIC, "--n_leyer=3")
    assert launched.returncode == -signal.SIGTERM  # without the launcher's traceback
    assert launched.stderr.endswith(done.stderr) and "Traceback" not in launched.stderr


@pytest.mark.slow
def test_a_mistake_of_several_processes_is_the_last_that_the_launcher_says(home):
    """Elastic launchers print a report of their own, whose last line repeats the mistake."""
    env = {"ACCELERATE_USE_CPU": "true"}
    done = launch(home, *TWO_PROCESSES, "--main_process_port", "0", CLASSIC, "--n_leyer=3", env=env)
    line = "error: unknown flag --n_leyer: did you mean --n_layer? --help lists them all"
    assert done.returncode == 1
    assert f"\n{done.stderr}".count(f"\n{line}\n") == 1  # by the main process alone
    assert done.stderr.splitlines()[-2].strip() == f"traceback : {line}"


@pytest.mark.slow
@pytest.mark.alone
def test_the_first_sampled_token_comes_within_two_seconds_of_loading(home):
    done = shell(
        home, sys.executable, CLASSIC, *SMALL[4:], "--n_layer=4", "--n_embd=128", "--n_head=4", "--max_iters=1"
    )
    assert done.returncode == 0, done.stderr
    start = time.perf_counter()
    model = checkpoint.load_model(checkpoint.find(home / "out" / "shakespeare_nanogpt"))
    next(stream(model, torch.zeros(1, 1, dtype=torch.long), 1))
    assert time.perf_counter() - start < 2


@pytest.mark.slow
def test_gpt2_is_fine_tuned_exported_and_compared(home, text, gpt2_files):
    gpt2 = GPT2LMHeadModel(GPT2Config(n_positions=32, n_embd=16, n_layer=1, n_head=2))
    torch.nn.init.constant_(gpt2.transformer.ln_f.bias, 0.1)  # all biases at zero would be taken for bias=False
    gpt2.save_pretrained(home / "gpt2")
    BPETokenizer.gpt2().save(home / "gpt2")
    writer.write(home / "data" / "shakespeare_gpt2", text, "gpt2", 0.1, "made up")
    flags = ["--init_from=gpt2", "--block_size=16", "--max_iters=4", "--eval_interval=2", "--warmup_iters=0"]
    tuned = launch(home, FINETUNE, *flags, "--learning_rate=1e-2", "--device=cpu")
    assert tuned.returncode == 0, tuned.stderr
    before, _, after = (float(x) for x in re.findall(r"validation loss (\d+\.\d{4}) \(", tuned.stdout))
    assert before == pytest.approx(10.8, abs=0.2) and after < before  # ln 50257 = 10.82

    shell(home, BIN / "nanogpt", "export", "out/finetune_shakespeare", "--to", "tuned")
    compared = shell(home, sys.executable, EVAL_GPT2, "--models", "gpt2", "tuned", "out/finetune_shakespeare")
    lines = [line.split() for line in compared.stdout.splitlines()[1:]]
    assert [line[0] for line in lines] == ["gpt2", "tuned", "out/finetune_shakespeare"], compared.stderr
    assert lines[1][1:] == lines[2][1:] and float(lines[1][2]) == pytest.approx(after, abs=5e-3)
    assert lines[0][1] == f"{sum(p.numel() for p in gpt2.parameters()):,}"

    writer.write(home / "data" / "characters", text, "char", 0.1, "made up")
    wrong = shell(home, sys.executable, EVAL_GPT2, "--data=data/characters", "--models", "gpt2")
    assert wrong.returncode == 2 and "is not the tokenizer of gpt2: prepare the data" in wrong.stderr


# Mistakes, through the recipe itself but in this process, so that each takes milliseconds


@pytest.fixture
def recipe(home, monkeypatch, capsys):
    """Runs the classic recipe with flags, in a new user's directory; returns exit code, stdout and stderr."""
    monkeypatch.chdir(home)

    def run(*flags):
        reset_accelerate()
        monkeypatch.setattr(sys, "argv", [str(CLASSIC), *SMALL, "--device=cpu", "--max_iters=2", *flags])
        code = 0
        try:
            runpy.run_path(str(CLASSIC), run_name="__main__")
        except SystemExit as exit:
            code = exit.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--n_layer=four"], "--n_layer=four: expected an integer"),
        (["--n_embd=17"], "n_embd=17 is not divisible by n_head=2: choose n_head from 1, 17, or set head_dim"),
        (["--block_size=100000"], "block_size=100000 is too long"),
        (["--vocab_size=3"], "but the vocabulary has 3 tokens"),
        (["--out_dir=/dev/null/out"], "/dev/null/out"),
        (["--data=nowhere", "--resume=out/none"], "'out/none' is not a directory"),
        (["--report_to=pigeon"], "'pigeon' is not one of none, trackio, wandb, tensorboard"),
        (["--device=cuda"], "device=cuda, but torch finds no CUDA device"),
    ],
)
def test_wrong_flags(recipe, flags, message):
    if flags == ["--device=cuda"] and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    code, _, err = recipe(*flags)
    assert code == 2
    assert message in err and err.startswith("error: ") and err.count("\n") == 1


def damage_ids(data: Path) -> None:
    size = (data / "val.bin").stat().st_size
    (data / "val.bin").write_bytes(b"\xff\xff" * (size // 2))


@pytest.mark.parametrize(
    "damage, message",
    [
        (damage_ids, "val.bin contains token 65535, but the vocabulary has"),
        (lambda data: (data / "train.bin").write_bytes((data / "train.bin").read_bytes()[:-1]), "truncated"),
        (lambda data: (data / "meta.json").unlink(), "meta.json is missing"),
        (lambda data: (data / "meta.json").write_text('{"vocab_size": '), "meta.json is damaged"),
        (lambda data: (data / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    ],
)
def test_damaged_data(recipe, home, damage, message):
    data = home / "data" / "shakespeare_char"
    writer.write(data, (data / "input.txt").read_text(), "char", 0.1, "made up")
    damage(data)
    before = {f.name: f.read_bytes() for f in data.iterdir()}
    code, _, err = recipe()
    assert code == 2
    assert message in err and err.startswith("error: ") and err.count("\n") == 1
    assert {f.name: f.read_bytes() for f in data.iterdir()} == before


def test_an_empty_text(recipe, home):
    (home / "data" / "shakespeare_char" / "input.txt").write_text("")
    code, _, err = recipe()
    assert code == 2
    assert "the text is empty" in err and err.count("\n") == 1


@pytest.mark.slow
def test_an_out_directory_that_holds_another_run(recipe, home):
    assert recipe()[0] == 0
    out = home / "out" / "shakespeare_nanogpt"
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    code, _, err = recipe("--learning_rate=0.1")
    assert code == 2
    assert "--resume=auto" in err and "--out_dir=out/shakespeare_nanogpt-2" in err and err.count("\n") == 1
    assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before


@pytest.mark.slow
def test_resuming_from_half_written_and_empty_checkpoints(recipe, home):
    out = home / "out" / "shakespeare_nanogpt"
    assert recipe("--eval_interval=1", "--always_save_checkpoint=True")[0] == 0
    (out / "step-000002" / "optimizer.safetensors").write_bytes(b"half")
    code, shown, err = recipe("--resume=auto")
    assert code == 0, err
    assert "step-000002 is damaged: optimizer.safetensors has 4 bytes" in shown
    assert "resuming from step 1" in shown
    for step in out.glob("step-*"):
        shutil.rmtree(step)
        step.mkdir()
    code, _, err = recipe("--resume=auto")
    assert code == 2 and "has no intact checkpoint" in err


@pytest.mark.slow
def test_a_schedule_longer_than_the_run_and_max_iters_0_are_fine(recipe):
    code, shown, _ = recipe("--lr_decay_iters=100", "--out_dir=out/a")
    assert code == 0 and "2 steps in" in shown
    code, shown, _ = recipe("--max_iters=0", "--out_dir=out/b")
    assert code == 0 and "step      0  validation loss" in shown
