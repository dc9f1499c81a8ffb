import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from conftest import TINY
from test_forged_checkpoint import seal_again
from texts import write_data
from tiny_run import Run

from nanogpt import TrainConfig, checkpoint


def test_what_matters_to_exactness_is_named_and_what_does_not_is_not(make_run, data, capsys):
    last = make_run()
    last.train()
    config = json.loads((last.out_dir / "step-000004/config.json").read_text())
    config["environment"] |= {"torch": "1.0", "processes": 8}
    config["data"]["train"]["sha256"] = "0"
    (last.out_dir / "step-000004/config.json").write_text(json.dumps(config))
    seal_again(last.out_dir / "step-000004")
    capsys.readouterr()
    make_run(resume="auto", seed=2, batch_size=2, max_iters=8, time_limit=9, timeout=5, keep_checkpoints=7)
    settings = "max_iters 4 -> 8; seed 1337 -> 2; batch_size 4 -> 2"
    others = f"torch 1.0 -> {torch.__version__}; processes 8 -> 1; {data} has different tokens"
    rate = "the learning rate follows the new length"
    assert f"note: changed since the checkpoint: {settings}; {others}; {rate}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings", [{"max_iters": 0}, {"max_iters": 8, "lr_decay_iters": 4}, {"max_iters": 8, "train_minutes": 1}]
)
def test_a_learning_rate_that_stays_as_it_was_is_not_mentioned(make_run, capsys, settings):
    make_run().train()
    capsys.readouterr()
    make_run(resume="auto", **settings)
    assert "learning rate" not in capsys.readouterr().out


@dataclasses.dataclass
class Smoothed(TrainConfig):
    label_smoothing: float = 0.0


def test_a_recipes_own_settings_are_compared_too(data, tmp_path, capsys):
    fields = {"device": "cpu", "precision": "fp32", "batch_size": 4, "max_iters": 2, "eval_interval": 2}
    fields |= {"out_dir": str(tmp_path / "out"), "data": str(data)}
    Run(TINY, Smoothed(label_smoothing=0.1, **fields)).train()
    Run(TINY, Smoothed(label_smoothing=0.2, resume="auto", **fields | {"max_iters": 4}))
    assert "label_smoothing 0.1 -> 0.2" in capsys.readouterr().out


def test_a_step_that_is_divided_differently_is_the_same(make_run, capsys):
    make_run().train()
    capsys.readouterr()
    for model in (TINY, dataclasses.replace(TINY, gradient_checkpointing=True)):
        make_run(model, resume="auto", batch_size=2, gradient_accumulation_steps=2)
        assert "note:" not in capsys.readouterr().out


def test_on_another_validation_text_the_best_loss_counts_anew(make_run, tmp_path, text, capsys):
    run = make_run(max_iters=4, eval_interval=2, learning_rate=0.1)
    run.train()
    hard = "".join(random.Random(0).sample(text, len(text)))  # the same characters, which nothing predicts
    write_data(tmp_path / "hard", hard)
    capsys.readouterr()
    run = make_run(data=str(tmp_path / "hard"), resume="auto", max_iters=8, eval_interval=2, learning_rate=0.1)
    assert run.state.best_step is None and "the best loss is reset" in capsys.readouterr().out
    run.train()
    assert (run.out_dir / "best").resolve().name > "step-000004"


def test_another_model_optimizer_or_tokenizer_is_refused(make_run, tmp_path, text):
    make_run().train()
    with pytest.raises(ValueError, match="was trained with optimizer=adamw, not muon: resume with these"):
        make_run(optimizer="muon", resume="auto")
    with pytest.raises(ValueError, match="was trained with n_embd=16, not 32: resume with these"):
        make_run(dataclasses.replace(TINY, n_embd=32), resume="auto")
    last = sorted(set(text))[-1]
    other = text.translate(str.maketrans(last, "ß"))  # as many characters, but one of them another
    write_data(tmp_path / "other", other)
    with pytest.raises(ValueError, match=r"is not the tokenizer of .*/step-000004"):
        make_run(data=str(tmp_path / "other"), resume="auto", max_iters=8)


def test_a_directory_that_cannot_be_written_is_an_error_before_the_run(make_run, monkeypatch):
    def read_only(self, *args, **kwargs):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "write_text", read_only)
    with pytest.raises(OSError, match=r"Read-only file system: .*out/"):
        make_run()


def test_another_run_in_out_dir_is_not_overwritten(make_run):
    make_run().train()
    with pytest.raises(ValueError, match=r"holds a run: .*--resume=auto.* --out_dir"):
        make_run()


def test_a_half_written_checkpoint_is_passed_over(make_run, capsys):
    run = make_run(max_iters=4, eval_interval=2)
    run.train()
    (run.out_dir / "step-000004" / "optimizer.safetensors").write_bytes(b"")
    resumed = make_run(max_iters=4, eval_interval=2, resume="auto")
    assert resumed.state.step == 2
    assert "step-000004 is damaged: the checksum of optimizer.safetensors is wrong" in capsys.readouterr().out
    resumed.train()
    assert checkpoint.find_damage(run.out_dir / "step-000004") is None


def test_best_last_and_a_directory_are_where_they_say(make_run):
    run = make_run(max_iters=4, eval_interval=2)
    run.train()
    for wish, step in (("last", 4), ("auto", 4), ("best", 2), (str(run.out_dir / "step-000002"), 2)):
        checkpoint.point(run.out_dir / "best", run.out_dir / "step-000002")
        checkpoint.point(run.out_dir / "last", run.out_dir / "step-000004")
        assert make_run(max_iters=6, resume=wish).state.step == step
