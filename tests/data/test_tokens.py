import json
import os
import pickle
import time
import tracemalloc

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import writer
from nanogpt.data.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, load_tokenizer
from nanogpt.data.tokens import TokenDataset, Tokens, answers, permute, to_device


def numbered(directory, tokens: int, block_size: int, split: str = "train") -> TokenDataset:
    """A data set whose token i is i, so that a window shows where it came from."""
    for name in ("train", "val"):
        np.arange(tokens, dtype="<u4").tofile(directory / f"{name}.bin")
    counts = {"tokens": tokens, "bytes": tokens}
    meta = {"vocab_size": tokens, "dtype": "uint32", "splits": {"train": counts, "val": counts}}
    (directory / "meta.json").write_text(json.dumps(meta))
    return TokenDataset(directory, split, block_size)


def change(directory, split: str, **values) -> None:
    """Changes what meta.json says of a split."""
    meta = json.loads((directory / "meta.json").read_text())
    meta["splits"][split] |= values
    (directory / "meta.json").write_text(json.dumps(meta))


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
@pytest.mark.parametrize("tokens", [17, 66, 100, 1009])  # 66: the last token alone in a batch
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
        (lambda d: (d / "meta.json").unlink(), "every second token of .*train.bin is 0"),
        (lambda d: (d / "meta.json").write_text("{"), "meta.json is damaged .* prepare the data again"),
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


@pytest.mark.parametrize("file", ["/dev/zero", "../train.bin", "a/../train.bin", "..", "", 5, "a/train.bin"])
def test_files_of_a_split_lie_in_the_directory(tmp_path, file):
    numbered(tmp_path, 1000, 16)
    change(tmp_path, "train", files=[file])
    with pytest.raises(ValueError, match=r"meta\.json is damaged .*train: files is .*not a list of names in this dir"):
        TokenDataset(tmp_path, "train", 16)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"tokens": True}, "tokens is 'True'"),
        ({"tokens": 10**30}, "tokens is '1000000"),
        ({"bytes": -1}, "bytes is '-1'"),
        ({"bytes": 0}, "1000 tokens have 0 bytes of text"),
        ({"largest": [3]}, r"largest is '\[3\]'"),
        ({"files": []}, r"files is '\[\]'"),
        ({"sha256": 5}, "sha256 is '5'"),
    ],
)
def test_odd_counts_are_named(tmp_path, values, message):
    numbered(tmp_path, 1000, 16)
    change(tmp_path, "train", **values)
    with pytest.raises(ValueError, match=f"meta.json is damaged .*train: {message}.* prepare the data again"):
        TokenDataset(tmp_path, "train", 16)


@pytest.mark.parametrize(
    "values", [{"vocab_size": 10**9}, {"vocab_size": "7"}, {"vocab_size": 0}, {"dtype": "O"}, {"dtype": ["uint16"]}]
)
def test_a_vocabulary_or_dtype_that_cannot_be_is_named(tmp_path, values):
    numbered(tmp_path, 1000, 16)
    CharTokenizer("ab").save(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"vocab_size": 300} | values))
    with pytest.raises(ValueError, match=f"meta.json is damaged .*{next(iter(values))} is "):
        TokenDataset(tmp_path, "train", 16)


