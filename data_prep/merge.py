"""Joins what `data_prep.text --shard i/n` made on several machines into one data directory.

    python -m data_prep.merge data/mine                          # all parts are in it already
    python -m data_prep.merge data/mine from_2/mine from_3/mine  # moves the parts of the others there first
    python -m data_prep.merge data/mine --one_file               # train.bin instead of train-00001.bin and so on

The tokens, one part behind the other, are those that a single machine would have written, to the byte; meta.json has
the SHA-256 over all of them. `TokenDataset` reads the parts as one split, so they need not be copied together.
"""

import hashlib
import shutil
from contextlib import nullcontext
from pathlib import Path

from nanogpt.checkpoint import write_json
from nanogpt.config import OneLineParser, user_errors
from nanogpt.data.files import read_json
from nanogpt.data.tokenizer import check_same

SAME = ("vocab_size", "dtype", "tokenizer", "source")  # in all parts
COUNTS = ("tokens", "bytes", "documents", "largest")  # of a split


def merge(out: Path | str, others: list[Path | str] = (), one_file: bool = False, say=print) -> dict:
    """Writes meta.json over the parts in `out`; returns it. Raises ValueError if parts are missing or do not fit."""
    out = Path(out)
    for other in map(Path, others):
        check_same(out, other)
        for pattern in ("train-*.bin", "val-*.bin", "part-*.json"):
            for path in sorted(other.glob(pattern)):
                if (out / path.name).exists():
                    raise ValueError(f"{path} cannot be moved: {out / path.name} exists, and nothing is overwritten")
                shutil.move(path, out / path.name)
    parts = read_parts(out)
    meta = {key: value for key, value in parts[0].items() if key not in ("splits", "shard")}
    meta["splits"] = {}
    for split in ("train", "val"):
        counts = [part["splits"][split] for part in parts]
        names = [f"{split}-{i:05}.bin" for i in range(1, len(parts) + 1)]
        digest = join([out / name for name in names], counts, out / f".{split}.bin.tmp" if one_file else None)
        whole = {key: sum(c[key] for c in counts) for key in COUNTS[:3]}
        whole |= {"largest": max(c["largest"] for c in counts), "sha256": digest}
        meta["splits"][split] = whole if one_file else whole | {"files": names}
        if whole["tokens"] < 2:
            raise ValueError(f"the {split} split of {out} has {whole['tokens']} tokens: that is too short")
    (out / "meta.json").unlink(missing_ok=True)
    for split in meta["splits"] if one_file else ():
        (out / f".{split}.bin.tmp").replace(out / f"{split}.bin")
    write_json(out / "meta.json", meta)
    for i in range(1, len(parts) + 1):
        for name in [f"part-{i:05}.json", *([f"train-{i:05}.bin", f"val-{i:05}.bin"] if one_file else [])]:
            (out / name).unlink()
    train, val = (meta["splits"][split]["tokens"] for split in ("train", "val"))
    say(f"data: {out}: {len(parts)} parts with {train:,} training tokens, {val:,} for validation")
    return meta


def read_parts(out: Path) -> list[dict]:
    """The descriptions of all parts, in order."""
    parts = {path: read_part(path) for path in sorted(out.glob("part-*.json"))}
    if not parts:
        raise ValueError(f"{out} holds no parts (part-00001.json): make them by data_prep.text --shard I/N --out {out}")
    first = next(iter(parts.values()))
    n = first["shard"][1]
    missing = sorted(set(range(1, n + 1)) - {part["shard"][0] for part in parts.values()})
    if missing:
        raise ValueError(f"{out} lacks the parts {', '.join(f'{i}/{n}' for i in missing)}: run them with --shard first")
    for path, part in parts.items():
        for key in SAME:
            if part[key] != first[key] or part["shard"][1] != n:
                raise ValueError(
                    f"{path} is a part of other data than the first: {key} {part[key]!r}, not {first[key]!r}"
                )
    return list(parts.values())


def read_part(path: Path) -> dict:
    part = read_json(path)
    try:
        _ = [part["splits"][split][key] + 0 for split in ("train", "val") for key in COUNTS]
        _ = [part[key] for key in SAME], [part["splits"][split]["sha256"] for split in ("train", "val")]
        i, n = part["shard"]
        _ = range(i, n)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): run its --shard again") from None
    return part


def join(paths: list[Path], counts: list[dict], target: Path | None) -> str:
    """SHA-256 over all files, each checked by its own; with `target` they are copied there, one behind the other."""
    digest = hashlib.sha256()
    with open(target, "wb") if target else nullcontext() as copy:
        for path, count in zip(paths, counts, strict=True):
            own = hashlib.sha256()
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
                    own.update(block)
                    if target:
                        copy.write(block)
            if own.hexdigest() != count["sha256"]:
                raise ValueError(f"{path} is not what was written: its SHA-256 differs; run its --shard again")
    return digest.hexdigest()


if __name__ == "__main__":
    parser = OneLineParser(description=__doc__)
    parser.add_argument("DIR", help="the data directory")
    parser.add_argument("OTHER", nargs="*", help="directories with further parts, which are moved")
    parser.add_argument("--one_file", action="store_true", help="copy the parts together into train.bin and val.bin")
    args = parser.parse_args()
    with user_errors():
        merge(args.DIR, args.OTHER, args.one_file)
