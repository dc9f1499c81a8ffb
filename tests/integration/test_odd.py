"""Whatever is typed and whatever a file holds: no traceback, exit code 0 or 2, and at most three lines on stderr.

Each seed is a case. `make test` always has the same ones, every night has 2,000 new ones.
"""

import contextlib
import dataclasses
import io
import json
import os
import random
import runpy
import shutil
import signal
import sys
from datetime import date
from pathlib import Path

import pytest
import torch
from commands import parser_of
from conftest import TINY, tiny_run
from helpers import reset_accelerate, seal_again
from huggingface_hub import constants
from shapes import CASES, make_checkpoint
from texts import write_data
from zygote import ROOT

from data_prep import train_tokenizer
from nanogpt.cli import main, make_parser
from nanogpt.hub.export import export
from nanogpt.run import device, plan

SHORT = "--data=data --device=cpu --n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4 --max_iters=2 "
SHORT += "--eval_interval=2 --sample_tokens=2 --eval_iters=1 --precision=fp32 --compile=false"
TRAINING = "shakespeare shakespeare_nanogpt finetune_shakespeare own_text pretrain python_stdlib".split()
PROGRAMS = {  # with what they need besides their options
    **dict.fromkeys(TRAINING, SHORT),
    "plan": f"{ROOT}/recipes/shakespeare_nanogpt.py {SHORT}",
    "check-data": "data",
    "import-nanogpt": "ckpt.pt --data=data",
    "sample": "run --max_new_tokens=5",
    "chat": "run",
    "export": "run",
    "eval": "run",
    "compare": "run run",
    "plot": "run",
    "data_prep.text": "data --out=made",
}
PLAUSIBLE = {"INT": "1 2", "FLOAT": "0.5 1", "BOOL": "true false", "N": "1 2", "T": "0 1", "P": "1", "K": "2"}
STRAY = ["stray", "--frobnicate", "--n_leyer=3", "--max-itres", "-x", "--", "--=", "---", "--seed=1=2", "--é"]
# values are none, small, or far too large: what is allowed but takes hours is not tried
VALUES = ["", *"0 -1 1 nan inf 1e30 none true word 0x10 1,2 é nowhere/at/all /etc/passwd /dev/null".split(), "9" * 25]
VALUES += ["\x1b[31mred", "a\x9b2Jb", "x" * 5000, "{}", ".", "out", "data", "data:0.5,data:x"]

READERS = {  # of a directory: its files, and the commands that read them
    "run": (
        ".run config.json metrics.jsonl last/config.json last/tokenizer.json last/trainer_state.json",
        ["sample run --max_new_tokens=3", "eval run", "compare run run", "export run --to=exported"],
    ),
    "data": ("meta.json tokenizer.json train.bin", ["check-data data", "eval run"]),
    "gpt2": (
        "config.json tokenizer.json tokenizer_config.json generation_config.json",
        ["sample gpt2 --max_new_tokens=3", "eval gpt2 --data=data"],
    ),
    "qwen3": ("config.json tokenizer.json model.safetensors", ["sample qwen3 --prompt=be --max_new_tokens=3"]),
}
JSON = [None, True, 0, -1, 1, 3, 10**9, 60_000_000, 10**30, 0.5, 1e308, float("nan"), float("inf"), "", "é", "a"]
JSON += ["x" * 1000, "../../etc/passwd", "/dev/zero", "\0", "\x1b[31mred", "\ud800", "two\nlines", [], {}, [[]]]
JSON += [[0] * 50, {"a": {}}, {"": None}, [None, 1, "b"], *"uint8 BPE gpt2 llama relu none".split()]


class HangsError(BaseException):
    """Not an Exception, which a command might turn into a line."""


