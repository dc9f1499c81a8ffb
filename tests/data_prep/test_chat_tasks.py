"""Made-up conversations: right answers, and validation questions that are in no other one."""

import re
from datetime import datetime, timedelta

from texts import silent

from data_prep import chat_tasks


def questions(conversations: list[list[dict]]) -> list[str]:
    return [message["content"] for messages in conversations for message in messages if message["role"] == "user"]


def right(question: str) -> str:
    """The answer to a question, found in another way."""
    if found := re.fullmatch(r"What is (\d+) \+ (\d+)\?", question):
        return f"{int(found[1]) + int(found[2])}"
    if found := re.fullmatch(r"Spell (\w+)\.", question):
        return re.sub(r"(?<=\w)(?=\w)", "-", found[1])
    day = datetime.strptime(re.fullmatch(r"What is the day after (.*)\?", question)[1], "%d %b %Y") + timedelta(days=1)
    return day.strftime("%d %b %Y").lstrip("0")


def test_questions_differ_and_answers_are_right():
    found = chat_tasks.conversations(400)
    assert found == chat_tasks.conversations(400) != chat_tasks.conversations(400, seed=2)
    asked = questions(found)
    assert len(set(asked)) == len(asked) == 400
    answers = [m["content"] for messages in found for m in messages if m["role"] == "assistant"]
    assert [right(question) for question in asked] == answers


def test_held_out_questions_are_in_no_conversation_for_training(tmp_path, monkeypatch):
    few = chat_tasks.conversations(300)
    monkeypatch.setattr(chat_tasks, "conversations", lambda: few)
    meta = chat_tasks.prepare(tmp_path, say=silent)
    held = chat_tasks.held_out(tmp_path)
    assert len(held) == meta["splits"]["val"]["documents"] >= 2
    assert not set(questions(held)) & set(questions([messages for messages in few if messages not in held]))
