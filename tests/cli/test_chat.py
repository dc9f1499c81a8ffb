"""`nanogpt chat`, with messages from a pipe: each is answered, knowing what was said before."""

import io
import sys

import pytest
from conversations import talk

from nanogpt.cli import main
from nanogpt.hub.load import load
from nanogpt.text import chat


@pytest.fixture
def say(monkeypatch, command, chat_dir):
    """What the command answers to some lines."""

    def run(lines: str, *options: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return command("chat", chat_dir, "--device", "cpu", *options)

    return run


@pytest.mark.parametrize("lines, answers", [("101?\n\n139?\n", 2), ("101?\n" * 8, 8)], ids=["blank", "long"])
def test_every_line_is_answered_within_the_context(say, lines, answers):
    said = say(lines, "--temperature", "0").splitlines()
    assert len(said) == answers and said[0] == "yes"


def test_answers_know_what_was_said_before(say, chat_dir):
    model, tokenizer, _ = load(chat_dir)
    first = "".join(chat.answer(model, tokenizer, talk("1?", system="yes"), 9, temperature=2.0, seed=5))
    messages = talk("1?", first, "2?", system="yes")
    second = "".join(chat.answer(model, tokenizer, messages, 9, temperature=2.0, seed=5))
    options = ("--temperature", "2", "--top_k", "0", "--seed", "5", "--max_new_tokens", "9")
    assert say("1?\n2?\n", "--system", "yes", *options) == f"{first}\n{second}\n"


def test_a_message_that_cannot_be_read_is_a_note(monkeypatch, chat_dir, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"é\n{'1' * 70}\n101?\n"))
    main(["chat", str(chat_dir), "--temperature", "0"])
    shown = capsys.readouterr()
    assert shown.out == "yes\n" and "'é'" in shown.err and "too long" in shown.err
