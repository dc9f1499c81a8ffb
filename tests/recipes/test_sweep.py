"""recipes/sweep.yaml, run offline as W&B's agent would run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
def test_an_agents_run_has_its_settings_and_its_own_directory(tmp_path, data):
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    sweep = yaml.safe_load((ROOT / "recipes" / "sweep.yaml").read_text())
    chosen = {"learning_rate": {"value": 0.0123}, "muon_momentum": {"value": 0.8}}
    assert chosen.keys() == sweep["parameters"].keys() and sweep["metric"]["name"] == "val_loss"
    args = utils.create_sweep_command_args({"args": chosen})["args"]
    tiny = ["--max_iters=2", "--n_layer=1", "--n_embd=16", "--n_inner=16", "--data=data", "--threads=1"]
    values = {"${program}": [str(ROOT / sweep["program"])], "${args}": [*args, *tiny]}
    command = [word for part in utils.create_sweep_command(sweep["command"]) for word in values.get(part, [part])]
    agents = {"WANDB_MODE": "offline", "WANDB_RUN_ID": "abc123", "WANDB_SWEEP_ID": "s1", "WANDB_SILENT": "true"}
    agents |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    subprocess.run(command, cwd=tmp_path, env=os.environ | agents, check=True, timeout=120)

    settings = json.loads((tmp_path / "out" / "sweep" / "abc123" / "result.json").read_text())["settings"]
    assert settings["learning_rate"] == 0.0123 and settings["muon_momentum"] == 0.8
    assert [path.name.endswith("-abc123") for path in (tmp_path / "wandb").glob("offline-run-*")] == [True]
