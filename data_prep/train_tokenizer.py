"""Trains a byte-pair encoding on your own text with the library `tokenizers`.

    python -m data_prep.train_tokenizer notes/ --vocab_size 4096 --out data/mine_bpe
    python -m data_prep.text notes/ --tokenizer data/mine_bpe --out data/mine

Text is split as in GPT-2 and spelled in bytes, so every text can be encoded and decoded without loss (Sennrich et al.
2016; Radford et al. 2019). A larger vocabulary means fewer tokens and a larger model: 4096 suits a few megabytes. INPUT
is the same as for `data_prep.text`.
"""

import argparse
import shlex
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from data_prep.documents import Corpus
from nanogpt.data.tokenizer import EOT, FILE, HFTokenizer
from nanogpt.run.errors import user_errors, waiting
from nanogpt.run.flags import OneLineParser

LONGEST = (
    128  # bytes of a piece of text without spaces; training takes time proportional to its square
)


def train(
    inputs: list[str],
    vocab_size: int,
    text_column: str = "text",
    errors: str = "strict",
    show: bool = False,
) -> HFTokenizer:
    """A tokenizer of at most `vocab_size` tokens, the last of them the end of text. Raises ValueError."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise ValueError(
            f"vocab_size={vocab_size} must be at least 257: the bytes and the end of text"
        )
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    shorten = pre_tokenizers.Split(Regex(f".{{1,{LONGEST}}}"), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, shorten])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=show
    )
    texts = (piece.text for piece in Corpus(inputs, text_column, errors).pieces())
    interruptible(lambda: bpe.train_from_iterator(texts, trainer))
    bpe.pre_tokenizer = split  # encoding is fast for long pieces, too
    bpe.add_special_tokens([EOT])
    return HFTokenizer(bpe, "bpe")


def interruptible(work: Callable[[], object]) -> None:
    """Calls a function of a library that does not notice Ctrl-C: in a thread, which ends with the process."""
    raised: list[BaseException] = []

    def call() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def check_out(out: Path) -> None:
    """Raises ValueError if `out` has a tokenizer or data, which keep the tokenizer that made them."""
    for name in (FILE, "meta.json", "train.bin"):
        if (out / name).exists():
            raise ValueError(
                f"{out / name} exists, and nothing is overwritten: name a new directory with --out"
            )


def next_command(args: argparse.Namespace) -> str:
    """The command that tokenizes the same text."""
    command = [
        "python",
        "-m",
        "data_prep.text",
        *args.INPUT,
        "--tokenizer",
        args.out,
        "--out",
        "data/mine",
    ]
    for name, default in (("text_column", "text"), ("errors", "strict")):
        if (value := getattr(args, name)) != default:
            command += [f"--{name}", value]
    return shlex.join(command)


if __name__ == "__main__":
    parser = OneLineParser(description=__doc__)
    parser.add_argument(
        "INPUT", nargs="+", help="files, folders, patterns, - for standard input, hf:OWNER/NAME"
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="where tokenizer.json is written"
    )
    parser.add_argument(
        "--vocab_size", type=int, default=4096, metavar="N", help="tokens (default: 4096)"
    )
    parser.add_argument(
        "--text_column",
        default="text",
        metavar="NAME",
        help="of jsonl, csv, parquet (default: text)",
    )
    parser.add_argument(
        "--errors",
        default="strict",
        choices=("strict", "replace", "skip"),
        help="for non-UTF-8 text",
    )
    args = parser.parse_args()
    with user_errors("stopped: nothing was written"):
        check_out(Path(args.out))
        with waiting(f"training a tokenizer of {args.vocab_size:,} tokens"):
            tokenizer = train(
                args.INPUT, args.vocab_size, args.text_column, args.errors, show=sys.stderr.isatty()
            )
        tokenizer.save(args.out)
        fewer = (
            " (there was nothing left to merge)" if tokenizer.vocab_size < args.vocab_size else ""
        )
        print(f"tokenizer: {args.out}: {tokenizer.vocab_size:,} tokens{fewer}")
        print(f"next: {next_command(args)}")
