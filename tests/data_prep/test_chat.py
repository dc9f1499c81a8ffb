"""`data_prep.chat`: whole conversations in blocks, only answers as targets, bad input refused in one line."""

import dataclasses
import json
import runpy
import sys

import numpy as np
import pytest
import torch
from conversations import talk, talks, write
from helpers import randomize
from shapes import CASES
from texts import silent, tokens

from data_prep import chat as chat_prep
from nanogpt import GPT, chat
from nanogpt.data.mixture import open_data
from nanogpt.data.tokenizer import load_tokenizer
from nanogpt.data.tokens import TokenDataset
from nanogpt.hub import weights


@pytest.fixture
def packed(tmp_path):
    """A directory of conversations in blocks of 128 byte tokens."""
    path = write(tmp_path / "in.jsonl", talks())
    chat_prep.prepare([path], tmp_path / "data", "bytes", 128, val_fraction=0.2, say=silent)
    return tmp_path / "data"


def conversations_of(directory, split: str) -> list[str]:
    """The texts between end-of-text tokens."""
    text = load_tokenizer(directory).decode(tokens(directory, split).tolist())
    return [part for part in text.split("<|endoftext|>") if part]


def test_every_conversation_is_whole_and_every_block_begins_with_one(packed):
    tokenizer, found = load_tokenizer(packed), []
    for split in ("train", "val"):
        ids = tokens(packed, split)
        assert len(ids) % 128 == 1
        starts = ids[:-1].reshape(-1, 128)[:, :5].tolist()
        assert all(tokenizer.decode(start) in ("<|im_start|>user", "<|im_start|>syst") for start in starts)
        pieces = np.split(ids, np.flatnonzero(ids == 256))
        found += [[i for i in piece.tolist() if i != 256] for piece in pieces]
    expected = [chat.render(tokenizer, messages).tolist() for messages in talks()]
    assert sorted(ids for ids in found if ids) == sorted(expected)


def test_both_splits_have_different_conversations(packed):
    meta = json.loads((packed / "meta.json").read_text())
    counts = [meta["splits"][split]["documents"] for split in ("train", "val")]
    sides = [conversations_of(packed, split) for split in ("train", "val")]
    assert [len(side) for side in sides] == counts and sum(counts) == 40 and min(counts) >= 2
    assert not set(sides[0]) & set(sides[1])


def test_an_epoch_reads_every_block_once(packed):
    data = TokenDataset(packed, "train", 128)
    n = data.windows_per_epoch
    for epoch in range(2):
        starts = data.starts(7, np.arange(epoch * n, (epoch + 1) * n))
        assert sorted(starts.tolist()) == [128 * i for i in range(n)]


def labels_of(text: str) -> list[str]:
    """The characters of a rendered text that count, by hand: what stands behind the name of the assistant."""
    return [part.split("<|im_end|>")[0] for part in text.split("<|im_start|>assistant\n")[1:]]


def test_only_answers_and_their_ends_are_targets(packed):
    data, tokenizer = TokenDataset(packed, "train", 128), load_tokenizer(packed)
    x, y = data.batch(1, 0, data.windows_per_epoch)
    for inputs, targets in zip(x.tolist(), y.tolist(), strict=True):
        counted = tokenizer.decode([i for i in targets if i != -1])
        assert counted == "".join(f"{answer}<|im_end|>" for answer in labels_of(tokenizer.decode(inputs)))
        assert all(target in (-1, after) for target, after in zip(targets, inputs[1:], strict=False))


def test_the_loss_is_that_of_transformers_with_labels_of_minus_100(packed):
    model = GPT(dataclasses.replace(CASES["qwen3"], vocab_size=259, block_size=128)).eval()
    randomize(model)
    native = weights.to_transformers(model)
    x, y = TokenDataset(packed, "val", 128).batch(1, 0, 4)
    labels, tokenizer = torch.full_like(x, -100), load_tokenizer(packed)
    for row, ids in enumerate(x.tolist()):
        for start in (i for i, token in enumerate(ids) if token == tokenizer.special["<|im_start|>"]):
            name, end = (
                ids.index(ord("\n"), start),
                ids.index(tokenizer.special["<|im_end|>"], start),
            )
            if bytes(ids[start + 1 : name]) == b"assistant":
                labels[row, name + 1 : end + 1] = x[row, name + 1 : end + 1]
    assert 0 < (labels != -100).sum() < labels.numel() / 2
    with torch.no_grad():
        expected = native(input_ids=x, labels=labels).loss
        assert model(x, y).item() == pytest.approx(expected.item(), abs=1e-6)


