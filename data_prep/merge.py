"""Joins the parts that `data_prep.text --shard i/n` made on several machines.

    python -m data_prep.merge data/mine      # all parts are in it, copied if necessary

Together the parts are byte for byte what a single machine would have written. They are not copied:
meta.json lists their files, which are read as one split.
"""

from pathlib import Path

from data_prep.writer import META, SPLITS, sha256, write_json
from nanogpt.data.files import read_json
from nanogpt.run.errors import user_errors
from nanogpt.run.flags import OneLineParser

SAME = ("vocab_size", "dtype", "tokenizer_sha256", "source")  # in all parts


def merge(out: Path | str, say=print) -> dict:
    """Writes meta.json over the parts in `out`; returns it.

    Raises ValueError if parts are missing or do not fit.
    """
    out = Path(out)
    paths = sorted(out.glob("part-*.json"))
    if not paths:
        raise ValueError(f"{out} has no parts (part-00001.json): data_prep.text --shard makes them")
    parts = [read_json(path) for path in paths]
    n = parts[0]["shard"][1]
    if [part["shard"] for part in parts] != [[i, n] for i in range(1, n + 1)]:
        found = ", ".join(path.name for path in paths)
        raise ValueError(
            f"{out} needs the parts 1/{n} to {n}/{n}, but has {found}: make the others"
        )
    for path, part in zip(paths, parts, strict=True):
        if any(part[key] != parts[0][key] for key in SAME):
            why = f"has another tokenizer or source ({part['source']}) than {paths[0].name}"
            raise ValueError(f"{path} {why}: make it again")
    meta = {key: value for key, value in parts[0].items() if key != "shard"}
    meta["splits"] = {
        split: join(out, split, [part["splits"][split] for part in parts]) for split in SPLITS
    }
    write_json(out / META, meta)
    for path in paths:
        path.unlink()
    train, val = (meta["splits"][split]["tokens"] for split in SPLITS)
    say(f"data: {out}: {n} parts with {train:,} training tokens, {val:,} for validation")
    return meta


def join(out: Path, split: str, counts: list[dict]) -> dict:
    """The entry of a split in meta.json."""
    names = [f"{split}-{i:05}.bin" for i in range(1, len(counts) + 1)]
    total = {key: sum(c[key] for c in counts) for key in ("tokens", "bytes", "documents")}
    total["largest"] = max(c["largest"] for c in counts)
    if total["tokens"] < 2:
        raise ValueError(f"the {split} split of {out} is too short: {total['tokens']} tokens")
    return total | {"sha256": sha256([out / name for name in names]), "files": names}


if __name__ == "__main__":
    parser = OneLineParser(description=__doc__)
    parser.add_argument("DIR", help="the data directory")
    args = parser.parse_args()
    with user_errors():
        merge(args.DIR)
