"""What a run says at its end."""

import shlex
import sys

from conftest import TINY

from data_prep import writer
from nanogpt import TrainConfig
from nanogpt.config import parse


def test_the_command_that_goes_on_keeps_the_flags_of_this_one(make_run, monkeypatch, tmp_path, capsys):
    words = ["recipes/x.py", "--n_layer=2", "--max_iters", "4", "--n_head", "2", "--resume=auto", "--data=my data"]
    monkeypatch.setattr(sys, "argv", words)
    make_run().train()
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[:3] == ["accelerate", "launch", "recipes/x.py"] and "4" not in command
    model, config, _ = parse(TINY, TrainConfig(), command[3:], "")
    assert (model.n_layer, model.n_head, config.max_iters) == (2, 2, 8)
    assert (config.resume, config.data) == ("auto", "my data")
    monkeypatch.setattr(sys, "argv", [*words, "--seeds", "2"])
    make_run(seed=7, out_dir=str(tmp_path / "out-seed7")).train()
    _, config, actions = parse(TINY, TrainConfig(), shlex.split(capsys.readouterr().out.splitlines()[-1])[3:], "")
    assert (actions.seeds, config.seed, config.out_dir) == (1, 7, str(tmp_path / "out-seed7"))


def test_epochs_are_counted_and_the_prompt_is_ready_for_a_shell(make_run, tmp_path, capsys):
    writer.write(tmp_path / "quotes", "it's here\n" * 400, "char", 0.25, "made up")
    make_run(data=str(tmp_path / "quotes"), gradient_accumulation_steps=2).train()
    shown = capsys.readouterr().out
    assert f"4 of 128 tokens (2 x 4 sequences of 16), {4 * 128 / 3000:.2f} epochs" in shown
    command = next(line for line in shown.splitlines() if line.startswith("next:  nanogpt sample"))
    assert shlex.split(command)[-1] == "it's here"
