import json
import re

import numpy as np
import pytest

from data_prep import documents, writer
from data_prep.merge import merge
from data_prep.text import prepare
from nanogpt.commands import main
from nanogpt.data.check import PASSAGE, examine, passages
from nanogpt.data.tokenizer import ByteTokenizer


def report(directory, **options) -> tuple[str, list[str]]:
    said = []
    found = examine(directory, **({"block_size": 16, "parameters": 1000} | options), say=said.append)
    return "\n".join(said), found


def random_data(directory, train: np.ndarray, val: np.ndarray, documents: int = 100):
    """Byte tokens of made-up data."""
    directory.mkdir()
    counts = {}
    for split, ids in (("train", train), ("val", val)):
        ids.astype("<u2").tofile(directory / f"{split}.bin")
        counts[split] = {"tokens": len(ids), "bytes": len(ids), "documents": documents}
    meta = {"vocab_size": 257, "dtype": "uint16", "splits": counts}
    (directory / "meta.json").write_text(json.dumps(meta))
    ByteTokenizer().save(directory)
    return directory


@pytest.fixture
def noise():
    ids = np.random.default_rng(0).integers(256, size=300_000)
    ids[::1000] = 256  # ends of text
    return ids


def test_counts_frequencies_and_windows_are_shown(data, text):
    shown, _ = report(data)
    meta = json.loads((data / "meta.json").read_text())
    train = meta["splits"]["train"]
    assert f"train: {train['tokens']:,} tokens, {train['bytes']:,} bytes, 1.00 bytes per token, 1 documents" in shown
    part = text[: train["tokens"]]
    assert f"most frequent: ' ' {part.count(' ') / len(part):.1%}, " in shown
    occurring = [part.count(c) for c in set(text)]
    rare = sum(100 <= n < 1000 for n in occurring)
    assert f"{'100 to 999':>17}  {rare:>7,} #" in shown
    windows = [line.split(maxsplit=1)[1] for line in shown.split("windows:\n")[1].splitlines()[:3]]
    assert all(eval(window) in text for window in windows)


def test_good_data_has_no_warnings(tmp_path, noise):
    shown, warnings = report(random_data(tmp_path / "d", noise[:250_000], noise[250_000:]))
    assert warnings == []
    assert shown.endswith("nothing to warn of")
    assert "repetition: 0.0% of the training text occurs twice, 0.0% of the validation text is in it" in shown


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda n: (n[:1000], n[1000:1010]), {}, r"the val split .10 tokens. is shorter than a block of 16"),
        (lambda n: (n[:1000], n[1000:1500]), {}, "fewer than 64 blocks of 16: its loss will be noisy"),
        (lambda n: (n[:1000], n[1000:9000]), {"parameters": 1001}, r"fewer training tokens .1,000. than parameters"),
        (lambda n: (np.tile(n[:50_000], 2), n[100_000:]), {}, "50% of the training text is repeated: try --dedup"),
        (lambda n: (n[:200_000], n[150_000:]), {}, "3[345]% of the validation text is in the training text"),
        (lambda n: (n[:100_000] % 5, n[100_000:] % 5), {}, "only 5 of 257 tokens of the vocabulary occur"),
        (lambda n: (n[:100_000] % 256, n[100_000:]), {}, "a single document makes up 100%"),
    ],
)
def test_what_will_go_wrong_is_warned_of(tmp_path, noise, change, options, message):
    _, warnings = report(random_data(tmp_path / "d", *change(noise)), **options)
    assert any(re.search(message, warning) for warning in warnings), warnings


def test_a_single_document_is_warned_of(tmp_path, noise):
    directory = random_data(tmp_path / "d", noise[:250_000], noise[250_000:], documents=0)
    assert any("all text is one document" in warning for warning in report(directory)[1])


def test_repeated_passages_are_found_wherever_they_stand():
    noise = np.random.default_rng(1).integers(1000, size=50_000)
    moved = np.concatenate([noise[17:20_000], noise[40_000:]])
    common = np.isin(passages(moved), passages(noise)).mean()
    assert common > 0.99  # but for those across the seam
    assert len(passages(noise)) == pytest.approx(50_000 / 16, rel=0.1)
    assert len(passages(noise[: PASSAGE - 1])) == 0


def test_files_that_were_changed_are_found_by_their_sha256(tmp_path, text, capsys):
    writer.write(tmp_path / "data", text, "char", 0.1, "made up")
    main(["check-data", str(tmp_path / "data"), "--sha256"])
    assert capsys.readouterr().out.count(", as written") == 2
    with open(tmp_path / "data" / "val.bin", "r+b") as file:
        file.write(b"\2\0\1\0")
    with pytest.raises(SystemExit) as stopped:
        main(["check-data", str(tmp_path / "data"), "--sha256"])
    assert stopped.value.code == 2
    assert "the val split was changed: its SHA-256 is" in capsys.readouterr().err


def test_shards_are_examined_as_one(tmp_path, monkeypatch, text):
    monkeypatch.setattr(documents, "PIECE", 1 << 10)
    (tmp_path / "in.txt").write_text(text)
    for i in (1, 2):
        prepare([str(tmp_path / "in.txt")], tmp_path / "data", "bytes", 0.2, shard=(i, 2), say=lambda text: None)
    meta = merge(tmp_path / "data", say=lambda text: None)
    shown, _ = report(tmp_path / "data", sha256=True)
    assert f"train: {meta['splits']['train']['tokens']:,} tokens in 2 files" in shown