def test_bits_per_byte_are_those_of_the_answers(packed):
    data = TokenDataset(packed, "train", 128)
    _, y = data.batch(1, 0, data.windows_per_epoch)
    spelled = load_tokenizer(packed).decode(y[y != -1].tolist()).replace("<|im_end|>", "")
    assert data.bytes_per_token == len(spelled.encode()) / (y != -1).sum().item()


def test_sharegpt_is_the_same_as_messages(packed, tmp_path):
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    theirs = [[{"from": names[m["role"]], "value": m["content"]} for m in messages] for messages in talks()]
    (tmp_path / "in.json").write_text(json.dumps([{"conversations": each} for each in theirs]))
    chat_prep.prepare([str(tmp_path / "in.json")], tmp_path / "b", "bytes", 128, val_fraction=0.2, say=silent)
    assert [tokens(tmp_path / "b", s).tolist() for s in ("train", "val")] == [
        tokens(packed, s).tolist() for s in ("train", "val")
    ]


def test_by_characters_blocks_are_filled_with_ends_of_messages(tmp_path):
    meta = chat_prep.prepare([write(tmp_path / "in.jsonl", talks())], tmp_path / "data", "char", 128, say=silent)
    ids, end = tokens(tmp_path / "data", "train"), meta["chat"]["end"]
    assert end == meta["vocab_size"] - 1 and ids[-1] == end
    _, y = TokenDataset(tmp_path / "data", "train", 128).batch(0, 0, 4)
    assert ((y == end).sum(1) < 10).all()  # those that fill are no targets


