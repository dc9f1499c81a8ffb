"""`nanogpt sample`: options reach the sampling, a prompt is read as it was meant, a text ends where it ends."""

import json
from argparse import Namespace

import pytest
import torch

from data_prep.text import prepare
from nanogpt.cli.commands import load_for_sampling
from nanogpt.ops import decode
from nanogpt.run.parser import OneLineParser


def test_the_prompt_is_continued_by_as_many_tokens_as_the_seed_says(run_dir, command):
    sample = ("sample", run_dir, "--prompt", "FIRST:", "--max_new_tokens", "40", "--seed")
    shown = command(*sample, "1")
    assert shown.startswith("FIRST:") and len(shown) == len("FIRST:") + 40 + 1
    assert command(*sample, "1") == shown != command(*sample, "2")


def test_json_has_the_samples_that_are_printed(run_dir, tmp_path, command):
    (tmp_path / "prompt.txt").write_text("SECOND:\n")
    sample = ("sample", run_dir, f"--prompt=FILE:{tmp_path}/prompt.txt", "--max_new_tokens=9", "--seed=3")
    (found,) = json.loads(command(*sample, "--json"))["samples"]
    assert command(*sample) == found["text"] + "\n" and (found["tokens"], found["ended"]) == (9, False)
    assert command(*sample, "--num_samples=3").count("SECOND:\n") == 3
    assert len(json.loads(command(*sample, "--num_samples=3", "--json"))["samples"]) == 3


def test_a_prompt_in_a_file_of_windows_is_read(run_dir, tmp_path, command):
    (tmp_path / "prompt.txt").write_bytes("\ufeffSECOND:\r\n".encode())
    assert command("sample", run_dir, f"--prompt=FILE:{tmp_path}/prompt.txt").startswith("SECOND:\n")


def test_a_text_ends_at_its_end(make_run, tmp_path, command):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{i:03}a"}}\n' for i in range(200)))
    prepare([str(tmp_path / "a.jsonl")], tmp_path / "letters", "bytes", say=lambda text: None)
    run = make_run(data=str(tmp_path / "letters"), max_iters=60, eval_interval=60, optimizer="muon")
    run.train()
    sample = ("sample", run.out_dir, "--prompt=a", "--temperature=0", "--max_new_tokens=6")
    assert command(*sample) == "a\n"
    found = json.loads(command(*sample, "--num_samples=2", "--json"))["samples"]
    assert found == [{"text": "a", "tokens": 0, "ended": True}] * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_weights_have_the_dtype_that_was_asked_for(trained_dir, dtype, monkeypatch):
    monkeypatch.setattr(decode, "has_compiler", lambda: True)  # nothing is compiled before the first token
    options = {"device": "cpu", "checkpoint": None, "trust_recipe": None, "compile": "auto"}
    model, _ = load_for_sampling(Namespace(RUN=str(trained_dir), dtype=dtype, **options), 10)
    head = model.head.weight
    if dtype == "int8":  # matrices only; all else stays in fp32
        assert (head.numbers.nbytes, model.wte.weight.dtype) == (model.wte.weight.numel(), torch.float32)
    else:
        assert head.dtype == getattr(torch, dtype)


def test_a_damaged_checkpoint_is_noted_and_another_taken(run_dir, cli):
    best = (run_dir / "best").resolve()
    (best / "model.safetensors").write_bytes(b"damaged")
    done = cli("sample", run_dir, "--prompt", "FIRST:", "--max_new_tokens", "3")
    assert done.stdout.startswith("FIRST:") and best.name in done.stderr and "model.safetensors" in done.stderr


def test_a_value_that_begins_with_dashes_is_not_taken_for_a_flag():
    parser = OneLineParser()
    parser.add_argument("--prompt")
    parser.add_argument("--top_k", type=int)
    args = parser.parse_args(["--prompt", "--- a well-known title", "--top-k", "3"])
    assert (args.prompt, args.top_k) == ("--- a well-known title", 3)
