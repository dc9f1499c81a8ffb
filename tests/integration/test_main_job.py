"""The main job as a user types it, in a directory of their own; the launcher's part is in test_launch.py."""

import contextlib
import os
import re
import runpy
import signal
import struct
import sys
import time
from pathlib import Path

import pytest
import torch
from fresh import reset_accelerate
from transformers import GPT2Config, GPT2LMHeadModel
from zygote import PATIENCE, ROOT

from data_prep import writer
from nanogpt.data.tokenizer import BPETokenizer

CLASSIC = ROOT / "recipes" / "shakespeare_nanogpt.py"
SMALL = "--n_layer=1 --n_head=2 --n_embd=16 --n_inner=32 --block_size=16 --batch_size=4 --report_to=none".split()


@pytest.fixture
def home(tmp_path, text) -> Path:
    """A directory like a new user's, with a text of the right name so that nothing is downloaded."""
    (tmp_path / "data" / "shakespeare_char").mkdir(parents=True)
    (tmp_path / "data" / "shakespeare_char" / "input.txt").write_text(text)
    return tmp_path


def test_stopping_by_a_signal_and_resuming_loses_nothing(home, zygote, recipe):
    flags = [*SMALL, "--eval_interval=100000", "--lr_decay_iters=100000", "--out_dir=out/a"]
    program = zygote.start(
        ROOT / "recipes" / "shakespeare.py", *flags, "--max_iters=100000", "--log_interval=1", cwd=home
    )
    metrics, end = home / "out" / "a" / "metrics.jsonl", time.monotonic() + PATIENCE
    while not (metrics.exists() and metrics.read_text().count("train_loss") > 3):
        assert time.monotonic() < end
        time.sleep(0.02)
    program.send_signal(signal.SIGTERM)
    stopped = program.wait()
    assert stopped.returncode == 143, stopped.stderr
    step = int(re.search(r"stopped: step (\d+) is saved; to resume: .*--resume=auto", stopped.stdout)[1])
    done = recipe("shakespeare", *flags, f"--max_iters={step + 2}", "--resume=auto")
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {step:,}" in done.stdout and f"{step + 2:,} steps in" in done.stdout


def test_on_a_terminal_a_bar_shows_loss_speed_and_time_left(home, zygote):
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))  # rows, columns
    flags = [*SMALL, "--max_iters=400", "--eval_interval=400"]
    program, shown = zygote.start(CLASSIC, *flags, cwd=home, stderr=os.ttyname(slave)), b""
    os.set_blocking(master, False)
    while (done := program.poll()) is None:
        with contextlib.suppress(BlockingIOError):
            shown += os.read(master, 1 << 16)
        time.sleep(0.01)
    with contextlib.suppress(BlockingIOError):
        shown += os.read(master, 1 << 16)
    os.close(slave), os.close(master)
    assert done == 0
    assert re.search(rb"\d+/400 \[\d\d:\d\d<\d\d:\d\d, .*step/s, loss \d\.\d{3}, [\d,]+ tokens/s", shown), shown[-2000:]


def test_gpt2_is_fine_tuned_exported_and_compared(home, text, gpt2_files, cli, recipe):
    gpt2 = GPT2LMHeadModel(GPT2Config(n_positions=32, n_embd=16, n_layer=1, n_head=2))
    torch.nn.init.constant_(gpt2.transformer.ln_f.bias, 0.1)  # all biases at zero would be taken for bias=False
    gpt2.save_pretrained(home / "gpt2")
    BPETokenizer.gpt2().save(home / "gpt2")
    writer.write(home / "data" / "shakespeare_gpt2", text, "gpt2", 0.1, "made up")
    flags = ["--init_from=gpt2", "--block_size=16", "--max_iters=4", "--eval_interval=2", "--warmup_iters=0"]
    tuned = recipe("finetune_shakespeare", *flags, "--learning_rate=1e-2", "--device=cpu")
    assert tuned.returncode == 0, tuned.stderr
    before, _, after = (float(x) for x in re.findall(r"validation loss (\d+\.\d{4}) \(", tuned.stdout))
    assert before == pytest.approx(10.8, abs=0.2) and after < before  # ln 50257 = 10.82

    cli("export", "out/finetune_shakespeare", "--to", "tuned")
    compared = recipe("eval_gpt2", "--models", "gpt2", "tuned", "out/finetune_shakespeare")
    lines = [line.split() for line in compared.stdout.splitlines()[1:]]
    assert [line[0] for line in lines] == ["gpt2", "tuned", "out/finetune_shakespeare"], compared.stderr
    assert lines[1][1:] == lines[2][1:] and float(lines[1][2]) == pytest.approx(after, abs=5e-3)
    assert lines[0][1] == f"{sum(p.numel() for p in gpt2.parameters()):,}"

    writer.write(home / "data" / "characters", text, "char", 0.1, "made up")
    wrong = recipe("eval_gpt2", "--data=data/characters", "--models", "gpt2")
    assert wrong.returncode == 2 and "is not the tokenizer of gpt2: prepare the data" in wrong.stderr


# Mistakes, through the recipe itself but in this process, so that each takes milliseconds


@pytest.fixture
def classic(home, monkeypatch, capsys):
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
        (["--n_embd=17"], "n_embd=17 is not divisible by n_head=2: change one of them, or set head_dim"),
        (["--block_size=100000"], "block_size=100000 is too long"),
        (["--vocab_size=3"], "but the vocabulary has 3 tokens"),
        (["--out_dir=/dev/null/out"], "/dev/null/out"),
        (["--data=nowhere", "--resume=out/none"], "'out/none' is not a directory"),
        (["--report_to=pigeon"], "'pigeon' is not one of none, trackio, wandb, tensorboard"),
        (["--device=cuda"], "device=cuda, but torch finds no CUDA device"),
    ],
)
def test_wrong_flags(classic, flags, message):
    if flags == ["--device=cuda"] and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    code, _, err = classic(*flags)
    assert code == 2
    assert message in err and err.startswith("error: ") and err.count("\n") == 1


def test_an_out_directory_that_holds_another_run(classic, home):
    assert classic()[0] == 0
    out = home / "out" / "shakespeare_nanogpt"
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    code, _, err = classic("--learning_rate=0.1")
    assert code == 2
    assert "--resume=auto" in err and "--out_dir=out/shakespeare_nanogpt-2" in err and err.count("\n") == 1
    assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before


def test_a_schedule_longer_than_the_run_and_max_iters_0_are_fine(classic):
    code, shown, _ = classic("--lr_decay_iters=100", "--out_dir=out/a")
    assert code == 0 and "2 steps in" in shown
    code, shown, _ = classic("--max_iters=0", "--out_dir=out/b")
    assert code == 0 and "step      0  validation loss" in shown
