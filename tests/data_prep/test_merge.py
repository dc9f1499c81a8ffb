"""Parts from several machines are joined into the data that one machine would make, or refused."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from texts import documents, expected, fork, is_val, save_as, silent, tokens, write_jsonl

from data_prep import documents as reading
from data_prep import merge, text
from data_prep.documents import Corpus
from nanogpt.data.tokens import TokenDataset


def test_shards_of_a_streamed_data_set_merge_to_the_same_bytes(tmp_path):
    (tmp_path / "set").mkdir()
    for i in range(6):
        table = pyarrow.table({"text": documents()[50 * i : 50 * i + 50]})
        pyarrow.parquet.write_table(table, tmp_path / "set" / f"{i}.parquet")
    common = {"inputs": [f"hf:{tmp_path / 'set'}"], "tokenizer": "bytes", "val_fraction": 0.1, "say": silent}
    text.prepare(**common, out=tmp_path / "once")
    assert tokens(tmp_path / "once", "train").tolist() == expected(documents(), 0.1, False)
    for i in (1, 2, 3):
        text.prepare(**common, out=tmp_path / "parts", shard=(i, 3))
    meta = merge.merge(tmp_path / "parts", say=silent)
    once = json.loads((tmp_path / "once" / "meta.json").read_text())
    assert all(meta["splits"][s]["sha256"] == once["splits"][s]["sha256"] for s in ("train", "val"))
    assert meta["splits"]["train"]["documents"] == sum(not is_val(t, 0.1) for t in documents())
    with pytest.raises(ValueError, match="has 6 files: it cannot be divided into 7 shards"):
        text.prepare(**common, out=tmp_path / "more", shard=(1, 7))
    corpus = Corpus(common["inputs"])
    assert list(corpus.pieces(0, 150)) == list(corpus.pieces())[150:]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt", "jsonl.gz"])
def test_four_shards_on_four_processes_merge_to_the_same_bytes(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(reading, "PIECE", 1 << 12)
    texts = documents()
    if kind == "txt":
        (tmp_path / "input.txt").write_text("\n\n".join(texts))
        inputs = [str(tmp_path / "input.txt")]
    else:
        inputs = [save_as(kind, tmp_path, texts), write_jsonl(tmp_path / "second.jsonl", texts[:20])]
    common = {"inputs": inputs, "tokenizer": "bytes", "val_fraction": 0.1, "say": silent}
    text.prepare(**common, out=tmp_path / "once")
    outs = [tmp_path / "parts", tmp_path / "parts", tmp_path / "elsewhere", tmp_path / "elsewhere"]
    workers = [
        fork.Process(target=text.prepare, kwargs=common | {"out": out, "shard": (i, 4)})
        for i, out in enumerate(outs, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    meta = merge.merge(tmp_path / "parts", [tmp_path / "elsewhere"], say=silent)
    once = json.loads((tmp_path / "once" / "meta.json").read_text())
    for split in ("train", "val"):
        files = meta["splits"][split].pop("files")
        assert meta["splits"][split] == once["splits"][split]
        whole = TokenDataset(tmp_path / "parts", split, 16).tokens
        assert np.array_equal(whole[:], tokens(tmp_path / "once", split))
        if kind != "jsonl.gz":  # which is not divided
            sizes = [(tmp_path / "parts" / name).stat().st_size for name in files]
            assert split == "val" or max(sizes) < 2 * min(sizes)
    assert not list((tmp_path / "parts").glob("part-*"))


def test_parts_that_are_missing_changed_or_of_other_data_are_named(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", documents())
    with pytest.raises(ValueError, match="has no parts"):
        merge.merge(tmp_path)
    for i in (1, 3):
        text.prepare([path], tmp_path / "data", "bytes", 0.1, shard=(i, 3), say=silent)
    with pytest.raises(ValueError, match=r"lacks the parts 2/3: run them with --shard"):
        merge.merge(tmp_path / "data")
    text.prepare([path, path], tmp_path / "data", "bytes", 0.1, shard=(2, 3), say=silent)
    with pytest.raises(ValueError, match=r"part-00002.json is a part of other data than the first: source"):
        merge.merge(tmp_path / "data")
    text.prepare([path], tmp_path / "data", "bytes", 0.1, shard=(2, 3), say=silent)
    with open(tmp_path / "data" / "train-00003.bin", "r+b") as file:
        file.write(b"\1\1")
    with pytest.raises(ValueError, match=r"train-00003.bin is not what was written: its SHA-256 differs"):
        merge.merge(tmp_path / "data")


def test_the_largest_token_is_that_of_all_parts_and_no_part_is_overwritten(tmp_path):
    inputs = [write_jsonl(tmp_path / f"{c[0]}.jsonl", [c + i * c[0] for i in range(50)]) for c in ("abc", "xyz")]
    for out, i in (("one", 1), ("one", 2), ("two", 2)):
        text.prepare(inputs, tmp_path / out, "char", 0.5, shard=(i, 2), say=silent)
    with pytest.raises(ValueError, match=r"train-00002.bin exists, and nothing is overwritten"):
        merge.merge(tmp_path / "one", [tmp_path / "two"])
    meta = merge.merge(tmp_path / "one", say=silent)
    assert [meta["splits"][split]["largest"] for split in ("train", "val")] == [6, 6]  # newline and six letters
