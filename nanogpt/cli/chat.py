"""`nanogpt chat RUN`: a conversation with a model that was trained on conversations.

A line is a message; Ctrl-D ends. Piped lines are answered one after the other, as one conversation.
"""

import sys
from argparse import ArgumentParser

from nanogpt import chat
from nanogpt.cli.options import (
    TO_UTF8,
    add_device,
    add_run,
    add_sampling,
    load_for_sampling,
    note,
    sampling_options,
    utf8,
)
from nanogpt.run.errors import visible


def add_arguments(command: ArgumentParser) -> None:
    add_run(command)
    add_device(command)
    command.add_argument("--system", type=utf8, metavar="TEXT", help="the system's message, before the first one")
    add_sampling(command, max_new_tokens=200)


def run(args) -> None:
    """Answers line by line; the oldest exchanges are forgotten when the context is full."""
    model, tokenizer = load_for_sampling(args)
    chat.require(tokenizer, args.RUN)
    shown, terminal = str if args.raw else visible, sys.stdin.isatty()
    messages = [{"role": "system", "content": args.system}] if args.system else []
    if terminal:
        note("each line is a message; Ctrl-D ends")
    while (line := read(terminal)) is not None:
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        pieces = []
        try:
            for piece in chat.answer(model, tokenizer, messages, args.max_new_tokens, **sampling_options(args)):
                print(shown(piece), end="", flush=True)
                pieces.append(piece)
        except ValueError as error:  # too long, or a character that the model does not know
            if not terminal:
                raise
            note(str(error))
            messages.pop()
            continue
        print(flush=True)
        messages.append({"role": "assistant", "content": "".join(pieces)})


def read(terminal: bool) -> str | None:
    """The next line; None at the end. Raises ValueError if it is not UTF-8."""
    try:
        line = input("> " if terminal else "").removeprefix("\ufeff")  # byte order mark
        line.encode()  # where the locale is C, other bytes become surrogates
        return line
    except UnicodeError:
        raise ValueError(f"the messages on stdin are not UTF-8 text: {TO_UTF8}") from None
    except EOFError:
        if terminal:
            print()
        return None