def run(capsys, *argv: str) -> str:
    """What `python -m data_prep.chat` says on stderr; it must end with exit code 2."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit:
        patch.setattr(sys, "argv", ["chat", *argv])
        runpy.run_path(chat_prep.__file__, run_name="__main__")
    assert exit.value.code == 2
    return capsys.readouterr().err


GOOD = json.dumps({"messages": talk("who?", "the king")})
BAD = {
    '{"messages": []}': "in.jsonl, conversation 2: it is empty",
    '{"messages": null}': "in.jsonl, conversation 2: it is empty",
    json.dumps({"messages": talk("who?")}): "conversation 2: no answer of the assistant",
    '{"messages": [{"role": "robot", "content": "x"}]}': "conversation 2, message 1: role 'robot' is not one of system",
    '{"messages": [{"role": ["user"], "content": "x"}]}': "role \"['user']\" is not one of system, user, assistant",
    '{"messages": [7]}': "message 1: role 'None' is not one of",
    '{"messages": [{"role": "user", "content": 7}]}': "message 1: its content is '7', not a text",
    '{"messages": [{"role": "user", "content": " "}]}': "message 1: its content is ' ', not a text",
    '{"messages": "hello"}': "conversation 2: str is not a list of messages",
    '{"text": "hello"}': "record 1: it has no column 'messages' or 'conversations'",
    "hello": "in.jsonl, line 2: it is not JSON",
    json.dumps({"messages": talk("who?", "x" * 90)}): "tokens, more than --block_size=64: give a larger one, or --skip",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_line_and_changes_nothing(tmp_path, capsys, line):
    out, more = tmp_path / "data", json.dumps({"messages": talk("when?", "in anger")})
    options = ("--out", str(out), "--tokenizer", "bytes", "--block_size", "64")
    (tmp_path / "in.jsonl").write_text(f"{GOOD}\n{more}\n")
    chat_prep.prepare([str(tmp_path / "in.jsonl")], out, "bytes", 64, say=silent)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.name[0] != "."}
    (tmp_path / "in.jsonl").write_text(f"{GOOD}\n{line}\n{more}\n")
    said = run(capsys, str(tmp_path / "in.jsonl"), *options)
    assert said.startswith("error: ") and said.count("\n") == 1 and BAD[line] in said
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name[0] != "."} == before


def test_other_files_and_single_conversations_are_refused(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("hello")
    assert "a.txt is not JSON by its name" in run(capsys, str(tmp_path / "a.txt"), "--out", str(tmp_path / "data"))
    (tmp_path / "in.jsonl").write_text(f"{GOOD}\n")
    said = run(capsys, str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "data"))
    assert "conversation 1 is the only one: two that differ are needed" in said


def test_long_conversations_can_be_left_out(tmp_path):
    path = write(tmp_path / "in.jsonl", [*talks(), talk("who?", "m" * 200)])
    said = []
    meta = chat_prep.prepare([path], tmp_path / "data", "bytes", 128, 0.2, skip_long=True, say=said.append)
    assert sum(counts["documents"] for counts in meta["splits"].values()) == 40
    assert said[0] == "1 conversations of more than 128 tokens were left out"


def test_another_block_size_and_mixtures_are_refused(packed, tmp_path):
    with pytest.raises(ValueError, match="fill blocks of 128 tokens: give --block_size=128, or prepare them with"):
        TokenDataset(packed, "train", 64)
    other = tmp_path / "other"
    chat_prep.prepare([write(tmp_path / "more.jsonl", talks(20))], other, "bytes", 128, say=silent)
    with pytest.raises(ValueError, match="cannot be a part of a mixture"):
        open_data(f"{packed}:0.5,{other}:0.5", "train", 128)


def prepared_targets(path, out, **options) -> str:
    """What the targets of the training split spell."""
    chat_prep.prepare([str(path)], out, "bytes", 128, 0.2, say=silent, **options)
    data = TokenDataset(out, "train", 128)
    return load_tokenizer(out).decode(
        [i for i in data.batch(1, 0, data.windows_per_epoch)[1].flatten().tolist() if i >= 0]
    )


def test_an_answer_of_weight_0_is_context_and_no_target(tmp_path):
    found = [[*talk(f"{i}?", "BAD"), *talk("again?", "good")] for i in range(30)]
    for messages in found:
        messages[1]["weight"] = 0
    targets = prepared_targets(write(tmp_path / "in.jsonl", found), tmp_path / "data")
    assert "good" in targets and "BAD" not in targets
    assert "BAD" in conversations_of(tmp_path / "data", "train")[0]


@pytest.mark.parametrize("form", ["list", "null", "parts", "roles"])
def test_other_forms_of_a_conversation_are_the_same(packed, tmp_path, form):
    names = {"system": "developer", "user": "User", "assistant": "Assistant"}
    parts = lambda m: m | {"content": [{"type": "text", "text": m["content"]}]}  # noqa: E731
    forms = {
        "list": lambda messages: messages,
        "null": lambda messages: {"messages": None, "conversations": messages},
        "parts": lambda messages: {"messages": [parts(m) for m in messages]},
        "roles": lambda messages: {"messages": [m | {"role": names[m["role"]]} for m in messages]},
    }
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(forms[form](messages)) + "\n" for messages in talks()))
    chat_prep.prepare([str(tmp_path / "b.jsonl")], tmp_path / "b", "bytes", 128, val_fraction=0.2, say=silent)
    assert tokens(tmp_path / "b", "train").tolist() == tokens(packed, "train").tolist()


def test_conversations_that_cannot_be_learnt_from_are_skipped_and_counted(tmp_path):
    tool = [*talk("who?"), {"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]
    path, said = write(tmp_path / "in.jsonl", [*talks(), tool, talk("who?", ""), talk("who?")]), []
    meta = chat_prep.prepare([path], tmp_path / "data", "bytes", 128, 0.2, errors="skip", say=said.append)
    assert sum(counts["documents"] for counts in meta["splits"].values()) == 40 and said[0].startswith("3 ")


def test_an_interruption_leaves_no_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_prep.Blocks, "fill", lambda *args, **kw: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        chat_prep.prepare([write(tmp_path / "in.jsonl", talks())], tmp_path / "data", "bytes", 128, say=silent)
    assert [path.name for path in (tmp_path / "data").iterdir()] == []
