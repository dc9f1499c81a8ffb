import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from nanogpt import GPT, GPTConfig, TrainConfig, checkpoint
from nanogpt.optim import make_optimizers
from nanogpt.tokenizer import CharTokenizer

CONFIG = GPTConfig(vocab_size=5, block_size=8, n_layer=1, n_head=2, n_embd=8)


def trained(seed: int, optimizer: str = "muon"):
    torch.manual_seed(seed)
    model = GPT(CONFIG)
    optimizers = make_optimizers(model, TrainConfig(optimizer=optimizer))
    idx = torch.randint(5, (2, 8))
    model(idx, idx).backward()
    for o in optimizers:
        o.step()
    return model, optimizers


def save(out, step, model, optimizers, best=False, keep=2):
    settings = {"model": vars(CONFIG), "train": vars(TrainConfig())}
    collected = checkpoint.collect(model, optimizers)
    return checkpoint.save(out, {"step": step}, *collected, settings, CharTokenizer("abcde"), keep, best)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_and_optimizer_state_come_back_to_the_bit(tmp_path, optimizer):
    model, optimizers = trained(1, optimizer)
    path = save(tmp_path, 1, model, optimizers)
    other, others = trained(2, optimizer)
    checkpoint.restore(path, other, others)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    for a, b in zip(optimizers, others, strict=True):
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert a.state.get(p, {}).keys() == b.state.get(q, {}).keys()
            assert all(torch.equal(a.state[p][k], b.state[q][k]) for k in a.state.get(p, {}))


def test_the_files_are_safetensors_and_json(tmp_path):
    path = save(tmp_path, 7, *trained(1), best=True)
    assert path.name == "step-000007"
    assert {f.name for f in path.iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "config.json",
        "tokenizer.json",
        "trainer_state.json",
    }
    assert (tmp_path / "last").resolve() == (tmp_path / "best").resolve() == path.resolve()
    assert not list(tmp_path.glob(".*"))
    model = checkpoint.load_model(path)
    assert not model.training and model.config == CONFIG


def test_the_newest_the_last_and_the_best_are_kept(tmp_path):
    model, optimizers = trained(1)
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step, model, optimizers, best=step == 2, keep=2)
    assert [p.name for p in checkpoint.steps(tmp_path)] == ["step-000002", "step-000004", "step-000005"]
    assert checkpoint.find(tmp_path).name == "step-000002"
    assert checkpoint.find(tmp_path, ("last",)).name == "step-000005"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_a_damaged_file_is_noticed_and_the_last_whole_checkpoint_taken(tmp_path, name, damage):
    model, optimizers = trained(1)
    save(tmp_path, 1, model, optimizers)
    newest = save(tmp_path, 2, model, optimizers)
    content = bytearray((newest / name).read_bytes())
    if damage == "gone":
        (newest / name).unlink()
    elif damage == "truncated":
        (newest / name).write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        (newest / name).write_bytes(content)
    said = []
    assert checkpoint.find(tmp_path, ("last",), said.append).name == "step-000001"
    assert len(said) == 1 and f"step-000002 is not whole: {name}" in said[0]
    said.clear()
    assert checkpoint.find(newest, say=said.append).name == "step-000001"
    assert "going on with" in said[0]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": {}}', '{"files": 3}', "[" * 100_000])
def test_a_hostile_state_file_is_no_crash(tmp_path, content):
    path = save(tmp_path, 1, *trained(1))
    (path / "trainer_state.json").write_text(content)
    assert "trainer_state.json is damaged" in checkpoint.check(path)
    with pytest.raises(ValueError, match="no whole checkpoint"):
        checkpoint.find(tmp_path, say=lambda text: None)


def test_an_empty_directory_and_no_directory_are_named(tmp_path):
    (tmp_path / "step-000003").mkdir()
    assert checkpoint.check(tmp_path / "step-000003") == "it is empty"
    with pytest.raises(ValueError, match="step-000003 is not whole: it is empty"):
        checkpoint.find(tmp_path / "step-000003")
    with pytest.raises(ValueError, match="is no directory"):
        checkpoint.find(tmp_path / "nowhere")


def test_a_failed_save_leaves_what_was_there(tmp_path):
    model, optimizers = trained(1)
    save(tmp_path, 1, model, optimizers)

    def full(directory):
        raise OSError(28, "No space left on device")

    weights, moments = checkpoint.collect(model, optimizers)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, {"step": 2}, weights, moments, {}, SimpleNamespace(save=full), 2, False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "step-000001"]
    assert checkpoint.check(tmp_path / "step-000001") is None


def test_a_step_that_is_there_already_is_replaced_as_a_whole(tmp_path):
    save(tmp_path, 1, *trained(1))
    model, optimizers = trained(2)
    path = save(tmp_path, 1, model, optimizers)
    assert checkpoint.check(path) is None
    assert torch.equal(checkpoint.load_model(path).wte.weight, model.wte.weight)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "step-000001"]


def test_a_config_that_is_none_is_named(tmp_path):
    path = save(tmp_path, 1, *trained(1))
    (path / "config.json").write_text(json.dumps({"model": {"n_wings": 2}}))
    with pytest.raises(ValueError, match=r"config.json is not a run's configuration"):
        checkpoint.load_configs(path)
    shutil.rmtree(path)