@pytest.mark.parametrize("name", ["meta.json", ".scan.json", "train.bin"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_regular_files_are_read(tmp_path, name, make):
    numbered(tmp_path, 1000, 16)
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    if name == ".scan.json":
        assert len(TokenDataset(tmp_path, "train", 16).tokens) == 1000
    else:
        with pytest.raises(ValueError, match=f"{name} is (missing|damaged .*not a regular file)"):
            TokenDataset(tmp_path, "train", 16)


def test_ids_beyond_the_vocabulary_are_named(tmp_path):
    numbered(tmp_path, 1000, 16)
    with pytest.raises(ValueError, match="contains token 999, but the vocabulary has 65 tokens"):
        TokenDataset(tmp_path, "train", 16, vocab_size=65)


def test_a_block_longer_than_the_split_is_named(tmp_path):
    assert numbered(tmp_path, 1000, 999).windows_per_epoch == 1
    with pytest.raises(ValueError, match=r"block_size=1000 is too long: .* --block_size=999 at most"):
        TokenDataset(tmp_path, "train", 1000)


def test_a_split_without_a_token_to_predict_is_named(tmp_path):
    numbered(tmp_path, 1000, 16)
    (tmp_path / "val.bin").write_bytes(bytes(4))
    change(tmp_path, "val", tokens=1)
    with pytest.raises(ValueError, match=r"val.bin has 1 tokens, too few to predict one"):
        TokenDataset(tmp_path, "val", 1)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere' does not exist"):
        TokenDataset(tmp_path / "nowhere", "train", 16)


def test_nanogpts_directory_serves_as_it_is(tmp_path):
    characters = "ab你😀"
    itos = dict(enumerate(characters))
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 4, "itos": itos, "stoi": {}}))
    np.array([0, 1, 2, 3] * 25 + [0], dtype="<u2").tofile(tmp_path / "train.bin")
    np.array([2] * 99, dtype="<u2").tofile(tmp_path / "val.bin")
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    data = TokenDataset(tmp_path, "train", block_size=16)
    assert data.meta["vocab_size"] == 4 and len(data.tokens) == 101
    assert data.bytes_per_token == 25 * (1 + 1 + 3 + 4) / 100  # the first token is not a target
    assert TokenDataset(tmp_path, "val", block_size=16).bytes_per_token == 3
    assert load_tokenizer(tmp_path).decode([3, 0, 2]) == "😀a你"
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_new_tokens_in_nanogpts_directory_are_noticed(tmp_path):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": {0: "a", 1: "b"}}))
    for tokens in ([0] * 40, [1] * 50):
        for split in ("train", "val"):
            np.array(tokens, dtype="<u2").tofile(tmp_path / f"{split}.bin")
        assert TokenDataset(tmp_path, "train", 16).meta["splits"]["val"]["tokens"] == len(tokens)
    np.array([2] * 50, dtype="<u2").tofile(tmp_path / "train.bin")
    with pytest.raises(ValueError, match="contains token 2, but the vocabulary has 2 tokens"):
        TokenDataset(tmp_path, "train", 16)


def test_without_meta_pkl_its_tokens_are_gpt2s(tmp_path, text, gpt2_files):
    gpt2 = BPETokenizer.gpt2()
    for split, part in (("train", text + " wörld 你好 😀"), ("val", text[:2000])):
        tokens = np.append(gpt2.encode(part), gpt2.eot_id)  # the end of a document is no text
        tokens.astype("<u2").tofile(tmp_path / f"{split}.bin")
    data = TokenDataset(tmp_path, "train", block_size=16)
    assert data.meta["vocab_size"] == 50257
    assert data.meta["splits"]["train"]["bytes"] == len((text + " wörld 你好 😀").encode())
    assert data.meta["splits"]["val"] == {
        **{"tokens": len(gpt2.encode(text[:2000])) + 1, "bytes": 2000},
        "largest": gpt2.eot_id,
    }
    assert load_tokenizer(tmp_path).vocab_size == 50257


@pytest.mark.parametrize("dtype", ["<u4", "<i4", "<i8", "<u8", ">u4"])
@pytest.mark.parametrize("characters", [True, False])
def test_tokens_of_another_width_in_nanogpts_directory_are_refused(tmp_path, text, gpt2_files, dtype, characters):
    ids = BPETokenizer.gpt2().encode(text)
    if characters:
        itos = dict(enumerate(sorted(set(text))))
        ids = CharTokenizer("".join(itos.values())).encode(text)
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": itos}))
    for split in ("train", "val"):
        ids.astype(dtype).tofile(tmp_path / f"{split}.bin")
    with pytest.raises(ValueError, match=r"train\.bin is 0 when read as uint16"):
        TokenDataset(tmp_path, "train", 16)


@pytest.mark.parametrize("vocab_size, dtype", [(16_000, "<u2"), (32_000, "<u2"), (50_257, "<u2"), (50_257, ">u2")])
def test_ids_of_another_vocabulary_are_not_taken_for_gpt2s(tmp_path, gpt2_files, vocab_size, dtype):
    ids = np.minimum(np.random.default_rng(0).zipf(1.2, 20_000) - 1, vocab_size - 1)
    for split in ("train", "val"):
        ids.astype(dtype).tofile(tmp_path / f"{split}.bin")
    with pytest.raises(ValueError, match=r"meta\.json is missing"):
        TokenDataset(tmp_path, "train", 16)


