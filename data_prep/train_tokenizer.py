"""Trains a byte-pair encoding on your own text with the library `tokenizers`.

    python -m data_prep.train_tokenizer notes/ --vocab_size 4096 --out data/mine_bpe
    python -m data_prep.text notes/ --tokenizer data/mine_bpe --out data/mine

Text is split as in GPT-2 and spelled in bytes, so every text can be encoded and decoded without
loss (Sennrich et al. 2016; Radford et al. 2019). A larger vocabulary means fewer tokens and a
larger model: 4096 suits a few megabytes. INPUT is the same as for `data_prep.text`.
"""

import argparse
import shlex
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from data_prep.documents import Corpus
from data_prep.text import make_parser
from nanogpt.data.tokenizer import EOT, FILE, Tokenizer
from nanogpt.run.errors import user_errors, waiting

# bytes of a piece of text without spaces; training takes time proportional to its square
LONGEST = 128


def train(
    inputs: list[str],
    vocab_size: int,
    text_column: str = "text",
    errors: str = "strict",
    show: bool = False,
) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens, the last one the end of text.

    Raises ValueError.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    if vocab_size < 257:
        raise ValueError(
            f"vocab_size={vocab_size} must be at least 257: the bytes and the end of text"
        )
    bpe = Backend(models.BPE())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    shorten = pre_tokenizers.Split(Regex(f".{{1,{LONGEST}}}"), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, shorten])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=show
    )
    texts = (piece.text for piece in Corpus(inputs, (text_column,), errors).pieces())
    interruptible(lambda: bpe.train_from_iterator(texts, trainer))
    bpe.pre_tokenizer = split  # encoding is fast for long pieces, too
    bpe.add_special_tokens([EOT])
    return Tokenizer(bpe, "bpe")


def interruptible(work: Callable[[], object]) -> None:
    """Calls a function that does not notice Ctrl-C: in a thread, which ends with the process."""
    result: Future[object] = Future()

    def call() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    result.result()


def check_out(out: Path) -> None:
    """Raises ValueError if `out` has a tokenizer, or data that need theirs."""
    for name in (FILE, "meta.json", "train.bin"):
        if (out / name).exists():
            raise ValueError(
                f"{out / name} exists, and nothing is overwritten: name a new directory with --out"
            )


def next_command(args: argparse.Namespace) -> str:
    """The command that tokenizes the same text."""
    command = ["python", "-m", "data_prep.text", *args.INPUT]
    command += ["--tokenizer", args.out, "--out", "data/mine"]
    for name, default in (("text_column", "text"), ("errors", "strict")):
        if (value := getattr(args, name)) != default:
            command += [f"--{name}", value]
    return shlex.join(command)


if __name__ == "__main__":
    parser = make_parser(__doc__, "INPUT", "--out", "--text_column", "--errors")
    size_help = "tokens (default: 4096)"
    parser.add_argument("--vocab_size", type=int, default=4096, metavar="N", help=size_help)
    args = parser.parse_args()
    with user_errors("stopped: nothing was written"):
        check_out(Path(args.out))
        with waiting(f"training a tokenizer of {args.vocab_size:,} tokens"):
            size, column, show = args.vocab_size, args.text_column, sys.stderr.isatty()
            tokenizer = train(args.INPUT, size, column, args.errors, show)
        tokenizer.save(args.out)
        why = " (there was nothing left to merge)" if tokenizer.vocab_size < size else ""
        print(f"tokenizer: {args.out}: {tokenizer.vocab_size:,} tokens{why}")
        print(f"next: {next_command(args)}")
