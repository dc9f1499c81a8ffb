"""`nanogpt train RECIPE`."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from nanogpt.cli import main

RECIPE = Path(__file__).parents[2] / "recipes" / "shakespeare_nanogpt.py"
SMALL = "--device=cpu --n-layer=1 --n_head=2 --n-embd=16 --block_size=16 --batch_size=4 --max-iters=2".split()


def test_a_recipe_is_trained_and_repeated_exactly_from_its_config(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nanogpt"])
    results = []
    main(["train", str(RECIPE), *SMALL, f"--data={data}", f"--out-dir={tmp_path}/a", "--seed=7", "--json"])
    results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    config = f"--config={tmp_path}/a/config.json"
    main(["train", "--processes=1", str(RECIPE), config, f"--out_dir={tmp_path}/b", "--json"])
    results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert results[0]["out_dir"] != results[1]["out_dir"]
    assert results[0]["val_loss"] == results[1]["val_loss"] and results[0]["settings"]["seed"] == 7
    settings = [json.loads((tmp_path / name / "config.json").read_text()) for name in "ab"]
    for each in settings:
        assert f"--out_dir={each['train']['out_dir']}" in [w.replace("out-dir", "out_dir") for w in each["command"]]
        del each["train"]["out_dir"], each["command"]  # which differ
    assert settings[0] == settings[1]
    with pytest.raises(SystemExit) as exit:
        main(["train", str(RECIPE), config, f"--out_dir={tmp_path}/a"])
    assert exit.value.code == 2 and "already holds a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["--processes", "2", "RECIPE", "--n_layer=1"], ["RECIPE", "--n_layer=1", "--processes=2"]]
)
def test_several_processes_are_the_launchers(argv, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda *command: started.append(command))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    main(["train", *(str(RECIPE) if word == "RECIPE" else word for word in argv)])
    program, words, env = started[0]
    assert program == sys.executable and words[words.index("--num_processes") + 1] == "2"
    assert words[-2:] == [str(RECIPE), "--n_layer=1"] and env["ACCELERATE_USE_CPU"] == "true"


@pytest.mark.parametrize("handler, told", [(signal.SIG_IGN, True), (signal.SIG_DFL, False)])
def test_under_nohup_the_launcher_leaves_hangups_alone(monkeypatch, handler, told):
    started = []
    monkeypatch.setattr(os, "execve", lambda *command: started.append(command))
    monkeypatch.delenv("PET_SIGNALS_TO_HANDLE", raising=False)
    before = signal.signal(signal.SIGHUP, handler)
    try:
        main(["train", "--processes=2", str(RECIPE), "--device=cpu"])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ("PET_SIGNALS_TO_HANDLE" in started[0][2]) == told
    assert "SIGHUP" not in started[0][2].get("PET_SIGNALS_TO_HANDLE", "")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["RECIPE", "--n-leyer=3"], "unknown flag --n_leyer: did you mean --n_layer?"),
        (["RECIPE", "--processes=0"], "--processes=0: must be from 1 to 1024"),
        (["nowhere.py"], "nowhere.py is not a Python file"),
        (["--processes=2", "nowhere.py"], "nowhere.py is not a Python file"),
        (["RECIPE", "--processes=3"], "--processes=3: this machine has 1 GPUs; --device=cpu trains on the CPU"),
    ],
)
def test_a_mistake_is_one_line(argv, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nanogpt"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit) as exit:
        main(["train", *(str(RECIPE) if word == "RECIPE" else word for word in argv)])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1