def test_gpt2s_tokens_of_texts_tokenized_line_by_line_are_gpt2s(tmp_path, text, gpt2_files):
    gpt2 = BPETokenizer.gpt2()
    lines = [part for line in (text + " 你好 wörld 😀\n\n").splitlines(True) for part in (gpt2.encode(line), [50256])]
    for split in ("train", "val"):
        np.concatenate(lines).astype("<u2").tofile(tmp_path / f"{split}.bin")
    assert TokenDataset(tmp_path, "train", 16).meta["vocab_size"] == 50257


def test_a_tokenizer_that_did_not_make_the_tokens_is_refused(tmp_path):
    meta = writer.write(tmp_path, "to be or not to be " * 20, "char", 0.1, "a play")
    ByteTokenizer().save(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not the tokenizer of the tokens .*source: a play"):
        TokenDataset(tmp_path, "train", 16)
    del meta["tokenizer_sha256"]  # as earlier versions wrote it
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"tokenizer\.json is not the tokenizer of the tokens"):
        TokenDataset(tmp_path, "train", 16)
    CharTokenizer("abc").save(tmp_path)  # ids up to 7 are in use
    with pytest.raises(ValueError, match=r"tokenizer\.json is not the tokenizer of the tokens"):
        TokenDataset(tmp_path, "train", 16)
    CharTokenizer.train("to be or not to be ").save(tmp_path)
    assert TokenDataset(tmp_path, "train", 16).meta == meta


def test_a_tokenizer_of_the_same_size_that_did_not_make_the_tokens_is_refused(tmp_path):
    writer.write(tmp_path, "abab" * 50, "char", 0.1, "made up")
    CharTokenizer("xy").save(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not the tokenizer of the tokens"):
        TokenDataset(tmp_path, "val", 4)


@pytest.mark.parametrize("size", [1009, 3000, 500])
def test_data_that_replace_those_of_a_run_are_not_read(tmp_path, monkeypatch, size):
    monkeypatch.setattr(Tokens, "RELEASE", 0)  # as after very many windows
    data = numbered(tmp_path, 1009, 16)
    np.zeros(size, dtype="<u4").tofile(tmp_path / "new.bin")
    (tmp_path / "new.bin").replace(tmp_path / "train.bin")
    for _ in range(2):
        x, _ = data.batch(3, 0, 62)
        assert torch.equal(x, torch.from_numpy(data.starts(3, np.arange(62)))[:, None] + torch.arange(16))


def test_data_that_are_overwritten_in_place_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Tokens, "RELEASE", 0)
    data = numbered(tmp_path, 1009, 16)
    np.zeros(1009, dtype="<u4").tofile(tmp_path / "train.bin")
    os.utime(tmp_path / "train.bin", ns=(0, 1))  # another time than before, however coarse the clock
    with pytest.raises(ValueError, match=r"train\.bin was changed while it was read"):
        data.batch(3, 0, 4)


@pytest.mark.parametrize("name", ["train", "val"])
def test_half_a_nanogpt_directory_is_named(tmp_path, name):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": {0: "a"}}))
    np.zeros(50, dtype="<u2").tofile(tmp_path / f"{name}.bin")
    with pytest.raises(ValueError, match=r"meta.json is missing"):
        TokenDataset(tmp_path, "train", 16)
    for split in ("train", "val"):
        (tmp_path / f"{split}.bin").write_bytes(b"\0" * 101)
    with pytest.raises(ValueError, match=r"train.bin has 101 bytes, .*truncated"):
        TokenDataset(tmp_path, "train", 16)


