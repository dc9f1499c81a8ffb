"""Token files of datatrove, read in place."""

import json

import numpy as np
import pytest
from texts import documents, put, silent

from data_prep import from_datatrove, train_tokenizer
from nanogpt.data.tokenizer import load_tokenizer
from nanogpt.data.tokens import TokenDataset


def test_what_datatrove_writes_on_a_local_executor_is_read_in_place(tmp_path):
    pytest.importorskip("datatrove", reason="the extra `cluster` is not installed")
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    for part in range(3):
        lines = [json.dumps({"text": t, "id": str(i)}) for i, t in enumerate(documents()[part::3])]
        put(tmp_path / "in" / f"{part}.jsonl", "\n".join(lines))
    tokenizer = train_tokenizer.train([str(tmp_path / "in")], 300)
    (tmp_path / "bpe").mkdir()
    tokenizer.save(tmp_path / "bpe")
    path = str(tmp_path / "bpe" / "tokenizer.json")
    tokenize = DocumentTokenizer(str(tmp_path / "data"), path, eos_token="<|endoftext|>", shuffle_documents=False)
    pipeline = [JsonlReader(str(tmp_path / "in")), tokenize]
    LocalPipelineExecutor(pipeline, tasks=3, workers=1, logging_dir=str(tmp_path / "logs")).run()

    meta = from_datatrove.describe(tmp_path / "data", str(tmp_path / "bpe"), 0.3, say=silent)
    assert [len(meta["splits"][s]["files"]) for s in ("train", "val")] == [2, 1]
    assert [meta["splits"][s]["documents"] for s in ("train", "val")] == [200, 100]
    found = []
    for split in ("train", "val"):
        data = TokenDataset(tmp_path / "data", split, 32)
        text = load_tokenizer(tmp_path / "data").decode(data.tokens[:])
        assert meta["splits"][split]["bytes"] == len(text.replace("<|endoftext|>", "").encode())
        found += text.split("<|endoftext|>")[:-1]
    assert sorted(found) == sorted(documents())


def test_files_of_another_tokenizer_are_refused(tmp_path):
    for name in ("a.ds", "b.ds"):
        np.array([1, 2, 257], dtype="<u2").tofile(tmp_path / name)
    with pytest.raises(ValueError, match=r"a.ds contains token 257: .* this tokenizer .bytes"):
        from_datatrove.describe(tmp_path, "bytes")
    (tmp_path / "b.ds").unlink()
    with pytest.raises(ValueError, match=r"has 1 files that end with .ds, but needs two"):
        from_datatrove.describe(tmp_path, "bytes")


@pytest.mark.parametrize("fraction, files", [(0.01, 1), (0.2, 1), (0.3, 2), (0.9, 3)])
def test_the_last_files_as_many_as_the_fraction_asks_for_are_for_validation(tmp_path, fraction, files):
    for i, tokens in enumerate((400, 300, 100, 200)):
        np.full(tokens, 65, dtype="<u2").tofile(tmp_path / f"{i}.ds")
    meta = from_datatrove.describe(tmp_path, "bytes", fraction, say=silent)
    assert meta["splits"]["val"]["files"] == [f"{i}.ds" for i in range(4)][-files:]
