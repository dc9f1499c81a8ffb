"""Made-up conversations about sums, spelling and dates: thousands in seconds, without a network.

    python -m data_prep.chat_tasks                        # into data/chat_tasks

Each question occurs once, so the model never trains on a question for validation. A conversation
has one or two of them. A third of the conversations begin with a system message.
"""

import json
import random
import string
from datetime import date, timedelta
from pathlib import Path

from data_prep import chat as chat_prep
from data_prep import text
from data_prep.split import Split
from data_prep.writer import write_source
from nanogpt.run.errors import user_errors

CONVERSATIONS = "conversations.jsonl"
BLOCK = 160
DAY = "%-d %b %Y"  # such as 5 Mar 2004


def sums(rng: random.Random) -> tuple[str, str]:
    """A sum: question and answer."""
    a, b = rng.randrange(100), rng.randrange(100)
    return f"What is {a} + {b}?", str(a + b)


def spelling(rng: random.Random) -> tuple[str, str]:
    """A made-up word to spell: question and answer."""
    letters = ("aeiou", string.ascii_lowercase)
    word = "".join(rng.choice(letters[i % 2]) for i in range(rng.randint(3, 7)))
    return f"Spell {word}.", "-".join(word)


def dates(rng: random.Random) -> tuple[str, str]:
    """The day after a date: question and answer."""
    day = date(2000, 1, 1) + timedelta(rng.randrange(30 * 365))
    return f"What is the day after {day:{DAY}}?", f"{day + timedelta(1):{DAY}}"


def conversations(questions: int = 8000, seed: int = 1) -> list[list[dict]]:
    """Conversations with different questions; the same for the same seed."""
    rng, asked = random.Random(seed), {}
    while len(asked) < questions:
        question, answer = (sums, sums, spelling, dates)[len(asked) % 4](rng)
        asked.setdefault(question, answer)
    rest, found = list(asked.items()), []
    rng.shuffle(rest)
    while rest:
        messages = [{"role": "system", "content": "Be brief."}] if rng.random() < 1 / 3 else []
        for question, answer in (rest.pop() for _ in range(min(len(rest), rng.randint(1, 2)))):
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        found.append(messages)
    return found


def prepare(out: Path | str = "data/chat_tasks", say=print) -> dict:
    """Prepares the data directory `out` and returns its metadata."""
    lines = [json.dumps({"messages": messages}) for messages in conversations()]
    path = write_source(Path(out), CONVERSATIONS, lines)
    return chat_prep.prepare([path], out, "bytes", BLOCK, say=say)


def held_out(data: Path | str) -> list[list[dict]]:
    """The conversations for validation."""
    corpus = chat_prep.open_conversations([str(Path(data, CONVERSATIONS))])
    split = Split(corpus)
    return [json.loads(text) for text in corpus.documents() if not split.boundary(text)]


if __name__ == "__main__":
    parser = text.make_parser(__doc__)
    parser.add_argument("--out", default="data/chat_tasks", metavar="DIR")
    with user_errors("stopped"):
        out = parser.parse_args().out
        text.report(out, prepare(out))
