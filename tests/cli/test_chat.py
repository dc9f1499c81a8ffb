"""`nanogpt chat`, with messages from a pipe: each is answered, knowing what was said before."""

import io
import sys

import pytest
from conversations import talk

from nanogpt import chat
from nanogpt.cli import main
from nanogpt.cli.use import read_line
from nanogpt.hub.load import load


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
    options = ("--temperature", "2", "--top_k", "0", "--seed", "5", "--max_new_tokens", "9", "--raw")
    assert say("1?\n2?\n", "--system", "yes", *options) == f"{first}\n{second}\n"


@pytest.mark.parametrize("message, word", [("1" * 70, "too long"), ("é", "'é'")])
def test_a_message_that_cannot_be_read_ends_a_pipe(monkeypatch, chat_dir, refused, message, word):
    monkeypatch.setattr(sys, "stdin", io.StringIO(message + "\n"))
    assert word in refused(main, ["chat", str(chat_dir)])


def test_a_message_that_cannot_be_read_is_a_note_on_a_terminal(say, monkeypatch):
    lines = iter(["é", "101?", None])
    monkeypatch.setattr(io, "StringIO", type("Terminal", (io.StringIO,), {"isatty": lambda self: True}))
    monkeypatch.setattr("nanogpt.cli.use.read_line", lambda terminal: next(lines))
    assert say("", "--temperature", "0") == "yes\n"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # the latter in the locale C
def test_messages_are_utf_8_with_or_without_a_byte_order_mark(monkeypatch, errors):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf1?\ncaf\xe9\n"), "utf-8", errors))
    with pytest.raises(ValueError, match="UTF-8"):
        while (said := read_line(terminal=False)) is not None:
            assert said == "1?"
