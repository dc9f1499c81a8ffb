"""Hooks: a model and optimizers of one's own; processes that see different data."""

import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from conftest import TINY
from tiny_run import Run

from nanogpt import GPT, TrainConfig, checkpoint, optim, rundir, train
from nanogpt.model import Ops, attention
from nanogpt.ops.cpu import CPU
from nanogpt.run import device, prepare, provenance
from nanogpt.run.agree import Peers
from nanogpt.run.compare import compare


class Shifted(GPT):
    """A GPT with one more parameter: a bias on the residual stream."""

    def __init__(self, config):
        super().__init__(config)
        self.shift = torch.nn.Parameter(torch.zeros(config.n_embd))
        self.wte.register_forward_hook(lambda module, args, x: x + self.shift)


def sgd(model, config, dtype):
    """Two optimizers that the package does not know, one of which counts in a plain number."""

    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for p in model.parameters():
                if p.grad is not None and p.ndim < 2:
                    self.state[p]["updates"] = self.state[p].get("updates", 0) + 1

    matrices, vectors = ([p for p in model.parameters() if (p.ndim < 2) == small] for small in (False, True))
    return [torch.optim.SGD(matrices, momentum=0.9), Counting(vectors, momentum=0.9)]


def test_a_model_and_optimizers_of_ones_own_train_and_resume_to_the_bit(data, tmp_path, capsys):
    hooks = {"make_model": Shifted, "make_optimizers": sgd}
    fields = {"data": str(data), "device": "cpu", "precision": "fp32", "batch_size": 4, "eval_interval": 3}
    fields |= {"sample_tokens": 0, "warmup_iters": 2, "learning_rate": 0.1}

    def trained(name, *lives):
        for max_iters in lives:
            config = TrainConfig(out_dir=str(tmp_path / name), max_iters=max_iters, lr_decay_iters=6, **fields)
            train.main(TINY, config, argv=["--resume=auto"], **hooks)
        return tmp_path / name / "step-000006"

    whole, resumed = trained("whole", 6), trained("resumed", 3, 6)
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (whole / file).read_bytes() == (resumed / file).read_bytes()
    weights, moments = (checkpoint.read_tensors(whole / f) for f in ("model.safetensors", "optimizer.safetensors"))
    assert weights["shift"].abs().max() > 0 and moments["shift.updates"] == 6
    assert "warning: no sample" not in capsys.readouterr().out  # the sample at the end is by the same class


def test_optimizers_of_ones_own_and_changed_code_are_other_ideas(data, tmp_path, monkeypatch):
    def trained(name, **hooks):
        fields = {"data": str(data), "device": "cpu", "precision": "fp32", "sample_tokens": 0}
        config = TrainConfig(out_dir=str(tmp_path / name), max_iters=2, eval_interval=1, **fields)
        train.main(TINY, config, argv=[], **hooks)
        return tmp_path / name

    runs = [trained("base"), trained("own", make_optimizers=sgd)]
    monkeypatch.setattr("nanogpt.run.prepare.code_hash", lambda *definitions: "changed")
    text = compare([*runs, trained("changed")])
    rows = {line[:12].strip(): line for line in text.splitlines()}
    assert rows["optimizers"].count("sgd") == 1 and rows["optimizers"].count("nanogpt's") == 2
    assert rows["code"].count("changed") == 1 and "class" not in rows


@pytest.mark.parametrize(
    "file, counts",
    [
        ("model.py", True),
        ("data/tokens.py", True),
        ("ops/cpu.py", True),
        ("run/device.py", True),
        ("text/directories.py", True),
        ("text/tokenizer.py", False),
        ("run/plan.py", False),
    ],
)
def test_an_edit_of_what_a_step_computes_changes_the_checksum(tmp_path, monkeypatch, file, counts):
    package = shutil.copytree(Path(optim.__file__).parent, tmp_path / "nanogpt")
    monkeypatch.setattr(optim, "__file__", str(package / "optim.py"))
    before = provenance.code_hash()
    with open(package / file, "a") as edited:
        edited.write("# edited\n")
    assert (provenance.code_hash() != before) is counts


