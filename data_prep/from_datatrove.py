"""Reads token files of datatrove in place, for corpora that need a cluster to tokenize.

    python -m data_prep.from_datatrove data/crawl --tokenizer data/mine_bpe

`datatrove` (the extra `cluster`) runs the same pipeline on one machine, through Slurm, or on Ray:

    from datatrove.executor import LocalPipelineExecutor  # or SlurmPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    tokenizer, eos = "data/mine_bpe/tokenizer.json", "<|endoftext|>"
    steps = [ParquetReader("crawl/"), DocumentTokenizer("data/crawl", tokenizer, eos_token=eos)]
    LocalPipelineExecutor(steps, tasks=64, workers=8, logging_dir="logs").run()

It writes a file of tokens for each task into data/crawl. This command leaves the files as they are
and adds meta.json, which describes them, and tokenizer.json. The last files, up to a share of
--val_fraction, are for validation.
"""

import hashlib
from pathlib import Path

from data_prep import writer
from data_prep.text import make_parser
from nanogpt.data.files import write_atomic
from nanogpt.data.meta import read_blocks
from nanogpt.data.tokenizer import FILE, get_tokenizer
from nanogpt.run.errors import user_errors

MEASURED = 1 << 20  # tokens of each file that are decoded, to estimate the bytes of text per token


def describe(
    directory: Path | str, tokenizer_name: str, val_fraction: float = 0.01, say=print
) -> dict:
    """Writes meta.json and tokenizer.json for the .ds files in `directory`; returns the meta data.

    Raises ValueError if there are too few files, or if they contain ids that the tokenizer does not
    have.
    """
    writer.check_fraction(val_fraction)
    directory, tokenizer = Path(directory), get_tokenizer(tokenizer_name)
    dtype, content = writer.token_dtype(tokenizer), writer.saved(tokenizer)
    writer.check_out(directory, {FILE: content, "meta.json": None})
    paths = sorted(path for path in directory.glob("*.ds") if path.stat().st_size)
    counts = [path.stat().st_size // dtype.itemsize for path in paths]
    if len(paths) < 2:
        raise ValueError(f"{directory} has {len(paths)} files that end with .ds, but needs two")
    first_val = len(paths) - 1
    while first_val > 1 and sum(counts[first_val:]) < val_fraction * sum(counts):
        first_val -= 1
    splits = {"train": measure(paths[:first_val], tokenizer)}
    splits["val"] = measure(paths[first_val:], tokenizer)
    meta = writer.describe(tokenizer, content, f"datatrove: {directory}", splits)
    with write_atomic(directory / FILE) as file:
        file.write(content)
    writer.write_json(directory / "meta.json", meta)
    train, val = (meta["splits"][split]["tokens"] for split in ("train", "val"))
    counted = f"{train:,} training tokens, {val:,} for validation"
    say(f"data: {directory}: {len(paths)} files with {counted}")
    return meta


def measure(paths: list[Path], tokenizer) -> dict:
    """The entry of a split in meta.json; `bytes` is estimated from the start of each file.

    Raises ValueError.
    """
    counts = {"tokens": 0, "bytes": 0, "documents": 0, "largest": 0}
    size, measured, digest = 0, 0, hashlib.sha256()
    for path in paths:
        for number, ids in enumerate(read_blocks([path], writer.token_dtype(tokenizer))):
            counts["tokens"] += len(ids)
            counts["documents"] += int((ids == tokenizer.eot_id).sum())
            counts["largest"] = max(counts["largest"], int(ids.max()))
            digest.update(ids.data)
            if counts["largest"] >= tokenizer.vocab_size:
                why = f"it was not made with this tokenizer ({tokenizer.name})"
                raise ValueError(f"{path} contains token {counts['largest']}: {why}")
            if number == 0:
                text = ids[:MEASURED]
                size += len(tokenizer.decode(text[text != tokenizer.eot_id]).encode("utf-8"))
                measured += len(text)
    counts["bytes"] = round(size * counts["tokens"] / measured)
    names = [path.name for path in paths]
    return {"files": names} | counts | {"sha256": digest.hexdigest()}


if __name__ == "__main__":
    parser = make_parser(__doc__, "--val_fraction")
    parser.add_argument("DIR", help="the directory that DocumentTokenizer wrote to")
    parser.add_argument("--tokenizer", required=True, metavar="T", help="the one that it used")
    parser.set_defaults(val_fraction=0.01)
    args = parser.parse_args()
    with user_errors():
        describe(args.DIR, args.tokenizer, args.val_fraction)