def stop_hanging(*args):
    raise HangsError


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """A directory with a tiny run, its data and two transformers directories; no network and no measurements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("odd"))
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr(plan, "seconds_per_step", lambda config, parts, state: 0.01)
        patch.setattr(device, "compile_model", lambda model, whole: None)
        patch.setitem(sys.modules, "lm_eval", None)
        text = "To be, or not to be: that is the question.\n" * 40
        Path("text.txt").write_text(text)
        write_data("data", text)
        tiny_run(TINY, out_dir="run", data="data", max_iters=2, threads=1, sample_tokens=2).train()
        export("run", "gpt2", say=lambda text: None)
        config = dataclasses.replace(CASES["qwen3"], vocab_size=300)
        make_checkpoint(Path("other"), config, train_tokenizer.train(["text.txt"], 270))
        export("other", "qwen3", say=lambda text: None)
        previous = signal.signal(signal.SIGALRM, stop_hanging)
        yield
        signal.signal(signal.SIGALRM, previous)


def run(program: str, *words: str) -> tuple[int, str]:
    """Exit code and stderr of a program in this process, which may take twenty seconds."""
    reset_accelerate()
    for made in ("out", "exported"):
        shutil.rmtree(made, ignore_errors=True)
    said, code = io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *words])
        patch.setattr(sys, "path", [*sys.path])
        patch.delitem(sys.modules, program, raising=False)
        signal.alarm(20)
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                if program in TRAINING:
                    runpy.run_path(str(ROOT / "recipes" / f"{program}.py"), run_name="__main__")
                elif program.startswith("data_prep"):
                    runpy.run_module(program, run_name="__main__")
                else:
                    main([program, *words])
        except SystemExit as exit:
            code = exit.code or 0
        finally:
            signal.alarm(0)
            torch.use_deterministic_algorithms(False)
    return code, said.getvalue()


def check(outcome: tuple[int, str], *case: object) -> None:
    code, said = outcome
    assert code in (0, 2), (*case, said)
    assert code == 0 or said.splitlines()[-1].startswith("error: "), (*case, said)
    assert said.count("\n") <= 3 and len(said) < 4000, (*case, said)
    assert not any(ord(c) < 32 for c in said.replace("\n", "")), (*case, said)


def command_line(rng: random.Random) -> list[str]:
    """A program, what it needs, and some arguments of which most are odd."""
    program = rng.choice([*TRAINING, *PROGRAMS])
    words = [program, *PROGRAMS[program].split()]
    recipe = f"recipes/{program}.py" if program in TRAINING else program
    commands = next(action.choices for action in make_parser()._actions if action.dest == "command")
    parser = commands.get(program) or parser_of(recipe)
    slow = ("help", "train_minutes")
    options = [action for action in parser._actions if action.option_strings and action.dest not in slow]
    for _ in range(rng.choice([1, 1, 2, 3])):
        action = rng.choice(options)
        named = PLAUSIBLE.get(action.metavar, str(action.metavar).replace("|", " ")).split()
        value = rng.choice(VALUES if rng.random() < 0.4 else list(action.choices or named))
        flag = action.option_strings[-1]
        flag = flag.replace("_", "-") if rng.random() < 0.5 else flag
        forms = [[f"{flag}={value}"], [flag, value], [flag], [rng.choice(STRAY)]]
        words += rng.choices(forms, weights=(6, 3, 1, 1))[0]
    return words


def spoil(rng: random.Random, value):
    """A copy of a JSON value in which something is odd or gone."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(JSON)
    value = value.copy()
    key = rng.choice([*value] if isinstance(value, dict) else range(len(value)))
    if rng.random() < 0.1:
        del value[key]
    else:
        value[key] = spoil(rng, value[key])
    return value


def content(rng: random.Random, path: Path) -> bytes:
    """Something for a file to hold: what it held with a change, any JSON, or no JSON at all."""
    there = path.read_bytes()
    kind = rng.choice(["spoilt"] * 6 + ["json", "deep", "cut"])
    if kind == "spoilt" and path.suffix in (".json", ".jsonl"):
        lines = there.splitlines() if path.suffix == ".jsonl" else [there]
        lines[-1] = json.dumps(spoil(rng, json.loads(lines[-1]))).encode()
        return b"\n".join(lines)
    if kind == "json":
        return json.dumps(rng.choice(JSON)).encode()
    if kind == "deep":
        return b"[" * 5000 + b"]" * 5000
    return there[: rng.randrange(len(there) + 1)] + rng.randbytes(rng.randrange(40))


@contextlib.contextmanager
def odd_file(rng: random.Random, path: Path):
    """Puts something odd in the place of a file, and seals its checkpoint again if it can; undoes that at the end."""
    kept = {p: p.read_bytes() for p in (path, path.with_name("trainer_state.json")) if p.is_file()}
    new = content(rng, path)
    path.unlink()
    rng.choice([os.mkdir, *[lambda path: path.write_bytes(new)] * 20])(path)
    if path.parent.name == "last" and path.is_file():
        with contextlib.suppress(Exception):
            seal_again(path.parent)
    try:
        yield new[:3000]
    finally:
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        for p, there in kept.items():
            p.write_bytes(there)


def seeds(count: int):
    tonight = pytest.param(date.today().toordinal() * 2000, 2000, marks=pytest.mark.nightly)
    return pytest.mark.parametrize("first, count", [(0, count), tonight])


@seeds(50)
def test_odd_command_lines(first, count):
    for seed in range(first, first + count):
        words = command_line(random.Random(seed))
        check(run(*words), seed, words)


@seeds(100)
def test_odd_files(first, count):
    for seed in range(first, first + count):
        rng = random.Random(seed)
        folder = rng.choice([*READERS])
        files, commands = READERS[folder]
        path, words = Path(folder, rng.choice(files.split())), rng.choice(commands).split()
        with odd_file(rng, path) as held:
            check(run(*words), seed, words, path, held)


def test_programs_work_without_anything_odd():
    for _, commands in READERS.values():
        for words in commands:
            assert run(*words.split()) == (0, ""), words
    for recipe in ("shakespeare_nanogpt", "own_text"):
        assert run(recipe, *SHORT.split())[0] == 0
