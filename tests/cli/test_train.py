"""`nanogpt train RECIPE`: in this process, or as the launcher's arguments. Its mistakes are in test_mistakes.py."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from nanogpt.cli import main

RECIPE = str(Path(__file__).parents[2] / "recipes" / "shakespeare_nanogpt.py")
SMALL = "--device=cpu --n-layer=1 --n_head=2 --n-embd=16 --block_size=16 --batch_size=4 --max-iters=2".split()


def test_a_run_is_repeated_exactly_from_its_config(data, tmp_path, monkeypatch, command):
    monkeypatch.setattr(sys, "argv", ["nanogpt"])
    config = f"--config={tmp_path}/a/config.json"
    first = ["train", RECIPE, *SMALL, f"--data={data}", f"--out-dir={tmp_path}/a", "--seed=7", "--json"]
    second = ["train", "--processes=1", RECIPE, config, f"--out_dir={tmp_path}/b", "--json"]
    results = [json.loads(command(*words).splitlines()[-1]) for words in (first, second)]
    assert results[0]["val_loss"] == results[1]["val_loss"]
    settings = [json.loads((tmp_path / name / "config.json").read_text()) for name in "ab"]
    for each in settings:
        assert each["train"].pop("seed") == 7
        del each["train"]["out_dir"]  # which differ
    assert settings[0] == settings[1]


@pytest.fixture
def launched(monkeypatch):
    """What would take the place of this process, on a machine without GPUs."""
    started = []
    monkeypatch.setattr(os, "execve", lambda *command: started.extend(command))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("PET_SIGNALS_TO_HANDLE", raising=False)
    return started


@pytest.mark.parametrize("argv", [["--processes=2", RECIPE, "--n_layer=1"], [RECIPE, "--n_layer=1", "--processes=2"]])
def test_several_processes_are_the_launchers(argv, launched):
    main(["train", *argv])
    program, words, env = launched
    assert program == sys.executable and words[words.index("--num_processes") + 1] == "2"
    assert words[-2:] == [RECIPE, "--n_layer=1"] and env["ACCELERATE_USE_CPU"] == "true"


@pytest.mark.parametrize("handler, told", [(signal.SIG_IGN, True), (signal.SIG_DFL, False)])
def test_under_nohup_the_launcher_leaves_hangups_alone(launched, handler, told):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        main(["train", "--processes=2", RECIPE, "--device=cpu"])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ("PET_SIGNALS_TO_HANDLE" in launched[2]) == told
    assert "SIGHUP" not in launched[2].get("PET_SIGNALS_TO_HANDLE", "")
