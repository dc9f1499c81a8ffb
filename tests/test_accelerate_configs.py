"""Accelerate reads accelerate_configs/*.yaml as they are meant."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

CONFIGS = sorted((Path(__file__).parents[1] / "accelerate_configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_it(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == yaml.safe_load(path.read_text())["num_processes"]


def test_the_scheduler_chooses_the_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    for path in CONFIGS:
        args = launch_command_parser().parse_args(["--config_file", str(path), "--main_process_ip=127.0.0.1", "x.py"])
        environment = prepare_simple_launcher_cmd_env(_validate_launch_command(args)[0])[1]
        assert environment.get("CUDA_VISIBLE_DEVICES", "3") == "3", path.name


def test_fsdp_leaves_tied_weights_tied():
    config = yaml.safe_load((CONFIGS[0].parent / "fsdp2.yaml").read_text())
    assert config["fsdp_config"]["fsdp_cpu_ram_efficient_loading"] is False
    assert config["fsdp_config"]["fsdp_version"] == 2
