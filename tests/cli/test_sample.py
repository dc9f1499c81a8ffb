import dataclasses
import json
import re
from functools import partial

import pytest
from shapes import CASES, make_checkpoint
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from nanogpt.cli import main
from nanogpt.data.tokenizer import HFTokenizer
from nanogpt.ops import cpu


@pytest.mark.filterwarnings("error:Dynamo detected")  # a cache, about which it warns
def test_packed_weights_can_be_compiled_too(run_dir, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "pack", partial(cpu.pack, smallest=0))
    texts = []
    for flags in ([], ["--compile"]):
        main(["sample", str(run_dir), "--prompt", "FIRST:", "--max_new_tokens", "5", "--temperature", "0", *flags])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_weights_of_8_bits_are_sampled_from(run_dir, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "X86", True)
    packed = []
    monkeypatch.setattr(cpu, "packed", lambda *args, make=cpu.packed: packed.append(args) or make(*args))
    main(["sample", str(run_dir), "--prompt", "FIRST:", "--max_new_tokens", "5", "--dtype=int8", "--stats"])
    captured = capsys.readouterr()
    assert captured.out.startswith("FIRST:") and captured.err.endswith("(cpu, int8)\n")
    assert packed and all(args[1] for args in packed)


def words(end: str | None) -> Tokenizer:
    """A tokenizer that drops white space, as WordPiece and most word-level ones do."""
    tokenizer = Tokenizer(models.WordLevel({"the": 0, "king": 1, "[UNK]": 2} | ({end: 3} if end else {}), "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def codons() -> Tokenizer:
    """Without a token for unknown text."""
    tokenizer = Tokenizer(models.WordLevel({"AAA": 0, "AAC": 1, "CAA": 2}))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split(Regex("..."), "isolated"), decoders.Fuse()
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer, first", [(words("</s>"), ""), (words(None), "the"), (codons(), "AAA")], ids=["end", "words", "codons"]
)
def test_without_a_prompt_a_sample_begins_with_a_token_that_there_is(tmp_path, capsys, tokenizer, first):
    tokenizer = HFTokenizer(tokenizer)
    make_checkpoint(tmp_path / "run", dataclasses.replace(CASES["llama"], vocab_size=tokenizer.vocab_size), tokenizer)
    sample = ["sample", str(tmp_path / "run"), "--max_new_tokens", "5", "--temperature", "0", "--ignore_eos"]
    main(sample)
    streamed = capsys.readouterr().out.removesuffix("\n")
    main([*sample, "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["prompt"] == first and shown["samples"][0]["text"] == streamed and streamed.startswith(first)
    assert len(re.findall(r"AA.|CAA|</s>|\[?\w+\]?", streamed)) == 5 + bool(first)


@pytest.mark.parametrize(
    "option, name", [("caf\udce9", "udce9"), ("FILE:{}/latin", "latin"), ("FILE:{}/utf16", "utf16")]
)
def test_a_prompt_that_is_not_utf_8_is_one_line_that_names_it(run_dir, tmp_path, capsys, option, name):
    (tmp_path / "latin").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "utf16").write_bytes("FIRST".encode("utf-16"))
    with pytest.raises(SystemExit) as end:
        main(["sample", str(run_dir), "--prompt", option.format(tmp_path)])
    said = capsys.readouterr().err
    assert end.value.code == 2 and name in said and "iconv" in said and said.count("\n") == 1


def test_a_byte_order_mark_is_not_part_of_a_prompt(run_dir, tmp_path, capsys):
    (tmp_path / "prompt").write_bytes(b"\xef\xbb\xbfFIRST")
    for prompt in (f"FILE:{tmp_path}/prompt", "\ufeffFIRST"):
        main(["sample", str(run_dir), "--prompt", prompt, "--max_new_tokens", "1", "--json"])
        assert json.loads(capsys.readouterr().out)["prompt"] == "FIRST"
