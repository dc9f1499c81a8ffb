import math

import pytest
import torch

from data_prep import writer
from nanogpt import GPT, GPTConfig
from nanogpt.data.tokenizer import load_tokenizer
from nanogpt.data.tokens import TokenDataset
from nanogpt.evaluate import evaluate


@pytest.fixture
def model(data):
    torch.manual_seed(0)
    dataset = TokenDataset(data, "val", 16)
    model = GPT(
        GPTConfig(vocab_size=dataset.meta["vocab_size"], block_size=16, n_layer=1, n_head=2, n_embd=16, dropout=0.5)
    )
    model.wte.weight.data.normal_(std=1.0)
    return model, dataset


def test_whole_split_loss_equals_one_window_after_the_other(model):
    gpt, dataset = model
    tokens = torch.from_numpy(dataset.tokens[:].astype("int64"))
    gpt.eval()
    nats = 0.0
    for start in range(0, len(tokens) - 1, 16):
        begin = min(start, len(tokens) - 17)  # the last window is moved back and counts only what is new in it
        window = tokens[begin : begin + 17]
        losses = torch.nn.functional.cross_entropy(gpt(window[None, :-1])[0], window[1:], reduction="none")
        nats += losses[start - begin :].sum().item()
    expected = nats / (len(tokens) - 1)
    result = evaluate(gpt, dataset, batch_size=5)
    assert result["val_loss"] == pytest.approx(expected, abs=1e-5)
    assert result["val_perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    assert result["val_bpb"] == pytest.approx(expected / math.log(2), rel=1e-4)  # one byte a character


def test_the_result_depends_on_neither_batch_size_nor_processes_and_dropout_is_off(model):
    from nanogpt.evaluate import total_loss

    gpt, dataset = model
    gpt.train()
    whole = evaluate(gpt, dataset, 3)["val_loss"]
    assert gpt.training
    assert evaluate(gpt, dataset, 1000)["val_loss"] == pytest.approx(whole, abs=1e-6)
    shares = sum(total_loss(gpt, dataset.whole_split(7, p, 3), "cpu") for p in range(3))
    assert (shares[0] / shares[1]).item() == pytest.approx(whole, abs=1e-6)
    assert shares[1] == len(dataset.tokens) - 1


def test_the_sampled_estimate_is_near_the_whole_and_depends_on_its_seed(model):
    gpt, dataset = model
    whole = evaluate(gpt, dataset, 8)["val_loss"]
    estimates = [evaluate(gpt, dataset, 8, eval_iters=10, seed=seed)["val_loss"] for seed in (1, 1, 2)]
    assert estimates[0] == estimates[1] != estimates[2]
    assert estimates[0] == pytest.approx(whole, abs=0.1)


def test_bits_per_byte_are_those_of_the_text_in_bytes(tmp_path):
    """Of a text whose characters have one to four bytes, the bits that all of its tokens cost over its bytes."""
    writer.write(tmp_path / "data", "añ你😀" * 100 + "a你" * 50, "char", 0.1, "made up")
    data = TokenDataset(tmp_path / "data", "val", block_size=8)
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=4, block_size=8, n_layer=1, n_head=1, n_embd=8))
    result = evaluate(model, data, batch_size=4)
    size = len(load_tokenizer(tmp_path / "data").decode(data.tokens[:]).encode())
    assert size == 2 * len(data.tokens)  # the end is a你 alone
    bits = result["val_loss"] * len(data.tokens) / math.log(2)
    assert result["val_bpb"] == pytest.approx(bits / size)


@pytest.mark.parametrize("eval_iters", [0, 10])
def test_the_shares_of_three_processes_add_up_to_the_evaluation_of_one(model, eval_iters):
    gpt, dataset = model
    totals = []
    for process, processes in ((0, 1), (0, 3), (1, 3), (2, 3)):
        share = {"eval_iters": eval_iters, "seed": 5, "process": process, "processes": processes}
        evaluate(gpt.eval(), dataset, 4, **share, reduce=lambda total: totals.append(total) or torch.ones(2))
        assert not gpt.training
    torch.testing.assert_close(sum(totals[1:]), totals[0], rtol=1e-5, atol=0)
