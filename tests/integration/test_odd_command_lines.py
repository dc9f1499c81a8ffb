"""Generated command lines on tiny data, by the real parsers and `main` of all programs. See odd.py."""

import os
import random
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import odd
import pytest
import torch
from commands import parser_of, subcommands
from fresh import reset_accelerate
from huggingface_hub import constants

from nanogpt import GPT
from nanogpt.cli import main as nanogpt
from nanogpt.extras import bench, eval_tasks
from nanogpt.extras.page import to_page
from nanogpt.hub import client
from nanogpt.run import plan, prepare

RECIPES = Path(__file__).parents[2] / "recipes"
TRAINING = "shakespeare shakespeare_nanogpt finetune_shakespeare own_text pretrain python_stdlib".split()
SHORT = "--data=data --device=cpu --n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4".split()
SHORT += "--max_iters=2 --eval_interval=2 --sample_tokens=2 --eval_iters=1 --precision=fp32 --compile=false".split()
SERVERS = {"dashboard", "playground"}  # which run until they are stopped
ARGUMENTS = {  # what the commands need besides their options
    "import-nanogpt": ["ckpt.pt", "--data=data"],
    "show-batch": ["run", "--step=1"],
    "compare": ["run", "run"],
    "check-data": ["data"],
    "plan": [str(RECIPES / "shakespeare_nanogpt.py"), *SHORT],
    "push": ["run", "a/b"],
    "bench": [],
    "sample": ["run", "--max_new_tokens=5"],
    "launch-check": ["--device=cpu"],
}
# numbers are none, small, or far too large: what is allowed and takes hours is not tried
ODD = ["", *"0 -1 1 2 nan inf 1e30 none true word 0x10 1,2 é nowhere/at/all /etc/passwd /dev/null".split(), "9" * 25]
ODD += ["\x1b[31mred", "a\x9b2Jb", "x" * 5000, "{}", ".", "out", "data", "data:0.5,data:x"]
PLAUSIBLE = {"INT": "1 2", "FLOAT": "0.5 1", "BOOL": "true false", "N": "1 2", "T": "0 1", "P": "1", "K": "2"}
STRAY = ["stray", "--frobnicate", "--n_leyer=3", "--max-itres", "-x", "--", "--=", "--data", "---", "--seed=1=2", "--é"]


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """A directory with tiny data and a tiny run, and no network, no long measurements."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("odd"))
    odd.make_run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        for module, name in ((client, "make_repository"), (to_page, "fetch_library"), (eval_tasks, "evaluate")):
            patch.setattr(module, name, unavailable)
        patch.setattr(bench, "Bench", Unmeasured)
        patch.setattr(plan, "median_seconds", lambda step, at_most=3.0: 0.01)
        patch.setattr(GPT, "compile", lambda model: None)
        patch.setattr(prepare, "compile_blocks", lambda model: None)
        yield
    os.chdir(before)


class Unmeasured:
    """A `bench.Bench` that measures nothing."""

    rows = ()
    run = SimpleNamespace(settings={"environment": {}})

    def __init__(self, *args):
        pass

    def __getattr__(self, part: str):
        return lambda: ""


def unavailable(*args, **options):
    raise OSError("no network")


def programs() -> list[str]:
    commands = sorted(subcommands(parser_of("nanogpt")).keys() - SERVERS)
    return [*TRAINING, *commands, "data_prep.text", "data_prep.merge"]


def options_of(program: str) -> dict[str, list[str]]:
    """The flags of a program, each with some values that it may take."""
    if program in TRAINING:
        parser = parser_of(f"recipes/{program}.py")
    else:
        parser = subcommands(parser_of("nanogpt")).get(program) or parser_of(program)
    options = [action for action in parser._actions if action.option_strings and action.dest != "help"]
    return {
        a.option_strings[-1]: list(a.choices or PLAUSIBLE.get(a.metavar, str(a.metavar).replace("|", " ")).split())
        for a in options
    }


def command_line(chance: random.Random) -> list[str]:
    """A program, what it needs, and some arguments of which most are odd."""
    program = chance.choice([*TRAINING, *programs()])
    needed = ["data", "--out=made"] if program == "data_prep.text" else ["run"]
    words, options = [program, *(SHORT if program in TRAINING else ARGUMENTS.get(program, needed))], options_of(program)
    for _ in range(chance.choice([1, 1, 2, 3])):
        flag, plausible = chance.choice(list(options.items()) or [("--none", ODD)])
        value = chance.choice(ODD if chance.random() < 0.4 else plausible)
        flag = flag.replace("_", "-") if chance.random() < 0.5 else flag
        forms = [[f"{flag}={value}"], [flag, value], [flag], [chance.choice(STRAY)]]
        words += chance.choices(forms, weights=(6, 3, 1, 1))[0]
    return words


def run(program: str, *words: str) -> tuple[int, str]:
    """Exit code and stderr of a program in this process."""
    reset_accelerate()
    shutil.rmtree("out", ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *words])
        patch.setattr(sys, "path", [*sys.path])
        patch.delitem(sys.modules, program, raising=False)
        if program in TRAINING:
            found = odd.outcome(lambda: runpy.run_path(str(RECIPES / f"{program}.py"), run_name="__main__"))
        elif program.startswith("data_prep"):
            found = odd.outcome(lambda: runpy.run_module(program, run_name="__main__"))
        else:
            found = odd.outcome(lambda: nanogpt([program, *words]))
    torch.use_deterministic_algorithms(False)
    return found


@odd.seeds(50)
def test_no_traceback_and_three_lines_at_most(first, count):
    for seed in range(first, first + count):
        words = command_line(random.Random(seed))
        odd.check(*run(*words), seed, words)


def test_programs_work_without_odd_arguments():
    assert run("shakespeare_nanogpt", *SHORT, "--out_dir=plain")[0] == 0
    assert run("sample", "run", "--max-new-tokens=2")[0] == 0
    assert run("own_text", *SHORT, "--out_dir=plain2")[0] == 0
