"""recipes/distill.py: a student learns the mean of its teachers' probabilities beside the text."""

from dataclasses import replace
from functools import partial

import distill
import pytest
import torch
from helpers import randomize
from texts import write_data

from nanogpt import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=65, block_size=8, n_layer=1, n_head=1, n_embd=16, train_temperature=0.8)


def test_the_loss_is_the_mixture_while_training_and_that_of_the_text_in_evaluations(monkeypatch):
    student, teachers = distill.Student(CONFIG), [GPT(CONFIG), GPT(CONFIG)]
    for seed, model in enumerate((student, *teachers)):
        randomize(model, seed)
    teach = staticmethod(partial(distill.mean_probabilities, teachers))
    monkeypatch.setattr(distill.Student, "teach", teach, raising=False)
    x, y = torch.randint(65, (2, 2, 8))
    log_p = student.eval()(x).log_softmax(-1)
    text = -log_p.gather(-1, y[..., None]).mean()
    sharp = -(student(x) / 0.8).log_softmax(-1).gather(-1, y[..., None]).mean()
    soft = sum(teacher.eval()(x).softmax(-1) for teacher in teachers) / 2
    mixture = 0.5 * sharp - 0.5 * (soft * log_p).sum(-1).mean()
    torch.testing.assert_close(student(x, y), text)
    torch.testing.assert_close(student.train()(x, y), mixture)
    assert mixture != text and list(student.state_dict()) == list(GPT(CONFIG).state_dict())


def test_a_student_refuses_documents_that_its_teachers_would_not_keep_apart():
    with pytest.raises(ValueError, match="leave --separator out"):
        distill.Student(replace(CONFIG, separator=0))


def test_a_student_is_a_run_like_any_other(recipe, run_dir, data, tmp_path):
    flags = "--n_layer=1 --n_head=2 --n_embd=16 --n_inner=32 --block_size=16 --max_iters=2 --sample_tokens=0".split()
    done = recipe("distill", *flags, f"--teacher={run_dir},{run_dir}", f"--data={data}", "--out_dir=student")
    assert done.returncode == 0, done.stderr
    assert recipe("distill", *flags, "--teacher=nowhere").stderr.count("\n") == 1
    write_data(tmp_path / "other", "other characters " * 20)
    write_data(tmp_path / "more", "other characters " * 20)
    for others in (f"{tmp_path}/other", f"{tmp_path}/other:0.5,{tmp_path}/more:0.5"):
        refused = recipe("distill", *flags, f"--teacher={run_dir}", f"--data={others}")
        assert f"is not the tokenizer of {run_dir}: prepare the data with that one\n" in refused.stderr
