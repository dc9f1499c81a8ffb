"""The validation loss: exact, the same for every batch size and number of processes, and safe to interrupt."""

import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from helpers import curve
from texts import write_data

from nanogpt import GPT, GPTConfig, checkpoint
from nanogpt.data.tokens import TokenDataset
from nanogpt.evaluate import evaluate
from nanogpt.text.tokenizer import load_tokenizer


@pytest.fixture
def model(data):
    torch.manual_seed(0)
    dataset = TokenDataset(data, "val", 16)
    shape = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.5}
    model = GPT(GPTConfig(vocab_size=dataset.meta["vocab_size"], **shape))
    model.wte.weight.data.normal_(std=1.0)
    return model, dataset


@pytest.mark.parametrize("stride", [1, 5, 16])
def test_a_stride_gives_each_token_the_context_of_its_window(tmp_path, text, stride):
    write_data(tmp_path / "data", text[:3000])
    dataset = TokenDataset(tmp_path / "data", "val", 16)
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=dataset.meta["vocab_size"], block_size=16, n_layer=1, n_head=2, n_embd=16)).eval()
    gpt.wte.weight.data.normal_(std=1.0)
    tokens = torch.from_numpy(dataset.tokens[:].astype("int64"))
    last = len(tokens) - 17
    losses = {}  # of each target, by the first window that has it
    for start in [*range(0, last, stride), last]:
        window = tokens[start : start + 17]
        each = torch.nn.functional.cross_entropy(gpt(window[None, :-1])[0], window[1:], reduction="none")
        for i, loss in enumerate(each.tolist()):
            losses.setdefault(start + i, loss)
    assert len(losses) == len(tokens) - 1
    expected = sum(losses.values()) / len(losses)
    result = evaluate(gpt, dataset, 3, stride=stride)
    assert result["val_loss"] == pytest.approx(expected, abs=1e-5)
    assert result["val_perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    whole = evaluate(gpt, dataset, 3)["val_loss"]  # windows side by side
    assert (whole == pytest.approx(expected, abs=1e-5)) == (stride == 16)


def test_the_result_is_without_dropout_and_for_any_batch_size(model):
    gpt, dataset = model
    whole = evaluate(gpt.train(), dataset, 3)["val_loss"]
    assert gpt.training
    assert evaluate(gpt, dataset, 1000)["val_loss"] == pytest.approx(whole, abs=1e-6)


def test_the_sampled_estimate_is_near_the_whole_by_seed(model):
    gpt, dataset = model
    whole = evaluate(gpt, dataset, 8)["val_loss"]
    estimates = [evaluate(gpt, dataset, 8, eval_iters=10, seed=seed)["val_loss"] for seed in (1, 1, 2)]
    assert estimates[0] == estimates[1] != estimates[2]
    assert estimates[0] == pytest.approx(whole, abs=0.1)


def test_bits_per_byte_are_those_of_the_text_in_bytes(tmp_path):
    """The bits of a token divided by its bytes; characters have one to four bytes."""
    write_data(tmp_path / "data", "añ你😀" * 100 + "a你" * 50)
    data = TokenDataset(tmp_path / "data", "val", block_size=8)
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=4, block_size=8, n_layer=1, n_head=1, n_embd=8))
    result = evaluate(model, data, batch_size=4)
    size = len(load_tokenizer(tmp_path / "data").decode(data.tokens[:]).encode())
    assert size == 2 * len(data.tokens)  # the end is a你 alone
    assert result["val_bpb"] == pytest.approx(result["val_loss"] / math.log(2) / 2)


@pytest.mark.parametrize("eval_iters", [0, 10])
def test_shares_of_three_processes_add_up_to_those_of_one(model, eval_iters):
    gpt, dataset = model
    alone = evaluate(gpt.eval(), dataset, 4, None, eval_iters, seed=5)
    totals = []
    for process in range(3):
        share = SimpleNamespace(process_index=process, num_processes=3)
        share.reduce = lambda total: totals.append(total) or torch.ones(2)
        evaluate(gpt, dataset, 4, share, eval_iters, seed=5)
        assert not gpt.training
    nats, targets = sum(totals).tolist()
    assert nats / targets == pytest.approx(alone["val_loss"], rel=1e-5)
    assert eval_iters or targets == len(dataset.tokens) - 1


def test_a_run_evaluates_on_the_validation_split(make_run, data):
    run = make_run(max_iters=2, eval_interval=2)
    run.train()
    for split, same in (("val", True), ("train", False)):
        expected = evaluate(run.gpt, TokenDataset(data, split, 16), 4)["val_loss"]
        assert (curve(run.out_dir)[2] == pytest.approx(expected, abs=1e-6)) is same


@pytest.mark.parametrize("step", [0, 2, 4])
def test_a_signal_abandons_an_evaluation_which_is_made_up_for(make_run, tmp_path, monkeypatch, step):
    whole = make_run(max_iters=4, eval_interval=2, out_dir=str(tmp_path / "whole"))
    whole.train()
    run = make_run(max_iters=4, eval_interval=2)
    split = run.val_data.whole_split

    def signalled(*args):
        for number, batch in enumerate(split(*args)):
            assert run.state.step != step or number == 0, "it goes on"
            if run.state.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(run.val_data, "whole_split", signalled)
    with pytest.raises(SystemExit, match="143"):
        run.train()
    assert list(curve(run.out_dir)) == list(range(0, step, 2))
    assert [path.name for path in checkpoint.list_checkpoints(run.out_dir)][-1:] == [f"step-{step:06d}"][: step > 0]
    again = make_run(max_iters=4, eval_interval=2, resume="auto")
    again.train()
    assert curve(again.out_dir) == curve(whole.out_dir) and again.state.best_step == whole.state.best_step