@given(tokens=st.integers(10, 5000), block_size=st.integers(1, 9), seed=st.integers(0, 2**32), epoch=st.integers(0, 3))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_windows_of_any_size_are_disjoint_and_cover_an_epoch(tmp_path, tokens, block_size, seed, epoch):
    data = numbered(tmp_path, tokens, block_size)
    n = data.windows_per_epoch
    starts = np.sort(data.starts(seed, np.arange(epoch * n, (epoch + 1) * n)))
    assert n == (tokens - 1) // block_size
    assert (np.diff(starts)[:-1] == block_size).all()  # the last one ends with the text
    assert starts[0] < block_size or n == 1
    assert starts[-1] + block_size == tokens - 1


@given(cuts=st.lists(st.integers(0, 100), max_size=6), data=st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_many_files_read_as_one(tmp_path, cuts, data):
    whole = np.arange(1000, 1100, dtype="<u2")
    parts = np.split(whole, sorted(cuts))
    for i, part in enumerate(parts):
        part.tofile(tmp_path / f"{i}.bin")
    tokens = Tokens([tmp_path / f"{i}.bin" for i in range(len(parts))], np.dtype("<u2"))
    start, stop = data.draw(st.integers(-5, 105)), data.draw(st.integers(-5, 105))
    assert len(tokens) == 100
    assert np.array_equal(tokens[start:stop], whole[start:stop])
    starts = np.array(data.draw(st.lists(st.integers(0, 90), min_size=1)))
    assert np.array_equal(tokens.windows(starts, 10), whole[starts[:, None] + np.arange(10)])
    assert tokens.largest() == 1099


def test_the_files_that_meta_json_lists_are_one_split(tmp_path):
    whole = numbered(tmp_path, 1009, 16)
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta["splits"]["train"]["files"] = ["train-00001.bin", "train-00002.bin"]
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    whole.tokens[:500].tofile(tmp_path / "train-00001.bin")
    whole.tokens[500:].tofile(tmp_path / "train-00002.bin")
    (tmp_path / "train.bin").unlink()
    again = TokenDataset(tmp_path, "train", 16)
    x, _ = again.batch(3, 0, 62)
    starts = torch.from_numpy(again.starts(3, np.arange(62)))
    assert torch.equal(x, starts[:, None] + torch.arange(16))  # token i is i, across the files as well
    (tmp_path / "train-00002.bin").unlink()
    with pytest.raises(ValueError, match=r"train-00002.bin is missing"):
        TokenDataset(tmp_path, "train", 16)


def test_the_largest_id_is_looked_for_once(tmp_path, monkeypatch):
    numbered(tmp_path, 1000, 16)
    monkeypatch.setattr(Tokens, "largest", lambda self: pytest.fail("looked again"))
    TokenDataset(tmp_path, "train", 16)
    with pytest.raises(ValueError, match="contains token 999"):
        TokenDataset(tmp_path, "train", 16, vocab_size=65)
    monkeypatch.undo()
    np.full(1000, 77, dtype="<u4").tofile(tmp_path / "train.bin")
    os.utime(tmp_path / "train.bin", ns=(0, 1))  # another time than before, however coarse the clock
    with pytest.raises(ValueError, match="contains token 77"):
        TokenDataset(tmp_path, "train", 16, vocab_size=65)


@pytest.mark.alone
def test_ten_billion_tokens_open_at_once_and_are_drawn_without_replacement(tmp_path):
    tokens = 10**10
    for split in ("train", "val"):
        with open(tmp_path / f"{split}.bin", "wb") as file:
            file.truncate(2 * tokens)  # sparse: it takes no room
    counts = {"tokens": tokens, "bytes": tokens, "largest": 0}
    meta = {"vocab_size": 50257, "dtype": "uint16", "splits": {"train": counts, "val": counts}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    tracemalloc.start()
    begin = time.perf_counter()
    data = TokenDataset(tmp_path, "train", 1024)
    data.batch(0, 0, 12)
    seconds = time.perf_counter() - begin
    starts = data.starts(0, np.arange(10**6))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(starts)) == 10**6
    assert starts.max() > 0.99 * tokens
    assert seconds < 1
    assert peak < 200e6


@pytest.mark.slow
def test_memory_stays_flat_while_a_file_is_read(tmp_path):
    tokens = 150_000_000  # 300 MB, which a mapping that is kept would come to hold
    np.zeros(tokens, dtype="<u2").tofile(tmp_path / "train.bin")
    np.zeros(tokens // 100, dtype="<u2").tofile(tmp_path / "val.bin")
    splits = {"train": {"tokens": tokens, "bytes": tokens, "largest": 0}}
    splits["val"] = {"tokens": tokens // 100, "bytes": tokens, "largest": 0}
    meta = {"vocab_size": 65, "dtype": "uint16", "splits": splits}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    data, process = TokenDataset(tmp_path, "train", 64), psutil.Process()
    data.batch(0, 0, 12)
    before = largest = process.memory_info().rss
    for step in range(20_000):
        data.batch(0, step * 12, 12)
        if step % 100 == 0:
            largest = max(largest, process.memory_info().rss)
    assert largest - before < 150e6


def test_tokens_newer_than_what_meta_json_says_of_them_are_looked_through(tmp_path):
    numbered(tmp_path, 1000, 16)
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta["splits"]["train"]["largest"] = 3
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    for nanoseconds, found in ((1, 3), (3, 999)):
        os.utime(tmp_path / "meta.json", ns=(0, 2))
        os.utime(tmp_path / "train.bin", ns=(0, nanoseconds))
        with pytest.raises(ValueError, match=f"contains token {found}, but the vocabulary has 3 tokens"):
            TokenDataset(tmp_path, "train", 16, vocab_size=3)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_inputs_and_targets_never_share_memory(tmp_path, batch_size):
    data = numbered(tmp_path, 1009, block_size=16)
    for x, y in (data.batch(1, 0, batch_size), next(data.whole_split(batch_size))):
        before = x.clone()
        y.fill_(-1)
        assert torch.equal(x, before) and x.is_contiguous() and y.is_contiguous()


def answers_one_by_one(window: list[int], begin: list[int], end: int) -> list[bool]:
    found, inside = [], False
    for place, token in enumerate(window):
        inside = inside or (place >= len(begin) and window[place - len(begin) : place] == begin)
        found.append(inside)
        inside = inside and token != end
    return found


@given(st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=3), st.integers(1, 3))
def test_answers_are_found_in_any_window_also_in_one_that_starts_inside_a_message(rows, length):
    begin = [2, 0, 1][:length]  # as in <|im_start|>assistant: the first token is in no text
    tokens = np.array(rows)
    expected = [answers_one_by_one(row, begin, 3) for row in rows]
    assert answers(tokens, begin, 3).tolist() == expected


@pytest.mark.parametrize("chat", [{"block": 4}, {"answer": [], "end": 3}, {"answer": [1, -2], "end": 3}, {"end": "x"}])
def test_damaged_meta_data_of_conversations_is_one_line(tmp_path, chat):
    numbered(tmp_path, 17, block_size=16)
    change(tmp_path, "train", answers={"tokens": 5, "bytes": 5})
    change(tmp_path, "val", answers={"tokens": 5, "bytes": 5})
    meta = json.loads((tmp_path / "meta.json").read_text())
    good = {"block": 16, "answer": [1, 2, 3, 4], "end": 5}
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"chat": good}))
    assert TokenDataset(tmp_path, "train", 16).batch(0, 0, 1)[1].tolist() == [[-1] * 4 + [5] + [-1] * 11]
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"chat": good | chat}))
    with pytest.raises(ValueError, match=r"meta\.json is damaged .*chat is"):
        TokenDataset(tmp_path, "train", 16)
    change(tmp_path, "val", answers={"tokens": 5, "bytes": 0})
    (tmp_path / "meta.json").write_text(json.dumps(json.loads((tmp_path / "meta.json").read_text()) | {"chat": good}))
    with pytest.raises(ValueError, match=r"val: answers is"):
        TokenDataset(tmp_path, "train", 16)


@pytest.mark.parametrize(
    "device, copies", [("cuda", ["pin", "pin", True, True]), ("mps", [False] * 2), ("cpu", [False] * 2)]
)
def test_only_a_copy_from_pinned_memory_is_not_waited_for(device, copies):
    made = []

    class Tokens:
        def pin_memory(self):
            made.append("pin")
            return self

        def to(self, device, non_blocking):
            made.append(non_blocking)

    to_device((Tokens(), Tokens()), device)
    assert made == copies
