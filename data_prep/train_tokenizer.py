"""Trains a byte-pair encoding on your own text with the library `tokenizers`.

    python -m data_prep.train_tokenizer notes/ --vocab_size 4096 --out data/mine_bpe
    python -m data_prep.text notes/ --tokenizer data/mine_bpe --out data/mine

Text is split as in GPT-2 and spelled in bytes, so every text can be encoded and decoded without
loss (Sennrich et al. 2016; Radford et al. 2019). A larger vocabulary means fewer tokens and a
larger model: 4096 suits a few megabytes. INPUT is the same as for `data_prep.text`.
"""

import shlex
from pathlib import Path

from data_prep.documents import PIECE, Corpus, passages
from data_prep.text import make_parser
from nanogpt.data.tokenizer import EOT, FILE, Tokenizer
from nanogpt.run.errors import user_errors, waiting

# bytes of a piece of text without spaces; training takes time proportional to its square
LONGEST = 128


def train(
    inputs: list[str], vocab_size: int, text_column: str = "text", errors: str = "strict"
) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens, the last one the end of text, or a ValueError."""
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    if vocab_size < 257:
        raise ValueError(f"vocab_size={vocab_size} must be at least 257: bytes and the end of text")
    bpe = Backend(models.BPE())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    shorten = pre_tokenizers.Split(Regex(f".{{1,{LONGEST}}}"), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, shorten])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False
    )
    found = Corpus(inputs, (text_column,), errors).documents()
    texts = (text for document in found for text in passages(document.text, PIECE))
    bpe.train_from_iterator(texts, trainer)
    bpe.pre_tokenizer = split  # encoding is fast for long pieces, too
    bpe.add_special_tokens([EOT])
    return Tokenizer(bpe, "bpe")


if __name__ == "__main__":
    parser = make_parser(__doc__, "INPUT", "--out", "--text_column", "--errors")
    size_help = "tokens (default: 4096)"
    parser.add_argument("--vocab_size", type=int, default=4096, metavar="N", help=size_help)
    args = parser.parse_args()
    with user_errors("stopped: nothing was written"):
        if any(Path(args.out, name).exists() for name in (FILE, "meta.json", "train.bin")):
            why = "has a tokenizer or data that need theirs, and nothing is overwritten"
            raise ValueError(f"{args.out} {why}: name another --out")
        with waiting(f"training a tokenizer of {args.vocab_size:,} tokens"):
            tokenizer = train(args.INPUT, args.vocab_size, args.text_column, args.errors)
        tokenizer.save(args.out)
        print(f"tokenizer: {args.out}: {tokenizer.vocab_size:,} tokens")
        inputs, out = shlex.join(args.INPUT), shlex.quote(args.out)
        print(f"next: python -m data_prep.text {inputs} --tokenizer {out} --out data/mine")
