"""Trains a byte-pair encoding on your own text with the library `tokenizers`.

    python -m data_prep.train_tokenizer notes/ --vocab_size 4096 --out data/mine_bpe
    python -m data_prep.text notes/ --tokenizer data/mine_bpe --out data/mine

Text is split as in GPT-2 and spelled in bytes, so every text can be encoded and decoded without
loss (Sennrich et al. 2016; Radford et al. 2019). A larger vocabulary means fewer tokens and a
larger model: 4096 suits a few megabytes. INPUT is the same as for `data_prep.text`.
"""

import shlex
from pathlib import Path

from tokenizers import Regex, pre_tokenizers, trainers

from data_prep.documents import PIECE, Corpus, passages
from data_prep.text import make_parser
from nanogpt.data.meta import TOKENIZER
from nanogpt.run.errors import user_errors, waiting
from nanogpt.run.parser import within
from nanogpt.text import bpe
from nanogpt.text.tokenizer import EOT, Tokenizer

# bytes of a piece of text without spaces: training takes time proportional to the square of this
LONGEST = 128


def train(
    inputs: list[str], vocab_size: int, text_column: str = "text", errors: str = "strict"
) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens (257 or more), the last one the end of text."""
    backend = bpe.byte_level({}, [])
    shorten = pre_tokenizers.Split(Regex(f".{{1,{LONGEST}}}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([bpe.GPT2_SPLIT, shorten])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=bpe.byte_alphabet(), show_progress=False
    )
    corpus = Corpus(inputs, (text_column,), errors)
    texts = (text for document in corpus.documents() for text in passages(document, PIECE))
    backend.train_from_iterator(texts, trainer)
    corpus.say_skipped()
    backend.pre_tokenizer = bpe.GPT2_SPLIT  # encoding is fast for long pieces, too
    backend.add_special_tokens([EOT])
    return Tokenizer(backend, "bpe")


if __name__ == "__main__":
    parser = make_parser(__doc__, "INPUT", "--out", "--text_column", "--errors")
    size_help = "tokens (default: 4096)"
    size = within(int, 257, 2**24)  # the bytes and the end of text, at least
    parser.add_argument("--vocab_size", type=size, default=4096, metavar="N", help=size_help)
    with user_errors("stopped: nothing was written"):
        args = parser.parse_args()
        if any(Path(args.out, name).exists() for name in (TOKENIZER, "meta.json", "train.bin")):
            why = "already has a tokenizer or data, and nothing is overwritten"
            raise ValueError(f"{args.out} {why}: name another --out")
        Path(args.out).mkdir(parents=True, exist_ok=True)  # fails now, not after training
        with waiting(f"training a tokenizer of {args.vocab_size:,} tokens"):
            tokenizer = train(args.INPUT, args.vocab_size, args.text_column, args.errors)
        tokenizer.save(args.out)
        print(f"tokenizer: {args.out}: {tokenizer.vocab_size:,} tokens")
        again = [*args.INPUT, "--text_column", args.text_column, "--errors", args.errors]
        words = shlex.join([*again, "--tokenizer", args.out, "--out", "data/mine"])
        print(f"next: python -m data_prep.text {words}")
