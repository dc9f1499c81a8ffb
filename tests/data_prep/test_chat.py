"""`data_prep.chat`: whole conversations in blocks, only answers as targets, bad input refused."""

import dataclasses
import json
import runpy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conversations import talk, talks, write
from shapes import CASES
from test_model import randomize
from texts import put, tokens

from data_prep import chat as chat_prep
from nanogpt import GPT
from nanogpt.data.meta import read_meta
from nanogpt.data.tokens import TokenDataset
from nanogpt.hub import weights
from nanogpt.text import chat
from nanogpt.text.directories import open_data
from nanogpt.text.tokenizer import load_tokenizer

SPLITS = ("train", "val")


def prepare(path, out, **options) -> list[str]:
    """Prepares blocks of 128 byte tokens, unless told otherwise; returns what is said."""
    said: list[str] = []
    defaults = {"tokenizer": "bytes", "block_size": 128, "val_fraction": 0.2}
    chat_prep.prepare([str(path)], out, **(defaults | options), say=said.append)
    return said


@pytest.fixture
def packed(tmp_path):
    """A directory of 40 conversations in blocks of 128 byte tokens."""
    prepare(write(tmp_path / "in.jsonl", talks()), tmp_path / "data")
    return tmp_path / "data"


def count(directory) -> list[int]:
    """The conversations in each split, as meta.json says."""
    return [read_meta(directory)["splits"][split]["documents"] for split in SPLITS]


