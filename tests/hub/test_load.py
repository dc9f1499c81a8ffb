"""What a RUN may be: an out directory, a checkpoint, a transformers directory; for the commands and as a library."""

import contextlib
import io
import pydoc

import conversations
import pytest
import torch

import nanogpt
from data_prep import writer
from data_prep.chat import prepare as prepare_chat
from nanogpt import GPT, GPTConfig, checkpoint
from nanogpt.data.tokenizer import CharTokenizer, load_tokenizer
from nanogpt.hub import export


@pytest.fixture
def run_dir(make_run):
    run = make_run(max_iters=10, eval_interval=5)
    run.train()
    return run.out_dir


def test_a_run_a_checkpoint_and_an_export_load_as_the_same_model(run_dir, tmp_path):
    export.export(run_dir, tmp_path / "export")
    best = checkpoint.load_model(checkpoint.find(run_dir))
    idx = torch.arange(10)[None]
    for model in (
        GPT.from_pretrained(run_dir),
        GPT.from_pretrained(str((run_dir / "best").resolve())),
        GPT.from_pretrained(tmp_path / "export"),
        nanogpt.load(run_dir)[0],
    ):
        assert isinstance(model, GPT) and not model.training
        torch.testing.assert_close(model(idx), best(idx))
        assert model.generate(idx, 3, seed=1).shape == (1, 13)


def test_options_choose_the_checkpoint_and_change_what_leaves_the_weights_alone(run_dir):
    first, last = checkpoint.steps(run_dir)
    model = GPT.from_pretrained(run_dir, which="step-5", dropout=0.5, dtype=torch.bfloat16)
    weight = checkpoint.load_model(first).wte.weight
    assert torch.equal(model.wte.weight, weight.bfloat16()) and model.config.dropout == 0.5
    assert not torch.equal(weight, checkpoint.load_model(last).wte.weight)


CHAT = GPTConfig(block_size=64, n_layer=1, n_head=2, n_embd=16)


def prepare_chats(tmp_path, tokenizer, answer: str = "yes") -> dict:
    """Settings of a run on conversations."""
    found = [conversations.talk("m" * i, answer) for i in range(1, 12)]
    inputs = conversations.write(tmp_path / "in.jsonl", found)
    prepare_chat([inputs], tmp_path / "chats", tokenizer, 64, say=lambda text: None)
    return {"data": str(tmp_path / "chats"), "out_dir": str(tmp_path / "tuned")}


def test_conversations_add_two_tokens_to_the_vocabulary_of_a_run(make_run, tmp_path):
    base = make_run(CHAT, max_iters=2)
    base.train()
    settings = prepare_chats(tmp_path, load_tokenizer(base.out_dir / "last")) | {"init_from": str(base.out_dir)}
    tuned, old, idx = make_run(CHAT, **settings), base.gpt.config.vocab_size, torch.arange(20)[None]
    assert (tuned.gpt.config.vocab_size, tuned.settings["model"]["vocab_size"]) == (old + 2, old + 2)
    with torch.no_grad():
        torch.testing.assert_close(tuned.gpt.eval()(idx)[..., :old], base.gpt.eval()(idx))
        assert torch.equal(tuned.gpt.wte.weight[old + 1], base.gpt.wte.weight[:old].mean(0))
    tuned.train()
    again = make_run(CHAT, resume="last", max_iters=6, **settings)
    assert again.gpt.config.vocab_size == old + 2 and again.start_step == 4
    assert nanogpt.load(settings["out_dir"])[1].special == again.tokenizer.special


def test_conversations_without_room_or_of_another_tokenizer_are_refused(make_run, tmp_path):
    text = "".join(map(chr, range(97, 160))) + "\n"  # 64 characters, and so a full embedding
    for name, letters in (("full", text), ("other", text[2:])):
        writer.write(tmp_path / name, letters * 50, "char", 0.1, name)
    base = make_run(CHAT, max_iters=2, data=str(tmp_path / "full"))
    base.train()
    for tokenizer, complaint in ((load_tokenizer(tmp_path / "full"), "has 66 tokens"), ("bytes", "has 259 tokens")):
        with pytest.raises(ValueError, match=f"{complaint}, and the embeddings of init_from=.* have room for 64: prep"):
            make_run(CHAT, init_from=str(base.out_dir), **prepare_chats(tmp_path, tokenizer))
    base = make_run(CHAT, max_iters=2, data=str(tmp_path / "other"), out_dir=str(tmp_path / "base"))
    base.train()
    others = CharTokenizer(text[:-3] + "\n")
    with pytest.raises(ValueError, match="which is not the tokenizer of init_from"):
        make_run(CHAT, init_from=str(base.out_dir), **prepare_chats(tmp_path, others))


def test_a_directory_that_is_neither_is_an_error(tmp_path, run_dir):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"config\.json"):
        GPT.from_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match="checkpoint='seventh' is not one of best, last, step-N"):
        GPT.from_pretrained(run_dir, which="seventh")


def test_help_of_the_package_shows_how_it_is_used():
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        pydoc.Helper(output=shown).help(nanogpt)
    assert all(word in shown.getvalue() for word in ("load(", "model.generate(", "train.main(", "GPT.from_pretrained"))
