"""`nanogpt chat`, with messages from a pipe."""

import io
import sys

import pytest
from conversations import talk

from nanogpt import chat
from nanogpt.cli import main
from nanogpt.cli.use import read_line
from nanogpt.hub.load import load


@pytest.fixture
def say(monkeypatch, capsys, chat_run):
    """What the command answers to some lines."""
    capsys.readouterr()

    def run(lines: str, *options: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        main(["chat", str(chat_run), "--device", "cpu", *options])
        return capsys.readouterr().out

    return run


def test_every_line_is_answered_until_the_input_ends(say):
    assert say("101?\n\n139?\n", "--temperature", "0") == "yes\nyes\n"


def test_answers_know_what_was_said_before(say, chat_run):
    model, tokenizer, _ = load(chat_run)
    first = "".join(chat.answer(model, tokenizer, talk("1?", system="yes"), 9, temperature=2.0, seed=5))
    messages = talk("1?", first, "2?", system="yes")
    second = "".join(chat.answer(model, tokenizer, messages, 9, temperature=2.0, seed=5))
    options = ("--temperature", "2", "--top_k", "0", "--seed", "5", "--max_new_tokens", "9", "--raw")
    assert say("1?\n2?\n", "--system", "yes", *options) == f"{first}\n{second}\n"


def test_a_long_conversation_goes_on_within_the_context(say):
    assert say("101?\n" * 8, "--temperature", "0").count("\n") == 8


def test_a_message_that_is_too_long_or_has_unknown_characters_is_one_line(say, capsys):
    for line, complaint in (("1" * 70, "the message is too long"), ("é", "character 'é'")):
        with pytest.raises(SystemExit) as exit:
            say(line + "\n")
        error = capsys.readouterr().err
        assert exit.value.code == 2 and error.startswith("error: ") and complaint in error and error.count("\n") == 1


def test_on_a_terminal_such_a_message_is_a_note_and_the_conversation_goes_on(say, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(io, "StringIO", Terminal)
    lines = iter(["é", "101?", None])
    monkeypatch.setattr("nanogpt.cli.use.read_line", lambda terminal: next(lines))
    assert say("", "--temperature", "0") == "yes\n"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # the latter in the locale C
def test_a_message_that_is_not_utf_8_is_refused(monkeypatch, errors):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf1?\ncaf\xe9\n"), "utf-8", errors))
    with pytest.raises(ValueError, match="not UTF-8"):
        while read_line(terminal=False) is not None:
            pass


def test_a_byte_order_mark_is_not_part_of_a_message(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf1?\n"), "utf-8"))
    assert read_line(terminal=False) == "1?"


def test_a_model_without_conversations_is_refused(run_dir, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["chat", str(run_dir)])
    assert exit.value.code == 2
    assert "was not trained on conversations: its tokenizer has no <|im_start|>" in capsys.readouterr().err
