"""Small data and small runs that the tests share. All text is made here; nothing needs a network."""

import os
import random
import shutil
from functools import partial
from pathlib import Path

import conversations
import pytest
import torch
from helpers import reset_accelerate
from texts import write_data
from tiny_run import Run
from zygote import ROOT, Zygote

from data_prep.chat import prepare as prepare_chat
from nanogpt import GPTConfig, TrainConfig
from nanogpt.cli import main
from nanogpt.run import console, plan, prepare
from nanogpt.text.tokenizer import char_tokenizer

TINY = GPTConfig(block_size=16, n_layer=2, n_head=2, n_embd=16)


@pytest.fixture(scope="session", autouse=True)
def tiny_runs():
    """Two threads, short samples, short measurements; nothing waits for the disk or for git."""
    torch.set_num_threads(2)
    console.SAMPLE_TOKENS = 8
    plan.STEPS = 1
    os.fsync = lambda descriptor: None
    prepare.git_commit = lambda: None


@pytest.fixture(autouse=True)
def fresh_accelerate():
    reset_accelerate()


@pytest.fixture(scope="session")
def text() -> str:
    """Some 20,000 characters of made-up dialogue."""
    rng = random.Random(0)
    words = "the king and queen of hearts did speak to me in anger o my lord what news from court".split()
    lines = (" ".join(rng.choices(words, k=7)).capitalize() + "." for _ in range(500))
    return "\n".join(f"{rng.choice(['FIRST', 'SECOND'])}:\n{line}\n" for line in lines)


@pytest.fixture
def text_file(tmp_path, text):
    (tmp_path / "play.txt").write_text(text)
    return tmp_path / "play.txt"


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory, text) -> Path:
    """A character-level data directory; to be read only."""
    directory = tmp_path_factory.mktemp("shared") / "data"
    write_data(directory, text)
    return directory


@pytest.fixture
def data(tmp_path, shared_data) -> Path:
    """A copy of it."""
    return shutil.copytree(shared_data, tmp_path / "data", dirs_exist_ok=True)


def tiny_run(model: GPTConfig = TINY, **settings) -> Run:
    """A tiny `Run`, in this process, from settings of either configuration."""
    reset_accelerate()
    tiny = {"device": "cpu", "precision": "fp32", "sample_tokens": 8, "batch_size": 4, "max_iters": 4}
    tiny |= {"eval_interval": 4, "warmup_iters": 2, "learning_rate": 1e-2}
    return Run(model, TrainConfig(**tiny | settings))


@pytest.fixture
def make_run(tmp_path, data, capsys):
    """Makes a tiny `Run`, of `data` in `out` if the settings name no others."""
    places = {"out_dir": str(tmp_path / "out"), "data": str(data)}
    return lambda model=TINY, **settings: tiny_run(model, **places | settings)


@pytest.fixture(scope="session")
def trained_dir(tmp_path_factory, shared_data) -> Path:
    """The out directory of a run of ten steps, with checkpoints of two; to be read only."""
    out_dir = tmp_path_factory.mktemp("trained") / "out"
    tiny_run(out_dir=str(out_dir), data=str(shared_data), max_iters=10, eval_interval=5).train()
    return out_dir


@pytest.fixture
def run_dir(tmp_path, trained_dir) -> Path:
    """A copy of it."""
    return shutil.copytree(trained_dir, tmp_path / "out", symlinks=True)


@pytest.fixture(scope="session")
def chat_dir(tmp_path_factory) -> Path:
    """The out directory of a run that has learned to answer conversations by characters; to be read only."""
    place = tmp_path_factory.mktemp("chat")
    talks = [conversations.talk(f"{i}?", "yes") for i in range(100, 140)]
    words = [message[key] for messages in talks for message in messages for key in ("role", "content")]
    characters = char_tokenizer(sorted(set("\n".join(["system", *words]))))
    inputs = [conversations.write(place / "talks.jsonl", talks)]
    prepare_chat(inputs, place / "data", characters, 64, say=lambda text: None)
    model = GPTConfig(block_size=64, n_layer=1, n_head=2, n_embd=32)
    settings = {"batch_size": 8, "max_iters": 60, "eval_interval": 60, "learning_rate": 2e-2}
    tiny_run(model, out_dir=str(place / "out"), data=str(place / "data"), **settings).train()
    return place / "out"


@pytest.fixture
def command(capsys):
    """Runs a nanogpt command in this process and returns what it prints."""

    def run(*words) -> str:
        capsys.readouterr()
        main([str(word) for word in words])
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys):
    """Runs a program that must end with exit code 2 and one line, which it returns."""

    def run(program, *arguments) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            program(*arguments)
        said = capsys.readouterr().err
        assert exit.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
        return said

    return run


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    """Starts programs as processes of their own; see zygote.py."""
    with Zygote(tmp_path_factory.mktemp("zygote")) as zygote:
        yield zygote


@pytest.fixture
def cli(zygote, tmp_path):
    """Runs a nanogpt command in a process: `cli("sample", run).stdout`."""
    return partial(zygote.run, "nanogpt", cwd=tmp_path)


@pytest.fixture
def recipe(zygote, tmp_path):
    """Runs a recipe in a process: `recipe("shakespeare", "--max_iters=2").stdout`."""
    return lambda name, *flags, **env: zygote.run(ROOT / "recipes" / f"{name}.py", *flags, cwd=tmp_path, **env)


@pytest.fixture(scope="session")
def shakespeare() -> Path:
    """A copy of the original tiny Shakespeare."""
    if "NANOGPT_SHAKESPEARE" not in os.environ:
        pytest.skip("NANOGPT_SHAKESPEARE does not name a copy of the original tiny Shakespeare")
    return Path(os.environ["NANOGPT_SHAKESPEARE"])


@pytest.fixture(scope="session")
def gpt2_files():
    """Lets tiktoken find GPT-2's files without a network."""
    if "TIKTOKEN_CACHE_DIR" not in os.environ:
        pytest.skip("TIKTOKEN_CACHE_DIR does not name a directory with GPT-2's tokenizer files")