def test_an_optimizer_that_reads_no_flag_is_not_called_for_a_gradient_that_is_not_finite():
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), torch.nan)
    optimizer = torch.optim.SGD([weight], momentum=0.9)
    optim.update([optimizer], torch.tensor(1.0))
    assert torch.equal(weight, torch.ones(3)) and not optimizer.state and weight.grad is None


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_a_run_records_the_commit_of_its_recipe(make_run, tmp_path, monkeypatch):
    recipe = tmp_path / "repository" / "recipe.py"
    recipe.parent.mkdir()
    recipe.write_text("one\n")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set while a hook of git runs
        monkeypatch.delenv(name, raising=False)
    git = f"git -C {recipe.parent} -c user.name=a -c user.email=a@b.c -c commit.gpgsign=false".split()
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run(git + words, check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(recipe), raising=False)
    monkeypatch.setattr("nanogpt.run.prepare.git_commit", provenance.git_commit)
    assert make_run().settings["environment"]["commit"] == commit
    recipe.write_text("two\n")
    assert make_run().settings["environment"]["commit"] == f"{commit}-dirty"


def test_pretrained_weights_and_a_model_of_ones_own_are_refused_together(data, tmp_path):
    fields = {"device": "cpu", "precision": "fp32", "init_from": "gpt2"}
    with pytest.raises(ValueError, match="init_from=gpt2 loads a GPT"):
        Run(TINY, TrainConfig(out_dir=str(tmp_path / "out"), data=str(data), **fields), make_model=Shifted)


def test_a_model_with_parameters_of_its_own_is_not_exportable(data, tmp_path):
    fields = {"device": "cpu", "precision": "fp32", "require_exportable": True}
    with pytest.raises(ValueError, match="Shifted has other parameters than GPT"):
        Run(TINY, TrainConfig(out_dir=str(tmp_path / "out"), data=str(data), **fields), make_model=Shifted)


def test_processes_with_other_settings_end_the_run(make_run, monkeypatch):
    sums = []
    monkeypatch.setattr(Peers, "all_max", lambda self, *values: sums.append(values) or list(map(int, values)))
    for fields in ({}, {"time_limit": 5.0, "threads": 1}, {"batch_size": 2}):  # machines may differ in some
        make_run(**fields)
        rundir.release()
    checksums = [a for a, b in (values for values in sums if len(values) == 2) if a == -b]
    assert checksums[0] == checksums[1] != checksums[2]


def test_a_process_that_finds_other_tokens_ends_the_run(make_run, monkeypatch):
    def with_another(self, *values):
        """The largest where another process brings other tokens, and agrees in all else."""
        tokens = len(values) == 2 and values[0] == -values[1] > 1000
        return [max(values[0], 1000), max(values[1], -1000)] if tokens else list(map(int, values))

    monkeypatch.setattr(Peers, "all_max", with_another)
    with pytest.raises(ValueError, match=r"^all machines must see the same .* and .*data"):
        make_run()


def test_operators_of_ones_own_model_are_trained_with(data, tmp_path):
    mine = partial(attention, dropout=0.0)
    config = TrainConfig(out_dir=str(tmp_path / "out"), data=str(data), device="cpu", precision="fp32")
    run = Run(TINY, config, make_model=lambda config: GPT(config, ops=Ops(attention=mine)))
    assert run.gpt.h[0].attn.ops == CPU._replace(attention=mine)


@pytest.mark.parametrize(
    "kind, where, cls, whole",
    [
        (DistributedType.NO, "cuda", GPT, True),
        (DistributedType.MULTI_GPU, "cuda", GPT, False),
        (DistributedType.FSDP, "cuda", GPT, False),
        (DistributedType.NO, "cpu", GPT, False),
        (DistributedType.NO, "cuda", Shifted, True),
        (DistributedType.NO, "cuda", type("Own", (GPT,), {"forward": lambda self, *args: None}), False),
    ],
)
def test_a_model_is_one_graph_on_a_single_gpu_unless_its_forward_is_the_users(monkeypatch, kind, where, cls, whole):
    compiled = []
    monkeypatch.setattr(device, "compile_model", lambda model, whole: compiled.append(whole))
    wrap = lambda model, *optimizers: (model, *[SimpleNamespace(optimizer=each) for each in optimizers])  # noqa: E731
    accelerator = SimpleNamespace(device=torch.device(where), distributed_type=kind, mixed_precision="no", prepare=wrap)
    accelerator.gradient_state = SimpleNamespace(plugin_kwargs={})
    config = TrainConfig()
    prepare.assemble(cls(replace(TINY, vocab_size=65)), config, accelerator, optim.make_optimizers, compiled=True)
    assert compiled == [whole]
