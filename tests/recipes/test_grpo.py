"""recipes/grpo.py: rewards for right digits, no held-out questions, and a result that is read here."""

import grpo
import pytest
from shapes import make_checkpoint

import nanogpt
from data_prep import chat_tasks
from nanogpt import GPTConfig
from nanogpt.hub.export import export as write_export
from nanogpt.text.tokenizer import END, START, byte_tokenizer


def test_the_reward_is_the_share_of_right_digits():
    said = ["42", "41", "24", "142", ""]
    completions = [[{"role": "assistant", "content": text}] for text in said]
    assert grpo.reward(completions, ["42"] * len(said)) == [1, 0.5, 0, 0, 0]


@pytest.fixture
def export(tmp_path):
    """An untrained chat model of bytes, in transformers' format."""
    tokenizer = byte_tokenizer().with_special([START, END])
    config = GPTConfig.modern(vocab_size=tokenizer.vocab_size, block_size=64, n_layer=1, n_head=2, n_embd=16)
    make_checkpoint(tmp_path / "run", config, tokenizer)
    write_export(str(tmp_path / "run"), str(tmp_path / "export"), say=lambda line: None)
    return tmp_path / "export"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tasks")
    chat_tasks.prepare(directory, say=lambda line: None)
    return directory


def test_questions_that_validate_are_never_asked(tasks):
    held_out = {messages[-2]["content"] for messages in chat_tasks.held_out(tasks)}
    asked = {row["prompt"][0]["content"]: row["answer"] for row in grpo.ask(tasks, 3000)}
    assert len(held_out) > 100 and not held_out & asked.keys()
    for question, answer in asked.items():
        a, b = (int(number) for number in question.removeprefix("What is ").rstrip("?").split(" + "))
        assert int(answer) == a + b


def test_a_chat_model_goes_to_trl_and_comes_back(tasks, export, tmp_path, monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.setattr(grpo, "PROMPTS", 2)
    monkeypatch.setattr(grpo, "ANSWERS", 2)
    monkeypatch.setattr(grpo, "reward", lambda completions, **columns: [float(i) for i in range(len(completions))])
    grpo.train(str(export), str(tmp_path / "trained"), str(tasks), steps=2, learning_rate=0.01)
    before, after = nanogpt.load(export), nanogpt.load(tmp_path / "trained")
    assert before[0].config == after[0].config and before[1].vocabulary == after[1].vocabulary
    moved = [not a.equal(b) for a, b in zip(before[0].parameters(), after[0].parameters(), strict=True)]
    assert any(moved)
