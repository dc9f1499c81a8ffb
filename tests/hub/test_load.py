"""What a RUN may be: an out directory, a checkpoint, a transformers directory; for the commands and as a library."""

import contextlib
import io
import pydoc

import pytest
import torch

import nanogpt
from nanogpt import GPT, checkpoint
from nanogpt.hub import export


@pytest.fixture
def run_dir(make_run):
    run = make_run(max_iters=10, eval_interval=5)
    run.train()
    return run.out_dir


def test_a_run_a_checkpoint_and_an_export_load_as_the_same_model(run_dir, tmp_path):
    export.export(run_dir, tmp_path / "export")
    best = checkpoint.load_model(checkpoint.find(run_dir))
    idx = torch.arange(10)[None]
    for model in (
        GPT.from_pretrained(run_dir),
        GPT.from_pretrained(str((run_dir / "best").resolve())),
        GPT.from_pretrained(tmp_path / "export"),
        nanogpt.load(run_dir)[0],
    ):
        assert isinstance(model, GPT) and not model.training
        torch.testing.assert_close(model(idx), best(idx))
        assert model.generate(idx, 3, seed=1).shape == (1, 13)


def test_options_choose_the_checkpoint_and_change_what_leaves_the_weights_alone(run_dir):
    first, last = checkpoint.steps(run_dir)
    model = GPT.from_pretrained(run_dir, which="step-5", dropout=0.5, dtype=torch.bfloat16)
    weight = checkpoint.load_model(first).wte.weight
    assert torch.equal(model.wte.weight, weight.bfloat16()) and model.config.dropout == 0.5
    assert not torch.equal(weight, checkpoint.load_model(last).wte.weight)


def test_a_directory_that_is_neither_is_an_error(tmp_path, run_dir):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"config\.json"):
        GPT.from_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match="checkpoint='seventh' is not one of best, last, step-N"):
        GPT.from_pretrained(run_dir, which="seventh")


def test_help_of_the_package_shows_how_it_is_used():
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        pydoc.Helper(output=shown).help(nanogpt)
    assert all(word in shown.getvalue() for word in ("load(", "model.generate(", "train.main(", "GPT.from_pretrained"))
