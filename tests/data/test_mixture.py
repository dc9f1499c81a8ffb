"""Several data directories read as one, in given proportions."""

import json

import numpy as np
import pytest
import torch
from directories import change

from nanogpt.data.meta import tokenizer_sha256
from nanogpt.data.mixture import PERIOD, round_shares
from nanogpt.data.tokens import TokenDataset
from nanogpt.text.directories import open_data
from nanogpt.text.tokenizer import byte_tokenizer, char_tokenizer


def directory(path, first: int, tokens: int, tokenizer=None) -> str:
    """Data whose token i is first + i, so that a token shows where it came from."""
    path.mkdir()
    for split in ("train", "val"):
        np.arange(first, first + tokens, dtype="<u4").tofile(path / f"{split}.bin")
    counts = {"tokens": tokens, "bytes": 2 * tokens}
    (tokenizer or byte_tokenizer()).save(path)
    meta = {"vocab_size": 10**6, "dtype": "uint32", "splits": {"train": counts, "val": counts}}
    meta["tokenizer_sha256"] = tokenizer_sha256(path)  # as if it had made these tokens
    (path / "meta.json").write_text(json.dumps(meta))
    return str(path)


@pytest.fixture
def three(tmp_path) -> list[str]:
    sizes = [(0, 5000), (100_000, 1000), (200_000, 3000)]
    return [directory(tmp_path / name, *size) for name, size in zip("abc", sizes, strict=True)]


def test_a_directory_of_a_mixture_that_does_not_exist_is_named(three):
    with pytest.raises(ValueError, match=r"data directory .*/nowhere' does not exist"):
        open_data(f"{three[0]}:0.7,{three[0]}/nowhere:0.3", "train", 16)


def test_shares_are_rounded_to_parts_of_the_period():
    assert round_shares([0.7, 0.3]).tolist() == [7000, 3000]
    assert sum(round_shares([1 / 3] * 3)) == PERIOD
    with pytest.raises(ValueError, match="the smallest share of a mixture is 1e-06"):
        round_shares([1 - 1e-6, 1e-6])


def test_other_shares_or_directories_of_the_same_size_are_another_mixture(tmp_path):
    """A run that is resumed compares these descriptions."""
    a, b = (directory(tmp_path / name, n, 1000) for name, n in (("a", 0), ("b", 5000)))
    for name in "ab":
        change(tmp_path / name, "train", sha256=name)
    mixtures = [f"{a}:0.7,{b}:0.3", f"{a}:0.3,{b}:0.7", f"{b}:0.7,{a}:0.3", f"{a}:7,{b}:3"]
    found = [json.dumps(open_data(mixture, "train", 16).meta["splits"]) for mixture in mixtures]
    assert len(set(found[:3])) == 3 and found[3] == found[0]


def test_directories_of_different_tokenizers_are_refused(three, tmp_path):
    other = directory(tmp_path / "other", 0, 1000, char_tokenizer(sorted(set("abc"))))
    with pytest.raises(ValueError, match="have different tokenizers"):
        open_data(f"{three[0]}:0.5,{other}:0.5", "train", 16)


@pytest.mark.parametrize("shares", [(0.7, 0.3), (0.5, 0.25, 0.25), (0.9137, 0.05, 0.0363)])
def test_after_any_number_of_samples_each_has_had_its_share(three, shares):
    data = open_data(",".join(f"{d}:{s}" for d, s in zip(three, shares, strict=False)), "train", 16)
    source = data.batch(7, 0, 25_000)[0][:, 0].numpy() // 100_000
    for k, share in enumerate(shares):
        had = np.cumsum(source == k)
        assert np.abs(had - share * np.arange(1, 25_001)).max() < 1
        assert abs(had[-1] / 25_000 - share) < 1e-3
    assert shares != (0.7, 0.3) or "".join("abc"[k] for k in source[:10]) == "abaaabaaba"  # as mixture.py says


def test_each_directory_is_read_as_it_is_alone_without_replacement(three):
    data = open_data(f"{three[0]}:0.7,{three[1]}:0.3", "train", 16)
    x, _ = data.batch(7, 0, 3000)
    for k in (0, 1):
        alone = TokenDataset(three[k], "train", 16)
        n = (alone.token_count - 1) // 16  # windows in an epoch
        mine = x[x[:, 0] // 100_000 == k]
        assert torch.equal(mine, alone.batch(7 + k, 0, len(mine))[0])
        epoch = mine[:n, 0]
        assert len(epoch.unique()) == n
        later = data.batch(7, 2 * PERIOD, 30)[0]
        mine = later[later[:, 0] // 100_000 == k]
        assert torch.equal(mine, alone.batch(7 + k, 2 * (7000, 3000)[k], len(mine))[0])


def test_evaluation_reads_every_token_of_all_once(three):
    data = open_data(f"{three[0]}:0.9,{three[1]}:0.1", "val", 16)
    targets = torch.cat([y[y != -1] for _, y in data.whole_split(8)])
    assert sorted(targets.tolist()) == [*range(1, 5000), *range(100_001, 101_000)]  # the first ones are no targets
    assert data.bytes_per_token == 12_000 / 6_000
