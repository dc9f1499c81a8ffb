"""recipes/speedrun.py: an entry is trained for its minutes, evaluated again, and held to the rules."""

import json
import pickle
import re

import pytest
import speedrun
import torch
from helpers import randomize
from texts import write_data

from nanogpt import GPT, GPTConfig
from nanogpt.data.tokens import TokenDataset
from nanogpt.text.tokenizer import load_tokenizer

TINY = "--n_layer=1 --n_head=2 --n_embd=16 --n_inner=32 --train_minutes=0.003 --sample_tokens=0".split()


@pytest.fixture
def prepared(shakespeare, tmp_path):
    (tmp_path / speedrun.DATA).mkdir(parents=True)
    (tmp_path / speedrun.DATA / "input.txt").write_bytes(shakespeare.read_bytes())
    return tmp_path


def test_a_tiny_entry_prints_its_row(prepared, recipe, monkeypatch):
    done = recipe("speedrun", "--track=2", *TINY, "--block_size=64", "--seeds=2", "--seed=1")
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    losses = [float(loss) for loss in re.search(r"\(([\d., ]+)\)", last)[1].split(", ")]
    monkeypatch.chdir(prepared)
    for seed, loss in zip((1, 2), losses, strict=True):
        recorded = json.loads((prepared / f"out/speedrun-2-seed{seed}/result.json").read_text())
        assert loss == pytest.approx(recorded["val_loss"], abs=2e-3)  # which was in bf16, perhaps
    runs = {prepared / f"out/speedrun-2-seed{seed}": 0.1 for seed in (1, 2)}
    with pytest.raises(ValueError, match=r"took 0 s"):
        speedrun.row(runs, -1)
    row, data = speedrun.row(runs, 0.003), prepared / speedrun.DATA
    characters = load_tokenizer(data).characters
    for name in ("meta.json", "tokenizer.json"):
        (data / name).unlink()
    (data / "meta.pkl").write_bytes(pickle.dumps({"itos": dict(enumerate(characters))}))  # nanoGPT's
    assert speedrun.row(runs, 0.003) == row
    monkeypatch.setattr(speedrun, "VALIDATION", 7)
    with pytest.raises(ValueError, match="not nanoGPT's split"):
        speedrun.row(runs, 0.003)


@pytest.mark.nightly  # a minute: without bf16 the predictions alone take twelve seconds
def test_a_tiny_hour_trains_teachers_and_their_student(prepared, recipe):
    done = recipe("speedrun", "--track=60", *TINY, "--train_minutes=0.6", "--seed=3")
    assert done.returncode == 0, done.stderr
    runs = {run.name: json.loads((run / "config.json").read_text()) for run in prepared.glob("out/*")}
    assert set(runs) == {f"speedrun-60-seed3{end}" for end in ("", "-teacher-seed31", "-teacher-seed32")}
    assert runs["speedrun-60-seed3"]["class"]["name"] == "HourStudent"
    assert 0 < runs["speedrun-60-seed3"]["train"]["train_minutes"] < 0.3
    assert re.search(r"\| \*\*\d\.\d{4}\*\* .* \| \d+ s \|", done.stdout.splitlines()[-1])


def test_predictions_are_those_of_the_window_with_the_most_context(tmp_path, text):
    write_data(tmp_path, text[:330])
    data = TokenDataset(tmp_path, "train", 96)  # of 297 tokens
    tokens = torch.tensor(data.tokens.tolist())
    config = GPTConfig(vocab_size=data.meta["vocab_size"], block_size=96, n_layer=1, n_head=1, n_embd=16)
    models = [GPT(config).eval() for _ in range(2)]
    for seed, model in enumerate(models):
        randomize(model, seed)
    predictions = speedrun.Predictions(models, data)

    def expected(first: int, start: int, end: int) -> torch.Tensor:
        """Of the tokens from `start` to `end`, in the window that begins with `first`."""
        with torch.no_grad():
            window = tokens[None, first : first + 96]
            return sum(m(window).softmax(-1) for m in models)[0, start - first : end - first] / 2

    parts = [expected(0, 0, 96), expected(48, 96, 144), expected(96, 144, 192), expected(144, 192, 240)]
    parts += [expected(192, 240, 288), expected(200, 288, 296)]
    soft = torch.cat(parts)
    windows = torch.stack([tokens[start : start + 80] for start in (0, 33, 216)])
    close = {"atol": 1e-3, "rtol": 1e-2}  # they are kept in half precision
    torch.testing.assert_close(predictions(windows), torch.stack([soft[s : s + 80] for s in (0, 33, 216)]), **close)
    with pytest.raises(ValueError, match="not in the text"):
        predictions(windows.flip(1))
