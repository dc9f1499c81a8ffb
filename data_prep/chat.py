"""Turns conversations into tokens in blocks of the model's context, for recipes/chat.py.

    python -m data_prep.chat chats.jsonl --tokenizer out/mine/best --block_size 256 --out data/mine_chat
    python -m data_prep.chat hf:HuggingFaceTB/smoltalk:all --tokenizer gpt2 --skip_long --out data/talk

A conversation is {"messages": [{"role": "user", "content": "Hi"}, …]}, as in `datasets`, or ShareGPT's
{"conversations": [{"from": "human", "value": "Hi"}, …]}, in any of the formats of records that `data_prep.documents`
lists. The roles are system, user and assistant. The tokenizer gets <|im_start|> and <|im_end|> where it lacks them; to
fine-tune a model, name the model's.

A block begins with a conversation and has as many whole ones as fit; the rest is filled with end-of-text tokens, or
with <|im_end|> where there are none. An end-of-text token follows a conversation if it still fits. A conversation that
is longer than a block is an error, or is left out with --skip_long; none is ever cut. The loss counts the assistant's
tokens alone. `data_prep.split` decides which conversations are for validation.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep import text
from data_prep.documents import HALVES, Corpus
from data_prep.inputs import is_records
from data_prep.split import Split
from data_prep.writer import TokenFile, check_fraction, finish, token_dtype
from nanogpt import chat
from nanogpt.data.tokenizer import END, CharTokenizer, get_tokenizer
from nanogpt.data.tokens import answers
from nanogpt.run.flags import OneLineParser, within
from nanogpt.run.lock import Lock

SHAREGPT = {"human": "user", "gpt": "assistant"}  # its other names are ours


class Conversations(Corpus):
    """A corpus whose documents are conversations, each the JSON of its list of messages."""

    kind, kind_name = list, "a list of messages"

    def __init__(self, inputs: list[str]):
        super().__init__(inputs, "messages")
        if wrong := next((name for name in self.inputs if not is_records(name)), None):
            raise ValueError(f"{wrong} is not JSON by its name: conversations are read from .jsonl, .json, .parquet, …")

    def check_column(self, name: str, columns) -> None:
        found = [column for column in ("messages", "conversations") if column in columns]
        if not found:
            raise ValueError(f'{name} has neither "messages" nor "conversations" in it: it holds no conversations')
        self.text_column = found[0]

    def records(self, name: str, first: int) -> Iterator[tuple[int, str]]:
        for number, (at, messages) in enumerate(super().records(name, first), first + 1):
            yield at, json.dumps(read_messages(messages, f"{name}, conversation {number}"))

    def conversations(self) -> Iterator[tuple]:
        """(piece, messages, where it stands) of each."""
        for piece in self.pieces():
            where = f"{self.inputs[piece.file]}, conversation {piece.document + 1}"
            if len(piece.text) < piece.length:
                raise ValueError(f"{where} has {piece.length:,} characters: leave it out, no context is that long")
            yield piece, json.loads(piece.text), where


def read_messages(found: list, where: str) -> list[dict]:
    """Messages in our form. Raises ValueError naming what is wrong with them."""
    messages = []
    for number, each in enumerate(found or [], 1):
        each = each if isinstance(each, dict) else {}
        role, content = each.get("role", each.get("from")), each.get("content", each.get("value"))
        role = SHAREGPT.get(role, role) if isinstance(role, str) else role
        if role not in chat.ROLES:
            raise ValueError(
                f"{where}, message {number}: role {str(role)[:40]!r} is not one of {', '.join(chat.ROLES)}"
            )
        if not isinstance(content, str) or not content.strip():
            raise ValueError(f"{where}, message {number}: its content is {str(content)[:40]!r}, not a text")
        messages.append({"role": role, "content": HALVES.sub("\ufffd", content)})
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError(f"{where}: " + ("no answer of the assistant" if messages else "it is empty"))
    return messages


class Blocks:
    """A split: packs conversations into blocks of `size` tokens."""

    def __init__(self, file: TokenFile, tokenizer, size: int):
        self.file, self.tokenizer, self.size = file, tokenizer, size
        self.begin, self.end = chat.answer_begin(tokenizer), tokenizer.special[END]
        self.eot = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
        file.counts["answers"] = {"tokens": 0, "bytes": 0}

    def add(self, ids: np.ndarray, messages: list[dict]) -> None:
        """Appends a conversation. Raises ValueError if its answers cannot be found among its tokens."""
        told = [message["content"].strip() for message in messages if message["role"] == "assistant"]
        counted = answers(ids[None], self.begin, self.end)[0]
        if (ids[counted] == self.end).sum() != len(told):
            raise ValueError(
                f"the tokenizer {self.tokenizer.name} joins the line break before an answer with the answer, so that "
                "none can be found: use another --tokenizer"
            )
        ids = np.array([*ids, *self.eot][: self.size])
        if len(ids) > -self.file.counts["tokens"] % self.size:
            self.fill()
        self.file.append(ids, sum(len(message["content"].strip().encode()) for message in messages), 1)
        self.file.counts["answers"]["tokens"] += int(counted.sum())
        self.file.counts["answers"]["bytes"] += len("".join(told).encode())

    def fill(self, more: int = 0) -> None:
        """Fills the last block, and adds `more` tokens."""
        rest = -self.file.counts["tokens"] % self.size + more
        self.file.append(np.full(rest, (self.eot or [self.end])[0]), 0, 0)


def prepare(
    inputs: list[str],
    out: Path | str,
    tokenizer="bytes",
    block_size: int = 256,
    val_fraction: float | None = None,
    skip_long: bool = False,
    say=print,
) -> dict:
    """Prepares the data directory `out` from conversations and returns its meta data. Raises ValueError or OSError."""
    check_fraction(0.5 if val_fraction is None else val_fraction)
    corpus = Conversations(inputs)
    if tokenizer == "char":
        contents = (message["content"] for _, messages, _ in corpus.conversations() for message in messages)
        tokenizer = CharTokenizer.train("".join(set("\n".join(chat.ROLES)).union(*contents)))
    tokenizer = chat.add_tokens(get_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer)
    split = Split(corpus, text.default_val_fraction(corpus) if val_fraction is None else val_fraction)
    out, skipped = Path(out), 0
    out.mkdir(parents=True, exist_ok=True)
    with Lock(out):
        files = {name: TokenFile(out / f"{name}.bin", token_dtype(tokenizer)) for name in ("train", "val")}
        blocks = {name: Blocks(file, tokenizer, block_size) for name, file in files.items()}
        for piece, messages, where in corpus.conversations():
            ids, boundary = chat.render(tokenizer, messages), split.boundary(piece)
            if 0 < boundary < piece.length:
                raise ValueError(f"{where} is the only one: two that differ are needed, one of them for validation")
            if len(ids) <= block_size:
                blocks["train" if boundary else "val"].add(ids, messages)
            elif skip_long:
                skipped += 1
            else:
                raise ValueError(
                    f"{where} has {len(ids):,} tokens, more than --block_size={block_size}: give a larger one, "
                    "or --skip_long to leave such conversations out"
                )
        for name, file in files.items():
            if not file.counts["documents"]:
                raise ValueError(f"no conversation is left for {name}: give more, or a larger --block_size")
            blocks[name].fill(more=1)  # the last target of the last block
        chat_meta = {"block": block_size, "answer": blocks["train"].begin, "end": blocks["train"].end}
        meta = finish(out, files, tokenizer, " ".join(inputs), more={"chat": chat_meta})
    if skipped:
        say(f"{skipped:,} conversations of more than {block_size} tokens were left out")
    train, val = meta["splits"]["train"], meta["splits"]["val"]
    share = (train["answers"]["tokens"] + val["answers"]["tokens"]) / (train["tokens"] + val["tokens"])
    say(
        f"data: {out}: {train['documents']:,} conversations for training, {val['documents']:,} for validation, in "
        f"{(train['tokens'] + val['tokens']) // block_size:,} blocks of {block_size}; {share:.0%} of the tokens count"
    )
    return meta


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("INPUT", nargs="+", help="files, folders, patterns, - for standard input, hf:OWNER/NAME")
    parser.add_argument("--out", required=True, metavar="DIR", help="the data directory, such as data/mine_chat")
    parser.add_argument("--tokenizer", default="bytes", metavar="T", help="as for data_prep.text")
    parser.add_argument("--block_size", type=within(int, 16, 2**24), default=256, metavar="N", help="tokens of a block")
    parser.add_argument("--val_fraction", type=float, metavar="F", help="share of the conversations for validation")
    parser.add_argument("--skip_long", action="store_true", help="leave out conversations that are longer than a block")
    with text.command():
        options = vars(parser.parse_args())
        prepare(options.pop("INPUT"), **options)
        print(f"next: accelerate launch recipes/chat.py --data {options['out']} --block_size={options['block_size']}")


if __name__ == "__main__":
    main()
