"""Parts from several machines are joined into the data that one machine would make, or refused."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from texts import documents, expected, fork, put, save_as, silent, tokens, write_jsonl

from data_prep import documents as reading
from data_prep import merge, text
from nanogpt.data.tokens import TokenDataset


def merged(out, others=()) -> dict:
    """The entries of the splits after merging, without the names of the files."""
    splits = merge.merge(out, others, say=silent)["splits"]
    return {split: {k: v for k, v in splits[split].items() if k != "files"} for split in splits}


def splits(out) -> dict:
    return json.loads((out / "meta.json").read_text())["splits"]


def test_shards_of_a_streamed_data_set_merge_to_the_same_bytes(tmp_path):
    (tmp_path / "set").mkdir()
    for i in range(6):
        table = pyarrow.table({"text": documents()[50 * i : 50 * i + 50]})
        pyarrow.parquet.write_table(table, tmp_path / "set" / f"{i}.parquet")
    inputs = [f"hf:{tmp_path / 'set'}"]
    common = {"inputs": inputs, "tokenizer": "bytes", "val_fraction": 0.1, "say": silent}
    text.prepare(**common, out=tmp_path / "once")
    assert tokens(tmp_path / "once", "train").tolist() == expected(documents(), 0.1, False)
    for i in (1, 2, 3):
        text.prepare(**common, out=tmp_path / "parts", shard=(i, 3))
    assert merged(tmp_path / "parts") == splits(tmp_path / "once")
    with pytest.raises(ValueError, match="has 6 files: it cannot be divided into 7 shards"):
        text.prepare(**common, out=tmp_path / "more", shard=(1, 7))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt", "jsonl.gz"])
def test_four_shards_on_four_processes_merge_to_the_same_bytes(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(reading, "PIECE", 1 << 12)
    texts, once = documents(), tmp_path / "once"
    inputs = [put(tmp_path / "input.txt", "\n\n".join(texts))]
    if kind != "txt":
        inputs = [save_as(kind, tmp_path, texts)]
        inputs.append(write_jsonl(tmp_path / "second.jsonl", texts[:20]))
    common = {"inputs": inputs, "tokenizer": "bytes", "val_fraction": 0.1, "say": silent}
    text.prepare(**common, out=once)
    a, b = tmp_path / "parts", tmp_path / "elsewhere"
    jobs = [common | {"out": out, "shard": (i, 4)} for i, out in enumerate((a, a, b, b), 1)]
    workers = [fork.Process(target=text.prepare, kwargs=job) for job in jobs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert merged(a, [b]) == splits(once)
    for split in ("train", "val"):
        assert np.array_equal(TokenDataset(a, split, 16).tokens[:], tokens(once, split))
    if kind != "jsonl.gz":  # whose parts are as large as what is decompressed at a time
        sizes = [path.stat().st_size for path in a.glob("train-*.bin")]
        assert len(sizes) == 4 and max(sizes) < 2 * min(sizes)
    assert not list(a.glob("part-*"))


def test_parts_that_are_missing_changed_or_of_other_data_are_named(tmp_path):
    path, out = write_jsonl(tmp_path / "in.jsonl", documents()), tmp_path / "data"

    def make(i: int, *inputs: str) -> None:
        text.prepare([*inputs], out, "bytes", 0.1, shard=(i, 3), say=silent)

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            merge.merge(out)

    refused("has no parts")
    make(1, path)
    make(3, path)
    refused(r"lacks the parts 2/3: run them with --shard")
    make(2, path, path)
    refused(r"part-00002.json is a part of different data than the first: source")
    make(2, path)
    part = (out / "part-00001.json").read_text()
    put(out / "part-00001.json", part.replace('"largest"', '"smallest"'))
    refused(r"is damaged .KeyError.'largest'")
    put(out / "part-00001.json", part)
    with open(out / "train-00003.bin", "r+b") as file:
        file.write(b"\1\1")
    refused(r"train-00003.bin is not what was written: its SHA-256 differs")


def test_the_largest_token_is_that_of_all_parts_and_no_part_is_overwritten(tmp_path):
    letters = {"a": "abc", "x": "xyz"}
    texts = {name: [c + i * name for i in range(50)] for name, c in letters.items()}
    inputs = [write_jsonl(tmp_path / f"{name}.jsonl", texts[name]) for name in texts]
    for out, i in (("one", 1), ("one", 2), ("two", 2)):
        text.prepare(inputs, tmp_path / out, "char", 0.5, shard=(i, 2), say=silent)
    with pytest.raises(ValueError, match=r"train-00002.bin exists, and nothing is overwritten"):
        merge.merge(tmp_path / "one", [tmp_path / "two"])
    found = merged(tmp_path / "one")
    assert [found[s]["largest"] for s in ("train", "val")] == [6, 6]  # newline and six letters
