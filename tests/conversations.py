"""Made-up conversations, for the tests of everything that reads them."""

import json
from pathlib import Path

ANSWERS = {"who?": "the king", "what news?": "from the court", "when?": "in anger", "did he speak?": "to me"}


def talk(*texts: str, system: str | None = None) -> list[dict]:
    """Messages of user and assistant in turns."""
    first = [{"role": "system", "content": system}] if system else []
    return first + [
        {"role": role, "content": text} for role, text in zip(("user", "assistant") * len(texts), texts, strict=False)
    ]


def talks(count: int = 40) -> list[list[dict]]:
    """Conversations that differ, of one or two questions."""
    pairs = list(ANSWERS.items())
    found = []
    for i in range(count):
        texts = [text for j in range(1 + i % 2) for text in pairs[(i // 2 + j) % 4]]
        texts[0] = f"{i} {texts[0]}"
        found.append(talk(*texts, system="o king" if i % 3 else None))
    return found


def write(path: Path, conversations: list) -> str:
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return str(path)