def epoch(directory) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of all blocks for training."""
    data = TokenDataset(directory, "train", 128)
    return data.batch(1, 0, (data.token_count - 1) // 128)


def test_every_conversation_is_whole_and_every_block_begins_with_one(packed):
    tokenizer, found = load_tokenizer(packed), []
    for split in SPLITS:
        ids = tokens(packed, split)
        assert len(ids) % 128 == 1
        starts = ids[:-1].reshape(-1, 128)[:, :5].tolist()
        assert {tokenizer.decode(s) for s in starts} <= {"<|im_start|>user", "<|im_start|>syst"}
        pieces = np.split(ids, np.flatnonzero(ids == 256))
        found += [[i for i in piece.tolist() if i != 256] for piece in pieces]
    assert min(count(packed)) >= 2
    expected = [chat.render(tokenizer, messages).tolist() for messages in talks()]
    assert sorted(ids for ids in found if ids) == sorted(expected)


def test_only_answers_and_their_ends_are_targets(packed):
    tokenizer = load_tokenizer(packed)
    x, y = epoch(packed)
    for inputs, targets in zip(x.tolist(), y.tolist(), strict=True):
        parts = tokenizer.decode(inputs).split("<|im_start|>assistant\n")[1:]
        answers = [part.split("<|im_end|>")[0] for part in parts]
        counted = tokenizer.decode([i for i in targets if i != -1])
        assert counted == "".join(f"{answer}<|im_end|>" for answer in answers)
        assert all(i in (-1, after) for i, after in zip(targets, inputs[1:], strict=False))


def test_the_loss_is_that_of_transformers_with_labels_of_minus_100(packed):
    model = GPT(dataclasses.replace(CASES["qwen3"], vocab_size=259, block_size=128)).eval()
    randomize(model)
    native = weights.to_transformers(model)
    x, y = TokenDataset(packed, "val", 128).batch(1, 0, 4)
    labels, special = torch.full_like(x, -100), load_tokenizer(packed).special
    for row, ids in enumerate(x.tolist()):
        for start in (i for i, token in enumerate(ids) if token == special["<|im_start|>"]):
            name, end = ids.index(ord("\n"), start), ids.index(special["<|im_end|>"], start)
            if bytes(ids[start + 1 : name]) == b"assistant":
                labels[row, name + 1 : end + 1] = x[row, name + 1 : end + 1]
    assert 0 < (labels != -100).sum() < labels.numel() / 2
    with torch.no_grad():
        expected = native(input_ids=x, labels=labels).loss
        assert model(x, y).item() == pytest.approx(expected.item(), abs=1e-6)


def test_bits_per_byte_are_those_of_the_answers(packed):
    _, y = epoch(packed)
    spelled = load_tokenizer(packed).decode(y[y != -1].tolist()).replace("<|im_end|>", "")
    rate = len(spelled.encode()) / (y != -1).sum().item()
    assert TokenDataset(packed, "train", 128).bytes_per_token == rate


def test_sharegpts_form_in_an_array_is_the_same(packed, tmp_path):
    names = {"user": "human", "assistant": "gpt", "system": "developer"}
    found = [[{"from": names[m["role"]], "value": m["content"]} for m in messages] for messages in talks()]
    path = put(tmp_path / "b.json", json.dumps([{"conversations": each} for each in found]))
    prepare(path, tmp_path / "b")
    for split in SPLITS:
        assert tokens(tmp_path / "b", split).tolist() == tokens(packed, split).tolist()


GOOD, MORE = ({"messages": talk(*texts)} for texts in (("who?", "I"), ("when?", "in anger")))
BAD = [
    ({"messages": []}, "in.jsonl, record 2: no answer from the assistant"),
    ({"messages": [{"role": "robot"}]}, "2, message 1: role 'robot' is not one of system"),
    ({"messages": [{"role": "user", "content": 7}]}, "1: its content is '7', not a text"),
    ({"messages": [{"role": "user", "content": "who?", "weight": 0}]}, "its weight is not 1"),
    ({"messages": "hello"}, "record 2: str is not a list of messages"),
    ({"text": "hello"}, "record 2: it has no column 'messages' or 'conversations'"),
    ({"messages": talk("who?", "x" * 90)}, "longer than block_size=64"),
]


@pytest.mark.parametrize("record, message", BAD)
def test_bad_input_is_one_line_and_changes_nothing(tmp_path, monkeypatch, refused, record, message):
    path, out = tmp_path / "in.jsonl", tmp_path / "data"
    put(path, f"{json.dumps(GOOD)}\n{json.dumps(MORE)}\n")
    prepare(path, out, block_size=64)
    before = {path.name: path.read_bytes() for path in out.glob("[!.]*")}
    put(path, "\n".join(map(json.dumps, (GOOD, record, MORE))))
    monkeypatch.setattr(sys, "argv", ["chat", str(path), "--out", str(out), "--block_size", "64"])
    assert message in refused(runpy.run_path, chat_prep.__file__, None, "__main__")
    assert {path.name: path.read_bytes() for path in out.glob("[!.]*")} == before


def test_other_files_and_single_conversations_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a.txt is not a file of records"):
        prepare(put(tmp_path / "a.txt", "hello"), tmp_path / "data")
    with pytest.raises(ValueError, match="no conversation is left for val: give more"):
        prepare(put(tmp_path / "in.jsonl", json.dumps(GOOD)), tmp_path / "data")


def test_a_tokenizer_of_ones_own_without_special_tokens_is_refused(tmp_path):
    own = SimpleNamespace(name="mine", vocab_size=256, eot_id=None)
    with pytest.raises(ValueError, match="'mine' has no method with_special: save it"):
        prepare(write(tmp_path / "in.jsonl", talks()), tmp_path / "data", tokenizer=own)


def test_conversations_that_cannot_be_learnt_from_are_skipped_and_counted(tmp_path):
    tool = [*talk("who?"), {"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]
    bad = [tool, talk("who?", ""), talk("who?")]
    path = write(tmp_path / "in.jsonl", [*talks(), *bad, talk("who?", "m" * 200)])
    said = prepare(path, tmp_path / "data", errors="skip")
    assert sum(count(tmp_path / "data")) == 40 and said == ["4 lines or records were left out: they cannot be used"]


def test_another_block_size_and_mixtures_are_refused(packed, tmp_path):
    with pytest.raises(ValueError, match="fill blocks of 128 tokens: train with --block_size=128, or"):
        TokenDataset(packed, "train", 64)
    prepare(write(tmp_path / "more.jsonl", talks(20)), tmp_path / "other")
    with pytest.raises(ValueError, match="a mixture cannot have conversations"):
        open_data(f"{packed}:0.5,{tmp_path / 'other'}:0.5", "train", 128)
