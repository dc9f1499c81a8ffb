import dataclasses
import json
import random
from pathlib import Path

import pytest
from conftest import TINY
from test_forged_checkpoint import seal_again

from data_prep import writer
from nanogpt import checkpoint


def test_what_matters_to_exactness_is_named_and_what_does_not_is_not(make_run, capsys):
    make_run().train()
    capsys.readouterr()
    incidental = {"time_limit": 9, "timeout": 5, "keep_checkpoints": 7}
    make_run(resume="auto", seed=2, batch_size=2, lr_decay_iters=4, max_iters=8, **incidental)
    shown = capsys.readouterr().out
    assert "the settings differ from the checkpoint's: seed 1337 -> 2; batch_size 4 -> 2\n" in shown
    same_step = {"batch_size": 2, "gradient_accumulation_steps": 2}
    recomputing = dataclasses.replace(TINY, gradient_checkpointing=True)
    for model in (TINY, recomputing):
        make_run(model, resume="auto", max_iters=8, lr_decay_iters=4, **same_step)
        assert "note:" not in capsys.readouterr().out
    make_run(resume="auto", lr_schedule="constant")  # which has no end
    assert "decays over" not in capsys.readouterr().out


def test_another_machine_and_other_data_are_named(make_run, data, capsys):
    run = make_run()
    run.train()
    last = run.out_dir / "step-000004"
    config = json.loads((last / "config.json").read_text())
    config["environment"] |= {"torch": "1.0", "processes": 8}
    config["data"]["train"]["sha256"] = "0"
    (last / "config.json").write_text(json.dumps(config))
    seal_again(last)
    capsys.readouterr()
    make_run(resume="auto", max_iters=8, lr_decay_iters=4)
    shown = capsys.readouterr().out
    assert f"{data} has different tokens" in shown
    assert "the environment changed; results match only up to rounding: torch 1.0 -> 2." in shown
    assert "processes 8 -> 1" in shown and "threads 2 ->" not in shown


def test_on_another_validation_text_the_best_loss_counts_anew(make_run, tmp_path, text, capsys):
    run = make_run(max_iters=4, eval_interval=2, learning_rate=0.1)
    run.train()
    hard = "".join(random.Random(0).sample(text, len(text)))  # the same characters, which nothing predicts
    writer.write(tmp_path / "hard", hard, "char", 0.1, "made up")
    capsys.readouterr()
    run = make_run(data=str(tmp_path / "hard"), resume="auto", max_iters=8, eval_interval=2, learning_rate=0.1)
    assert run.state.best_step is None and "the best loss is reset" in capsys.readouterr().out
    run.train()
    assert (run.out_dir / "best").resolve().name > "step-000004"


def test_another_model_optimizer_or_tokenizer_is_refused_and_other_settings_are_named(make_run, tmp_path, text, capsys):
    make_run().train()
    with pytest.raises(ValueError, match="was trained with optimizer=adamw, not muon: resume with these"):
        make_run(optimizer="muon", resume="auto")
    with pytest.raises(ValueError, match="was trained with n_embd=16, not 32: resume with these"):
        make_run(dataclasses.replace(TINY, n_embd=32), resume="auto")
    last = sorted(set(text))[-1]
    other = text.translate(str.maketrans(last, "ß"))  # as many characters, but one of them another
    writer.write(tmp_path / "other", other, "char", 0.1, "made up")
    with pytest.raises(ValueError, match="different tokenizers"):
        make_run(data=str(tmp_path / "other"), resume="auto", max_iters=8)
    capsys.readouterr()
    make_run(resume="auto", max_iters=8, lr_decay_iters=4, learning_rate=2e-2, log_interval=3)
    shown = capsys.readouterr().out
    assert "learning_rate 0.01 -> 0.02" in shown
    assert "log_interval" not in shown and "decays" not in shown
    make_run(resume="auto", max_iters=8)
    assert "the learning rate decays over 8 steps, not 4" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_forged_checkpoint_is_an_error_of_one_line_before_the_run(make_run, name):
    """Its checksums fit: what is wrong shows only when it is read."""
    run = make_run()
    run.train()
    last = run.out_dir / "step-000004"
    (last / name).write_bytes(b"[" * 100_000)
    seal_again(last)
    with pytest.raises(ValueError, match=name) as error:
        make_run(resume="auto")
    assert "\n" not in str(error.value)


def test_a_directory_that_cannot_be_written_is_an_error_before_the_run(make_run, monkeypatch):
    def read_only(self, *args, **kwargs):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "write_text", read_only)
    with pytest.raises(OSError, match=r"Read-only file system: .*out/"):
        make_run()


def test_another_run_in_out_dir_is_not_overwritten(make_run):
    make_run().train()
    with pytest.raises(ValueError, match=r"already holds a run .step-000004.: .*--resume=auto.* --out_dir"):
        make_run()


def test_a_half_written_checkpoint_is_passed_over(make_run, capsys):
    run = make_run(max_iters=4, eval_interval=2)
    run.train()
    (run.out_dir / "step-000004" / "model.safetensors").write_bytes(b"")
    resumed = make_run(max_iters=4, eval_interval=2, resume="auto")
    assert resumed.state.step == 2
    assert "step-000004 is damaged: the checksum of model.safetensors is wrong" in capsys.readouterr().out
    resumed.train()
    assert checkpoint.find_damage(run.out_dir / "step-000004") is None


def test_best_last_and_a_directory_are_where_they_say(make_run):
    run = make_run(max_iters=4, eval_interval=2)
    run.train()
    checkpoint.point(run.out_dir / "best", run.out_dir / "step-000002")
    for wish, step in (("best", 2), ("last", 4), ("auto", 4), (str(run.out_dir / "step-000002"), 2)):
        assert make_run(max_iters=6, resume=wish).state.step == step
