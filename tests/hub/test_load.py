"""What a RUN may be: an out directory, a checkpoint in it, an export. It is never replaced by another."""

import conversations
import pytest
import torch
from texts import write_data

import nanogpt
from data_prep.chat import prepare as prepare_chat
from nanogpt import GPT, GPTConfig, checkpoint
from nanogpt.hub import export
from nanogpt.hub.load import load, load_checkpoint
from nanogpt.text.tokenizer import char_tokenizer, load_tokenizer


def test_a_run_a_checkpoint_and_an_export_are_one_model(trained_dir, tmp_path):
    export.export(trained_dir, tmp_path / "export", say=lambda text: None)
    best = load_checkpoint(checkpoint.find(trained_dir))
    idx = torch.arange(10)[None]
    for run in (trained_dir, str((trained_dir / "best").resolve()), tmp_path / "export"):
        for model in (GPT.from_pretrained(run), nanogpt.load(run)[0]):
            assert isinstance(model, GPT) and not model.training
            torch.testing.assert_close(model(idx), best(idx))
            assert model.generate(idx, 3, seed=1).shape == (1, 13)


def test_a_checkpoint_of_transformers_trainer_is_not_one_of_ours(trained_dir, tmp_path):
    to = export.export(trained_dir, tmp_path / "checkpoint-20", say=lambda text: None)
    (to / "trainer_state.json").write_text('{"global_step": 20}')
    assert load(to)[2] is None and load(trained_dir)[2] is not None


def test_options_leave_the_weights_alone(trained_dir):
    first, last = checkpoint.list_checkpoints(trained_dir)
    model = GPT.from_pretrained(first, dropout=0.5, dtype=torch.bfloat16)
    weight = load_checkpoint(first).wte.weight
    assert torch.equal(model.wte.weight, weight.bfloat16()) and model.config.dropout == 0.5
    assert not torch.equal(weight, load_checkpoint(last).wte.weight)


def test_a_checkpoint_that_is_not_there_is_not_replaced(run_dir, tmp_path):
    (run_dir / "best").unlink()
    for which in ("best", "step-9"):
        with pytest.raises(ValueError, match="is not a directory"):
            load(run_dir / which)
    with pytest.raises(ValueError, match=r"did you mean .*/step-000010\?"):
        load(run_dir / "step-00010")
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        load(tmp_path)


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


def test_conversations_that_do_not_fit_the_model_are_refused(make_run, tmp_path):
    text = "".join(map(chr, range(97, 160))) + "\n"  # 64 characters, and so a full embedding
    for name, letters in (("full", text), ("other", text[2:])):
        write_data(tmp_path / name, letters * 50, source=name)
        make_run(CHAT, max_iters=2, data=str(tmp_path / name), out_dir=str(tmp_path / f"{name} run")).train()
    with pytest.raises(ValueError, match=r"66 tokens.* room for 64"):
        settings = prepare_chats(tmp_path, load_tokenizer(tmp_path / "full"))
        make_run(CHAT, init_from=str(tmp_path / "full run"), **settings)
    with pytest.raises(ValueError, match=r"which is not the tokenizer of .*/other run"):
        settings = prepare_chats(tmp_path, char_tokenizer(text[:-3] + "\n"))
        make_run(CHAT, init_from=str(tmp_path / "other run"), **settings)
