import json

import numpy as np
import pytest
import torch

from nanogpt.data import TokenDataset, permute


def numbered(directory, tokens: int, block_size: int, split: str = "train") -> TokenDataset:
    """A data set whose token i is i, so that a window shows where it came from."""
    for name in ("train", "val"):
        np.arange(tokens, dtype="<u4").tofile(directory / f"{name}.bin")
    counts = {"tokens": tokens, "bytes": tokens}
    meta = {"vocab_size": tokens, "dtype": "uint32", "splits": {"train": counts, "val": counts}}
    (directory / "meta.json").write_text(json.dumps(meta))
    return TokenDataset(directory, split, block_size)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 1000])
def test_permute_is_a_permutation_that_depends_on_the_key(n):
    orders = [permute(np.arange(n), n, np.array([key], dtype=np.uint64)).tolist() for key in (1, 2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(n))
    assert n < 5 or orders[0] != orders[1]
    assert n < 64 or orders[0] != list(range(n))


@pytest.mark.parametrize("tokens", [1001, 1008, 1009, 17])
def test_no_window_twice_in_an_epoch_and_the_last_one_included(tmp_path, tokens):
    data = numbered(tmp_path, tokens, block_size=16)
    n = data.windows_per_epoch
    assert n == (tokens - 1) // 16
    for epoch in range(3):
        starts = data.starts(7, np.arange(epoch * n, (epoch + 1) * n))
        assert len(set(starts.tolist())) == n
        assert starts.max() == tokens - 1 - 16
        gaps = np.diff(np.sort(starts))[:-1]  # side by side, but for the last one, which ends with the text
        assert (gaps == 16).all()


def test_epochs_cut_and_shuffle_the_text_anew(tmp_path):
    data = numbered(tmp_path, 1009, block_size=16)
    n = data.windows_per_epoch
    first, second = data.starts(7, np.arange(n)), data.starts(7, np.arange(n, 2 * n))
    assert first.min() != second.min()
    assert (np.argsort(first) != np.argsort(second)).any()
    assert (data.starts(8, np.arange(n)) != first).any()


def test_targets_are_one_token_ahead(tmp_path):
    x, y = numbered(tmp_path, 1009, block_size=16).batch(seed=1, first_sample=5, batch_size=3)
    assert x.shape == y.shape == (3, 16)
    assert x.dtype == torch.int64
    assert torch.equal(y, x + 1)
    assert torch.equal(x, x[:, :1] + torch.arange(16))


def test_the_same_samples_whatever_the_batch_split(tmp_path):
    data = numbered(tmp_path, 1009, block_size=16)
    whole, _ = data.batch(3, 120, 12)  # 62 windows in an epoch: this crosses from the second into the third
    parts = [data.batch(3, 120 + i, n)[0] for i, n in ((0, 4), (4, 4), (8, 4))]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("tokens", [17, 100, 1009])
def test_whole_split_predicts_every_token_once(tmp_path, tokens, processes):
    data = numbered(tmp_path, tokens, 16, "val")
    shares = [list(data.whole_split(4, process, processes)) for process in range(processes)]
    assert len({len(share) for share in shares}) == 1  # sharded models need equally many forward passes
    targets = torch.cat([y[y != -1] for share in shares for _, y in share])
    assert sorted(targets.tolist()) == list(range(1, tokens))
    for share in shares:
        for x, y in share:
            assert torch.equal(x[y != -1] + 1, y[y != -1])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda d: (d / "meta.json").unlink(), "meta.json is missing: prepare the data again"),
        (lambda d: (d / "meta.json").write_text("{"), "meta.json is damaged .*: prepare the data again"),
        (lambda d: (d / "meta.json").write_text("{}"), "meta.json is damaged .*KeyError"),
        (lambda d: (d / "train.bin").unlink(), "train.bin is missing"),
        (lambda d: (d / "train.bin").write_bytes(b"\0" * 4001), "train.bin has 4001 bytes, .*truncated"),
        (lambda d: (d / "train.bin").write_bytes(b"\0" * 400), "train.bin has 400 bytes, .*truncated"),
    ],
)
def test_damaged_data_is_named(tmp_path, spoil, message):
    numbered(tmp_path, 1000, 16)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        TokenDataset(tmp_path, "train", 16)


def test_ids_beyond_the_vocabulary_are_named(tmp_path):
    numbered(tmp_path, 1000, 16)
    with pytest.raises(ValueError, match="contains token 999, but the vocabulary has 65 tokens"):
        TokenDataset(tmp_path, "train", 16, vocab_size=65)


def test_a_block_longer_than_the_split_is_named(tmp_path):
    assert numbered(tmp_path, 1000, 999).windows_per_epoch == 1
    with pytest.raises(ValueError, match=r"block_size=1000 is too long: .* --block_size=999 at most"):
        TokenDataset(tmp_path, "train", 1000)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist: prepare"):
        TokenDataset(tmp_path / "nowhere", "train", 16)
