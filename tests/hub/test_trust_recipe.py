"""A model of one's own class: what it was trained as is recorded, and only a file that was named is run."""

import importlib
import json
import sys

import pytest
import torch
from conftest import TINY
from tiny_run import Run

import nanogpt
from nanogpt import GPT, TrainConfig, checkpoint
from nanogpt.hub import export, weights
from nanogpt.hub.load import load_class

IDEA = """
from pathlib import Path

import torch

from nanogpt import GPT

Path(__file__).with_name("was_run").touch()
NOT_A_CLASS = 1


class Shifted(GPT):
    def __init__(self, config):
        super().__init__(config)
        self.shift = torch.nn.Parameter(torch.zeros(config.n_embd))
        self.register_buffer("unit", torch.ones(config.n_embd))
        self.wte.register_forward_hook(lambda module, args, x: x + self.shift * self.unit)


class Hotter(GPT):
    def forward(self, *args, **options):
        return 2 * super().forward(*args, **options)


if __name__ == "__main__":
    raise SystemExit("it begins to train")
"""


@pytest.fixture
def idea(tmp_path, data, monkeypatch):
    """The file of two classes, and a function that trains one of them: (file, train)."""
    folder = tmp_path / "ideas"
    folder.mkdir()
    file = folder / "idea.py"
    file.write_text(IDEA)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.delitem(sys.modules, "idea", raising=False)
    module = importlib.import_module("idea")

    def train(name: str):
        fields = {"device": "cpu", "precision": "fp32", "batch_size": 4, "max_iters": 2, "eval_interval": 2}
        config = TrainConfig(out_dir=str(tmp_path / name), data=str(data), learning_rate=0.1, warmup_iters=1, **fields)
        Run(TINY, config, make_model=getattr(module, name)).train()
        (folder / "was_run").unlink()
        return tmp_path / name

    return file, train


def test_a_class_with_parameters_of_its_own_is_loaded_if_its_file_is_named(idea, command, refused):
    file, train = idea
    run = train("Shifted")
    shift = checkpoint.read_tensors(checkpoint.find(run) / "model.safetensors")["shift"]
    for words in (["sample", run], ["eval", run]):
        said = refused(nanogpt.cli.main, [str(word) for word in words])
        assert "Shifted" in said and "ideas/idea.py runs" in said
    assert not file.with_name("was_run").exists()

    model, _ = nanogpt.load(run, trust_recipe=file)
    assert file.with_name("was_run").exists() and type(model).__name__ == "Shifted"
    shifted = sys.modules["idea"].Shifted
    assert type(shifted.from_pretrained(run)) is shifted
    assert torch.equal(model.shift, shift) and shift.abs().max() > 0
    trusted = ("--trust_recipe", file)
    assert command("sample", run, "--prompt=FIRST:", "--max_new_tokens=3", *trusted).startswith("FIRST:")
    (found,) = json.loads(command("eval", run, "--json", *trusted))
    stored = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["val_loss"] == pytest.approx(stored["val_loss"], abs=1e-4)
    with pytest.raises(ValueError, match="Shifted has other parameters than GPT"):
        weights.to_transformers(model)


def test_a_class_with_the_parameters_of_a_gpt_is_one_unless_its_file_is_named(idea, tmp_path, refused):
    file, train = idea
    run, idx, said = train("Hotter"), torch.arange(5)[None], []
    plain, _ = nanogpt.load(run, say=said.append)
    assert type(plain) is GPT and "trained as Hotter: --trust_recipe " in said[0] and "idea.py runs" in said[0]
    assert not file.with_name("was_run").exists()
    hotter, _ = nanogpt.load(run, trust_recipe=str(file))
    torch.testing.assert_close(hotter(idx), 2 * plain(idx))
    words = ["export", str(run), "--to", str(tmp_path / "export"), "--trust_recipe", str(file)]
    assert "logits differ" in refused(nanogpt.cli.main, words)
    with pytest.raises(ValueError, match="Hotter does not compute what a GPT does"):  # before formats without a check
        export.check_own_class(hotter)
    export.check_own_class(plain)


def test_a_file_named_for_a_plain_gpt_is_not_run(idea, run_dir):
    file, said = idea[0], []
    file.with_name("was_run").unlink()
    model, _ = nanogpt.load(run_dir, trust_recipe=str(file), say=said.append)
    assert type(model) is GPT and "is a plain GPT" in said[0] and not file.with_name("was_run").exists()


@pytest.mark.parametrize("name", ["NOT_A_CLASS", "Path", "Missing"])
def test_only_a_subclass_of_gpt_is_called(idea, name):
    with pytest.raises(ValueError, match=f"has no subclass of GPT that is called {name}"):
        load_class(idea[0], name)
    with pytest.raises(ValueError, match=r"is not a \.py file"):
        load_class("typo.py", name)
