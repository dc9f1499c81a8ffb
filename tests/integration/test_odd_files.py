"""Small files with anything in them, and the commands that read them: also no hang, and little memory. See odd.py."""

import contextlib
import copy
import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import warnings
from pathlib import Path

import odd
import pytest
from helpers import seal_again
from shapes import CASES, make_checkpoint
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nanogpt import checkpoint
from nanogpt.cli import main
from nanogpt.data.tokenizer import HFTokenizer, load_tokenizer
from nanogpt.hub.export import export

SAMPLE, EXPORT = ["--max_new_tokens=3", "--device=cpu"], ["--to=exported"]
COMMANDS = {  # by what the file belongs to
    "run": [["sample", "run", *SAMPLE], ["eval", "run", "--device=cpu"], ["show-batch", "run", "--step=1"]],
    "data": [["check-data", "data"], ["show-batch", "run", "--step=1"], ["eval", "run", "--device=cpu"]],
    "gpt2": [["sample", "gpt2", *SAMPLE], ["eval", "gpt2", "--data=data", "--device=cpu"]],
    "qwen3": [["sample", "qwen3", "--prompt=be", *SAMPLE], ["sample", "qwen3", "--prompt=be", *SAMPLE]],
}
COMMANDS["run"] += [["compare", "run", "run"], ["export", "run", *EXPORT]]
COMMANDS["data"] += [["check-data", "data", "--sha256"]]
FILES = {
    "run": ["config.json", "metrics.jsonl", ".run"],
    "data": ["meta.json", "meta.json", "tokenizer.json", "train.bin"],
    "gpt2": "config.json config.json tokenizer.json tokenizer_config.json generation_config.json".split(),
    "qwen3": "config.json config.json tokenizer.json tokenizer_config.json model.safetensors".split(),
}
FILES["run"] += "last/config.json last/tokenizer.json last/trainer_state.json last/model.safetensors".split()
ODD = [None, True, 0, -1, 1, 3, 10**9, 60_000_000, 10**30, 0.5, 1e308, float("nan"), float("inf"), -1e-9, "", "é", "a"]
ODD += ["x" * 1000, "../../etc/passwd", "/dev/zero", "\0", "\x1b[31mred", "\ud800", "two\nlines", [], {}, [[]]]
ODD += [[0] * 50, {"a": {}}, {"": None}, [None, 1, "b"], *"uint8 O BPE Unigram gpt2 llama relu none".split()]


class HangsError(BaseException):
    """No Exception, which a command might turn into a line."""


def stop_hanging(*args):
    raise HangsError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny run, its data, and two transformers directories; one has a tokenizer that the library trained."""
    before, place = os.getcwd(), tmp_path_factory.mktemp("odd")
    os.chdir(place)
    odd.make_run()
    export("run", "gpt2", say=lambda text: None)
    make_checkpoint(place / "other", dataclasses.replace(CASES["qwen3"], vocab_size=300), HFTokenizer(byte_level()))
    export("other", "qwen3", say=lambda text: None)
    previous = signal.signal(signal.SIGALRM, stop_hanging)
    yield place
    signal.signal(signal.SIGALRM, previous)
    os.chdir(before)


def byte_level() -> Tokenizer:
    bpe, alphabet = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel.alphabet()
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=special, initial_alphabet=alphabet)
    bpe.train_from_iterator([odd.TEXT], trainer)
    return bpe


def spoil(chance: random.Random, value: object) -> object:
    """A copy of a JSON value in which something is another value, has another name, or is gone."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        parent, key = {"": value}, ""
        while isinstance(parent[key], dict | list) and parent[key] and (key == "" or chance.random() < 0.8):
            parent = parent[key]
            key = chance.choice(list(parent)) if isinstance(parent, dict) else chance.randrange(len(parent))
        kind = chance.random()
        if kind < 0.75 or key == "":
            parent[key] = copy.deepcopy(chance.choice(ODD))
        elif kind < 0.9:
            del parent[key]
        elif isinstance(parent, dict):
            parent[str(chance.choice(ODD))] = parent.pop(key)
        if "" in parent and key == "":
            value = parent[""]
            break
    return value


def content(chance: random.Random, path: Path) -> bytes:
    """Something for a file to hold: what it held with changes, any JSON, or no JSON at all."""
    kind, there = chance.random(), path.read_bytes() if path.exists() else b""
    if kind < 0.7 and path.suffix == ".json":
        return json.dumps(spoil(chance, json.loads(there or b"{}"))).encode()
    if kind < 0.7 and path.suffix == ".jsonl":
        lines = there.splitlines()
        lines[chance.randrange(len(lines))] = json.dumps(spoil(chance, json.loads(lines[-1]))).encode()
        return b"\n".join(lines) + b"\n"
    if kind < 0.8:
        return json.dumps(chance.choice(ODD)).encode()
    if kind < 0.85:
        return b"[" * 5000 + b"]" * 5000 if chance.random() < 0.5 else b'{"a":' * 900 + b"1" + b"}" * 900
    if kind < 0.95:
        return there[: chance.randrange(len(there) + 1)] + chance.randbytes(chance.randrange(40))
    return chance.randbytes(chance.choice([0, 1, 8, 300]))


@contextlib.contextmanager
def odd_file(chance: random.Random, directory: Path, name: str):
    """Puts something odd in the place of a file, and seals a checkpoint anew if it can be; afterwards all is back."""
    path = directory / name
    kept = {p: p.read_bytes() for p in [path, path.with_name(checkpoint.STATE)] if p.is_file()}
    new, kind = content(chance, path), chance.random()
    path.unlink(missing_ok=True)
    if kind < 0.05:
        os.mkfifo(path)
    elif kind < 0.08:
        path.mkdir()
    elif kind < 0.1:
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(new)
    if "last/" in name and path.is_file():
        with contextlib.suppress(
            OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, AssertionError
        ):
            seal_again(path.parent)
    try:
        yield
    finally:
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        for p, there in kept.items():
            p.write_bytes(there)


def run(words: list[str]) -> tuple[int, str]:
    """Exit code and stderr of a command in this process, warnings included."""
    shutil.rmtree("exported", ignore_errors=True)
    signal.alarm(20)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("ignore")
            for kind in (UserWarning, RuntimeWarning):
                warnings.simplefilter("default", kind)
            code, said = odd.outcome(lambda: main(words))
    finally:
        signal.alarm(0)
    return code, said + "".join(f"{warning.message}\n" for warning in warned)


@odd.seeds(100)
def test_no_traceback_no_hang_and_little_memory(place, first, count):
    for seed in range(first, first + count):
        chance = random.Random(seed)
        owner = chance.choice(list(FILES))
        name, words = chance.choice(FILES[owner]), chance.choice(COMMANDS[owner])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with odd_file(chance, place / owner, name):
            code, said = run(words)
            held = (place / owner / name).read_bytes()[:3000] if (place / owner / name).is_file() else "no file"
        odd.check(code, said, seed, words, name, held)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, (seed, words, name)  # KiB


def test_commands_work_on_the_files_as_they_were(place):
    for words in [*COMMANDS["run"], *COMMANDS["data"], *COMMANDS["gpt2"], *COMMANDS["qwen3"]]:
        assert run(words) == (0, ""), words
    assert load_tokenizer(place / "gpt2").characters
    assert not load_tokenizer(place / "qwen3").characters
