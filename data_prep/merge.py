"""Joins the parts that `data_prep.text --shard i/n` made on several machines.

    python -m data_prep.merge data/mine                          # all parts are in it already
    python -m data_prep.merge data/mine from_2/mine from_3/mine  # moves those of the others there

Together the parts are byte for byte what a single machine would have written; meta.json has the
SHA-256 over all of them. `TokenDataset` reads the files as one split, so they are not copied.
"""

import hashlib
import shutil
from pathlib import Path

from data_prep.writer import SPLITS, check_name, write_json
from nanogpt.data.files import read_json
from nanogpt.data.tokenizer import check_same, sha256
from nanogpt.run.errors import user_errors
from nanogpt.run.flags import OneLineParser

SAME = ("vocab_size", "dtype", "tokenizer", "source")  # in all parts


def merge(out: Path | str, others: list[Path | str] = (), say=print) -> dict:
    """Writes meta.json over the parts in `out`; returns it.

    Raises ValueError if parts are missing or do not fit.
    """
    check_name(out)
    out = Path(out)
    for other in map(Path, others):
        check_same(out, other)
        for pattern in ("train-*.bin", "val-*.bin", "part-*.json"):
            for path in sorted(other.glob(pattern)):
                if (moved := out / path.name).exists():
                    raise ValueError(f"{path}: {moved} exists, and nothing is overwritten")
                shutil.move(path, moved)
    try:
        parts = read_parts(out)
        meta = {key: value for key, value in parts[0].items() if key not in ("splits", "shard")}
        meta["splits"] = {
            split: join(out, split, [part["splits"][split] for part in parts]) for split in SPLITS
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"a part-*.json of {out} is damaged ({error!r}): run it again") from None
    # a further directory may have written its tokenizer.json differently
    meta["tokenizer_sha256"] = sha256(out)
    write_json(out / "meta.json", meta)
    for i in range(1, len(parts) + 1):
        (out / f"part-{i:05}.json").unlink()
    train, val = (meta["splits"][split]["tokens"] for split in SPLITS)
    say(f"data: {out}: {len(parts)} parts with {train:,} training tokens, {val:,} for validation")
    return meta


def read_parts(out: Path) -> list[dict]:
    """The descriptions of all parts, in order."""
    parts = {path: read_json(path) for path in sorted(out.glob("part-*.json"))}
    if not parts:
        raise ValueError(f"{out} has no parts (part-00001.json): data_prep.text --shard makes them")
    first = next(iter(parts.values()))
    n = first["shard"][1]
    found = {part["shard"][0] for part in parts.values()}
    if missing := [f"{i}/{n}" for i in range(1, n + 1) if i not in found]:
        raise ValueError(f"{out} lacks the parts {', '.join(missing)}: run them with --shard first")
    for path, part in parts.items():
        differ = [key for key in SAME if part[key] != first[key]]
        if differ or part["shard"][1] != n:
            what = ", ".join(f"{key} {part[key]!r}, not {first[key]!r}" for key in differ)
            raise ValueError(f"{path} is a part of different data than the first: {what}")
    return list(parts.values())


def join(out: Path, split: str, counts: list[dict]) -> dict:
    """The entry of a split in meta.json. Raises ValueError if a file is not what was written."""
    names = [f"{split}-{i:05}.bin" for i in range(1, len(counts) + 1)]
    total = {key: sum(c[key] for c in counts) for key in ("tokens", "bytes", "documents")}
    total["largest"] = max(c["largest"] for c in counts)
    if total["tokens"] < 2:
        raise ValueError(f"the {split} split of {out} is too short: {total['tokens']} tokens")
    digest = hashlib.sha256()
    for name, count in zip(names, counts, strict=True):
        own = hashlib.sha256()
        with open(out / name, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                own.update(block)
        if own.hexdigest() != count["sha256"]:
            why = "its SHA-256 differs; run its --shard again"
            raise ValueError(f"{out / name} is not what was written: {why}")
    return total | {"sha256": digest.hexdigest(), "files": names}


if __name__ == "__main__":
    parser = OneLineParser(description=__doc__)
    parser.add_argument("DIR", help="the data directory")
    parser.add_argument("OTHER", nargs="*", help="directories with further parts, which are moved")
    args = parser.parse_args()
    with user_errors():
        merge(args.DIR, args.OTHER)
