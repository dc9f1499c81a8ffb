"""Turns conversations into tokens in blocks of the model's context, for recipes/chat.py.

    python -m data_prep.chat chats.jsonl --tokenizer out/mine/best --out data/mine_chat
    python -m data_prep.chat hf:HuggingFaceTB/smoltalk:all --tokenizer gpt2 --errors skip --out talk

A conversation is {"messages": [{"role": "user", "content": "Hi"}, …]}, as in `datasets`, or
ShareGPT's {"conversations": [{"from": "human", "value": "Hi"}, …]}, in any of the record formats
that `data_prep.documents` lists. The roles are system (or developer), user and assistant.
--errors skip leaves out conversations with other roles (such as tool calls) or longer than a block,
and counts them. No conversation is ever cut. A tokenizer that lacks <|im_start|> and <|im_end|>
gets them. To fine-tune a model, name its tokenizer.

A block begins with a conversation and has as many whole ones as fit, each followed by an
end-of-text token (unless it is as long as the block). The rest is filled with these, or with
<|im_end|> if there are none. The loss counts only the assistant's tokens.
`data_prep.split` decides which conversations are for validation.
"""

import json
from pathlib import Path

import numpy as np

from data_prep import text
from data_prep.documents import SURROGATE, Corpus, is_records
from data_prep.split import Split
from data_prep.writer import finish, token_files, writing
from nanogpt.data.tokens import answers
from nanogpt.run.errors import user_errors
from nanogpt.run.parser import within
from nanogpt.text import chat
from nanogpt.text.tokenizer import END, START, get_tokenizer

OTHER_NAMES = {"developer": "system", "human": "user"}  # of roles
OTHER_NAMES |= dict.fromkeys(("gpt", "chatgpt", "model"), "assistant")


def open_conversations(inputs: list[str], errors: str = "strict", say=print) -> Corpus:
    """A corpus whose documents are conversations, each the JSON of its list of messages."""
    corpus = Corpus(inputs, ("messages", "conversations"), errors, convert=to_json, say=say)
    if wrong := next((name for name in corpus.files if not is_records(name)), None):
        raise ValueError(f"{wrong} is not a file of records: name a .jsonl, .json or .parquet file")
    return corpus


def to_json(value: object, where: str) -> str:
    """The JSON of a conversation's messages in our form, or a ValueError about what is wrong."""
    if not isinstance(value, list | None):
        raise ValueError(f"{where}: {type(value).__name__} is not a list of messages")
    messages = [
        read_message(message if isinstance(message, dict) else {}, f"{where}, message {number}")
        for number, message in enumerate(value or [], 1)
    ]
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError(f"{where}: no answer from the assistant to learn from")
    return json.dumps(messages)


def read_message(message: dict, where: str) -> dict:
    """A message as {"role", "content"}."""
    name = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    role = str(name).strip().lower()
    role = OTHER_NAMES.get(role, role)
    if role not in chat.ROLES:
        roles = ", ".join(chat.ROLES)
        raise ValueError(f"{where}: role {str(name)[:40]!r} is not one of {roles}")
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"{where}: its content is {str(content)[:40]!r}, not a text")
    if message.get("weight") not in (None, 1):
        raise ValueError(f"{where}: its weight is not 1, but all answers count the same")
    return {"role": role, "content": SURROGATE.sub("\ufffd", content)}


def prepare(
    inputs: list[str],
    out: Path | str,
    tokenizer="bytes",
    block_size: int = 256,
    val_fraction: float | None = None,
    errors: str = "strict",
    say=print,
) -> dict:
    """Prepares the data directory `out`; returns its metadata. Raises ValueError or OSError."""
    corpus = open_conversations(inputs, errors, say)
    if isinstance(tokenizer, str):
        tokenizer = get_tokenizer(tokenizer)
    if not hasattr(tokenizer, "with_special"):
        way_out = "save it in a directory and name that"
        raise ValueError(f"tokenizer {tokenizer.name!r} has no method with_special: {way_out}")
    tokenizer = tokenizer.with_special([START, END])
    begin, end = chat.answer_begin(tokenizer), tokenizer.special[END]
    eot = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
    filler = (eot or [end])[0]
    split, out = Split(corpus, val_fraction), Path(out)
    with writing(out, tokenizer) as new:
        files = token_files(new, tokenizer)
        for file in files.values():
            file.counts["answers"] = {"tokens": 0, "bytes": 0}
        for conversation in corpus.documents():
            messages, boundary = json.loads(conversation), split.boundary(conversation)
            ids = chat.render(tokenizer, messages)
            if len(ids) > block_size:
                opening = messages[0]["content"][:40]
                why = f"a conversation of {len(ids):,} tokens is longer than {block_size=}"
                corpus.reject(f"{why}: {opening!r}; give a larger block_size")
                continue
            texts = [m["content"].strip() for m in messages if m["role"] == "assistant"]
            counted = answers(ids[None], begin, end)[0]
            if (ids[counted] == end).sum() != len(texts):
                why = f"answers cannot be found in the tokens of {tokenizer.name}"
                raise ValueError(f"{why}: choose another tokenizer")
            file = files["train" if boundary else "val"]
            ids = np.array([*ids, *eot][:block_size])
            room = -file.counts["tokens"] % block_size
            if len(ids) > room:  # it begins the next block
                ids = np.pad(ids, (room, 0), constant_values=filler)
            file.append(ids, sum(len(m["content"].strip().encode()) for m in messages), 1)
            file.counts["answers"]["tokens"] += int(counted.sum())
            file.counts["answers"]["bytes"] += len("".join(texts).encode())
        for name, file in files.items():
            if not file.counts["documents"]:
                raise ValueError(f"no conversation is left for {name}: give more, or longer blocks")
            rest = -file.counts["tokens"] % block_size + 1  # the last target of the last block
            file.append(np.full(rest, filler), 0, 0)
        about = {"block": block_size, "answer": begin, "end": end}
        return finish(out, files, tokenizer, corpus, chat=about)


if __name__ == "__main__":
    flags = ("INPUT", "--out", "--tokenizer", "--val_fraction", "--errors")
    parser = text.make_parser(__doc__, *flags)
    parser.set_defaults(tokenizer="bytes")
    kind = within(int, 16, 2**24)
    parser.add_argument("--block_size", type=kind, default=256, help="tokens per block")
    with user_errors("stopped: nothing was written"):
        options = vars(parser.parse_args())
        text.report(options["out"], prepare(options.pop("INPUT"), **options))
