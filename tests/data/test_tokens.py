"""Windows and batches: a batch is a pure function of (seed, number)."""

import json
import tracemalloc

import numpy as np
import psutil
import pytest
import torch
from directories import numbered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanogpt.data.tokens import TokenDataset, answers, hash64, permute

SHARED_TMP_PATH = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_the_hash_is_splitmix64():
    """Another one would give resumed runs other windows. Values as published, for the seed 0."""
    found = hash64(np.array([0, 0x9E3779B97F4A7C15], dtype=np.uint64))
    assert [hex(x) for x in found] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 1000])
def test_permute_is_a_permutation_that_depends_on_the_key(n):
    first, second = (permute(np.arange(n), n, np.array([key], dtype=np.uint64)) for key in (1, 2))
    assert sorted(first) == sorted(second) == list(range(n))
    assert n < 5 or first.tolist() != second.tolist()
    assert n < 64 or first.tolist() != list(range(n))


@given(
    tokens=st.integers(10, 5000),
    block_size=st.integers(1, 9),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 3),
)
@SHARED_TMP_PATH
def test_windows_are_disjoint_and_cover_an_epoch(tmp_path, tokens, block_size, seed, epoch):
    data = numbered(tmp_path, tokens, block_size)
    n = (tokens - 1) // block_size  # windows in an epoch
    starts = np.sort(data.starts(seed, np.arange(epoch * n, (epoch + 1) * n)))
    assert (np.diff(starts)[:-1] == block_size).all()  # the last one ends with the text
    assert starts[0] < block_size or n == 1
    assert starts[-1] + block_size == tokens - 1


def test_epochs_cut_and_shuffle_the_text_anew(tmp_path):
    data = numbered(tmp_path, 1009, block_size=16)
    n = 1008 // 16
    first, second = data.starts(7, np.arange(n)), data.starts(7, np.arange(n, 2 * n))
    assert first.min() != second.min()
    assert (np.argsort(first) != np.argsort(second)).any()
    assert (data.starts(8, np.arange(n)) != first).any()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_targets_are_one_token_ahead_in_memory_of_their_own(tmp_path, batch_size):
    data = numbered(tmp_path, 1009, block_size=16)
    for x, y in (data.batch(1, 5, batch_size), next(data.whole_split(batch_size))):
        assert x.shape == y.shape == (batch_size, 16) and x.dtype == y.dtype == torch.int64
        assert torch.equal(y, x + 1) and torch.equal(x, x[:, :1] + torch.arange(16))
        assert x.is_contiguous() and y.is_contiguous()
        before = x.clone()
        y.fill_(-1)
        assert torch.equal(x, before)


def test_the_same_samples_whatever_the_batch_split(tmp_path):
    data = numbered(tmp_path, 1009, block_size=16)
    # 62 windows in an epoch: this crosses from the second into the third
    whole, _ = data.batch(3, 120, 12)
    parts = [data.batch(3, 120 + i, 4)[0] for i in (0, 4, 8)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("tokens", [17, 66, 100, 1009])  # 66: the last token alone in a batch
def test_whole_split_predicts_every_token_once(tmp_path, tokens, processes):
    data = numbered(tmp_path, tokens, 16, "val")
    shares = [list(data.whole_split(4, process, processes)) for process in range(processes)]
    assert len({len(share) for share in shares}) == 1  # sharded models need the same number
    batches = [batch for share in shares for batch in share]
    targets = torch.cat([y[y != -1] for _, y in batches])
    assert sorted(targets.tolist()) == list(range(1, tokens))
    assert all(torch.equal(x[y != -1] + 1, y[y != -1]) for x, y in batches)


# Files


@pytest.mark.parametrize("size", [1009, 3000, 500])
def test_data_that_replace_those_of_a_run_are_not_read(tmp_path, monkeypatch, size):
    monkeypatch.setattr(TokenDataset, "RELEASE", 0)  # as after very many windows
    data = numbered(tmp_path, 1009, 16)
    np.zeros(size, dtype="<u4").tofile(tmp_path / "new.bin")
    (tmp_path / "new.bin").replace(tmp_path / "train.bin")
    for first in (0, 31):
        x, _ = data.batch(3, first, 31)
        assert torch.equal(x, x[:, :1] + torch.arange(16)) and x.max() > 900


def zeros(directory, tokens: int, val_tokens: int, block_size: int) -> TokenDataset:
    """A data set of zeros, in sparse files that take no room."""
    splits = {"train": tokens, "val": val_tokens}
    for split, size in splits.items():
        with open(directory / f"{split}.bin", "wb") as file:
            file.truncate(2 * size)
    counts = {name: {"tokens": n, "bytes": n, "largest": 0} for name, n in splits.items()}
    meta = {"vocab_size": 50257, "dtype": "uint16", "splits": counts}
    (directory / "meta.json").write_text(json.dumps(meta))
    return TokenDataset(directory, "train", block_size)


def test_ten_billion_tokens_open_at_once_and_are_drawn_without_replacement(tmp_path):
    tokens = 10**10
    tracemalloc.start()
    data = zeros(tmp_path, tokens, tokens, 1024)
    data.batch(0, 0, 12)
    starts = data.starts(0, np.arange(10**6))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(starts)) == 10**6
    assert starts.max() > 0.99 * tokens
    assert peak < 200e6


def test_memory_stays_flat_while_a_file_is_read(tmp_path):
    # 300 MB, which a mapping that is kept would come to hold
    data, process = zeros(tmp_path, 150_000_000, 1000, 64), psutil.Process()
    data.batch(0, 0, 12)
    before = largest = process.memory_info().rss
    for step in range(200):
        data.batch(0, step * 512, 512)
        largest = max(largest, process.memory_info().rss)
    assert largest - before < 150e6


# Conversations and devices


def answers_one_by_one(window: list[int], begin: list[int], end: int) -> list[bool]:
    found, inside = [], False
    for i, token in enumerate(window):
        inside = inside or (i >= len(begin) and window[i - len(begin) : i] == begin)
        found.append(inside)
        inside = inside and token != end
    return found


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=3),
    st.integers(1, 3),
)
def test_answers_are_found_in_any_window_also_if_it_starts_inside_a_message(rows, length):
    begin = [2, 0, 1][:length]  # as in <|im_start|>assistant: the first token is in no text
    expected = [answers_one_by_one(row, begin, 3) for row in rows]
    assert answers(np.array(rows), begin, 3).tolist() == expected
