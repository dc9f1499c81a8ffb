"""Turns text of any kind and size into tokens.

    python -m data_prep.text book.txt --out data/mine
    python -m data_prep.text notes/ 'crawl-*.jsonl.gz' --tokenizer gpt2 --out data/mine
    python -m data_prep.text table.parquet --text_column body --tokenizer bytes --out data/mine
    python -m data_prep.text hf:roneneldan/TinyStories --tokenizer gpt2 --out data/stories

INPUT is a file, a folder, a pattern, or a data set on the Hub as hf:OWNER/NAME[:CONFIG[:SPLIT]];
`data_prep.documents` lists the formats. An interrupted command resumes when it is started again.

The default tokenizer is char. The default fraction of documents for validation (--val_fraction) is
0.1, or 0.01 from 100 MB and for hf:, or 0.001 from 10 GB; `data_prep.split` explains which
documents those are.
"""

import shlex
from pathlib import Path

from data_prep.documents import Corpus
from data_prep.writer import write_corpus
from nanogpt.run.errors import user_errors
from nanogpt.run.parser import OneLineParser
from nanogpt.text.tokenizer import char_tokenizer, get_tokenizer

TOKENIZERS = "char (not for chats), bytes, gpt2 (or another of tiktoken), a run, a file, OWNER/NAME"
ERRORS = "skip: leave out (and count) what is not UTF-8 or has no text"
FLAGS: dict[str, dict] = {
    "INPUT": {"nargs": "+", "help": "files, folders, patterns, hf:OWNER/NAME"},
    "--out": {"required": True, "metavar": "DIR", "help": "the data directory, such as data/mine"},
    "--tokenizer": {"default": "char", "metavar": "T", "help": TOKENIZERS},
    "--val_fraction": {"type": float, "metavar": "F", "help": "fraction for validation"},
    "--text_column": {"default": "text", "metavar": "NAME", "help": "column (default: text)"},
    "--separator": {"metavar": "TEXT", "help": "marks a document's end in a text: '<|endoftext|>'"},
    "--errors": {"default": "strict", "choices": ("strict", "skip"), "help": ERRORS},
}
COMMON = [flag for flag in FLAGS if flag not in ("INPUT", "--out")]


def prepare(
    inputs: list[str],
    out: Path | str,
    tokenizer="char",
    val_fraction: float | None = None,
    text_column: str = "text",
    errors: str = "strict",
    separator: str | None = None,
    say=print,
) -> dict:
    """Prepares the data directory `out` from `inputs`; returns its metadata.

    `tokenizer` is a name for `nanogpt.text.tokenizer.get_tokenizer`, `char`, or a tokenizer of your
    own. `separator` stands between the documents of a text. Raises ValueError or OSError.
    """
    corpus = Corpus(inputs, (text_column,), errors, separator, say=say)
    if tokenizer == "char":
        characters: set[str] = set()
        for number, document in enumerate(corpus.documents()):
            characters.update(document, "\n" if number else "")  # it ends each of several documents
        tokenizer = char_tokenizer(sorted(characters))  # by code point, as in nanoGPT
    elif isinstance(tokenizer, str):
        tokenizer = get_tokenizer(tokenizer)
    return write_corpus(Path(out), corpus, tokenizer, val_fraction)


def make_parser(description: str | None, *flags: str) -> OneLineParser:
    """A parser with some of FLAGS, for this command and others."""
    parser = OneLineParser(description=description)
    for flag in flags:
        parser.add_argument(flag, **FLAGS[flag])
    return parser


def report(out: Path | str, meta: dict) -> None:
    """Prints what a command has prepared."""
    train, val = meta["splits"]["train"], meta["splits"]["val"]
    print(
        f"data: {out}: {train['tokens']:,} training tokens, {val['tokens']:,} for validation, "
        f"vocabulary {meta['vocab_size']:,}, documents: {train['documents'] + val['documents']:,}"
    )


def run(parser: OneLineParser) -> None:
    """Runs a command: prepares its inputs, and says what to do next."""
    with user_errors("stopped: run the same command again to resume"):
        options = vars(parser.parse_args())
        report(options["out"], prepare(options.pop("INPUT"), **options))
        print(f"next: python recipes/own_text.py --data {shlex.quote(options['out'])}")


def prepare_known(description: str, hub: str, out: str, val_fraction: float) -> None:
    """The command of a script for a data set on the Hub, or for local copies of it (--source)."""
    parser = make_parser(description, *COMMON)
    source = {"dest": "INPUT", "nargs": 1, "default": [hub], "metavar": "DIR"}
    parser.add_argument("--source", help=f"local copies of its files; default: {hub}", **source)
    parser.add_argument("--out", default=out, metavar="DIR", help=f"default: {out}")
    parser.set_defaults(tokenizer="gpt2", val_fraction=val_fraction)
    run(parser)


if __name__ == "__main__":
    run(make_parser(__doc__, "INPUT", "--out", *COMMON))
