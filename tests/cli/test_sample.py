"""`nanogpt sample`: options reach the sampling, a prompt is read as it was meant, a text ends where it ends."""

import dataclasses
import json
import re

import pytest
from shapes import CASES, make_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers

from data_prep.text import prepare
from nanogpt.cli import main
from nanogpt.data.tokenizer import Tokenizer as HFTokenizer
from nanogpt.ops import cpu


def test_the_prompt_is_continued_by_as_many_tokens_as_the_seed_says(run_dir, command):
    sample = ("sample", run_dir, "--prompt", "FIRST:", "--max_new_tokens", "40", "--seed")
    shown = command(*sample, "1")
    assert shown.startswith("FIRST:") and len(shown) == len("FIRST:") + 40 + 1
    assert command(*sample, "1") == shown != command(*sample, "2")


def test_temperature_0_and_top_k_1_are_greedy_whatever_the_seed(run_dir, command):
    sample = ("sample", run_dir, "--prompt=FIRST:", "--max_new_tokens=30")
    options = ("--temperature=0 --seed=1", "--temperature=0 --seed=2", "--top_k=1 --temperature=2")
    assert len({command(*sample, *each.split()) for each in options}) == 1


def test_json_has_the_samples_that_are_printed(run_dir, tmp_path, command):
    (tmp_path / "prompt.txt").write_text("SECOND:\n")
    sample = ("sample", run_dir, f"--prompt=FILE:{tmp_path}/prompt.txt", "--max_new_tokens=9", "--seed=3")
    (found,) = json.loads(command(*sample, "--json"))["samples"]
    assert command(*sample) == found["text"] + "\n" and (found["tokens"], found["ended"]) == (9, False)
    assert command(*sample, "--num_samples=3").count("SECOND:\n") == 3
    assert len(json.loads(command(*sample, "--num_samples=3", "--json"))["samples"]) == 3


def test_stats_count_the_tokens(run_dir, capsys):
    main(["sample", str(run_dir), "--num_samples", "3", "--max_new_tokens", "7", "--dtype", "bfloat16", "--stats"])
    said = capsys.readouterr().err
    assert "21 tokens in " in said and said.endswith("(cpu, bfloat16)\n")


@pytest.mark.parametrize("how", ["a file", "the command line"])
def test_a_byte_order_mark_is_not_part_of_a_prompt(run_dir, tmp_path, command, how):
    (tmp_path / "prompt").write_bytes(b"\xef\xbb\xbfFIRST")
    prompt = f"FILE:{tmp_path}/prompt" if how == "a file" else "\ufeffFIRST"
    found = json.loads(command("sample", run_dir, "--prompt", prompt, "--max_new_tokens", "1", "--json"))
    assert found["prompt"] == "FIRST"


def test_a_text_ends_at_its_end_unless_that_is_to_be_ignored(make_run, tmp_path, command):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{i:03}a"}}\n' for i in range(200)))
    prepare([str(tmp_path / "a.jsonl")], tmp_path / "letters", "bytes", say=lambda text: None)
    run = make_run(data=str(tmp_path / "letters"), max_iters=60, eval_interval=60, optimizer="muon")
    run.train()
    sample = ("sample", run.out_dir, "--prompt=a", "--temperature=0", "--max_new_tokens=6")
    assert command(*sample) == "a\n"
    found = json.loads(command(*sample, "--num_samples=2", "--json"))["samples"]
    assert found == [{"text": "a", "tokens": 0, "ended": True}] * 2
    (going_on,) = json.loads(command(*sample, "--ignore_eos", "--json"))["samples"]
    assert going_on["text"].startswith("a<|endoftext|>") and (going_on["tokens"], going_on["ended"]) == (6, False)
    assert command(*sample, "--ignore_eos") == going_on["text"] + "\n"


def test_int8_packs_the_weights_in_8_bits(run_dir, monkeypatch, command):
    monkeypatch.setattr(cpu, "X86", True)
    packed = []
    monkeypatch.setattr(cpu, "packed", lambda *args, make=cpu.packed: packed.append(args) or make(*args))
    assert command("sample", run_dir, "--prompt=FIRST:", "--max_new_tokens=5", "--dtype=int8").startswith("FIRST:")
    assert packed and all(args[1] for args in packed)


def words(end: str | None) -> Tokenizer:
    """A tokenizer that drops white space, as WordPiece and most word-level ones do."""
    tokenizer = Tokenizer(models.WordLevel({"the": 0, "king": 1, "[UNK]": 2} | ({end: 3} if end else {}), "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize("tokenizer, first", [(words("</s>"), ""), (words(None), "the")], ids=["end", "words"])
def test_without_a_prompt_a_sample_begins_with_a_known_token(tmp_path, command, tokenizer, first):
    tokenizer = HFTokenizer(tokenizer)
    make_checkpoint(tmp_path / "run", dataclasses.replace(CASES["llama"], vocab_size=tokenizer.vocab_size), tokenizer)
    sample = ("sample", tmp_path / "run", "--max_new_tokens=5", "--temperature=0", "--ignore_eos")
    streamed, shown = command(*sample).removesuffix("\n"), json.loads(command(*sample, "--json"))
    assert shown["prompt"] == first and shown["samples"][0]["text"] == streamed and streamed.startswith(first)
    assert len(re.findall(r"</s>|\w+", streamed)) == 5 + bool(first)
