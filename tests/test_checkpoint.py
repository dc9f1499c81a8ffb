import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nanogpt import GPT, GPTConfig, TrainConfig, checkpoint
from nanogpt.hub.load import load_checkpoint
from nanogpt.optim import make_optimizers
from nanogpt.text.tokenizer import char_tokenizer

FILES = ["model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json", "trainer_state.json"]
CONFIG = GPTConfig(vocab_size=5, block_size=8, n_layer=1, n_head=2, n_embd=8)


def trained(seed: int, optimizer: str = "muon", dtype: torch.dtype = torch.float32):
    torch.manual_seed(seed)
    model = GPT(CONFIG).to(dtype)
    optimizers = make_optimizers(model, TrainConfig(optimizer=optimizer))
    idx = torch.randint(5, (2, 8))
    model(idx, idx).backward()
    for o in optimizers:
        o.step()
    return model, optimizers


def save(out, step, model, optimizers, best=False, keep=2, settings=None, tokenizer="abcde"):
    settings = {"model": vars(CONFIG), "train": vars(TrainConfig())} | (settings or {})
    collected = checkpoint.collect(model, optimizers)
    out.mkdir(exist_ok=True)
    state = checkpoint.State(step, best_step=step if best else None)
    return checkpoint.save(out, state, *collected, settings, char_tokenizer(tokenizer), keep)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_optimizer_state_come_back_to_the_bit(tmp_path, optimizer, dtype):
    model, optimizers = trained(1, optimizer, dtype)
    path = save(tmp_path, 1, model, optimizers)
    other, others = trained(2, optimizer, dtype)
    checkpoint.restore(path, other, others)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    for a, b in zip(optimizers, others, strict=True):
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert a.state.get(p, {}).keys() == b.state.get(q, {}).keys()
            assert all(torch.equal(a.state[p][k], b.state[q][k]) for k in a.state.get(p, {}))


def shown(directory) -> list[str]:
    """Names in a directory but for the run's own mark and lock."""
    return sorted(p.name for p in directory.iterdir() if p.name not in (".run", ".lock", "config.json"))


def test_the_files_are_safetensors_and_json(tmp_path):
    path = save(tmp_path, 7, *trained(1), best=True)
    assert path.name == "step-000007"
    assert {f.name for f in path.iterdir()} == set(FILES)
    assert (tmp_path / "last").resolve() == (tmp_path / "best").resolve() == path.resolve()
    assert {f.name for f in tmp_path.glob(".*")} == {".run", ".lock"}
    model = load_checkpoint(path)
    assert not model.training and model.config == CONFIG


def test_the_newest_the_last_and_the_best_are_kept(tmp_path):
    model, optimizers = trained(1)
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step, model, optimizers, best=step == 2, keep=2)
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == ["step-000002", "step-000004", "step-000005"]
    assert checkpoint.find(tmp_path).name == "step-000002"
    assert checkpoint.find(tmp_path, "last").name == "step-000005"


def test_what_a_run_left_behind_when_it_went_back_to_its_best_goes_first(tmp_path):
    model, optimizers = trained(1)
    for step in (1, 2, 3, 4):
        save(tmp_path, step, model, optimizers, best=step == 1, keep=3)
    for step in (2, 3):  # from its best, step 1, it goes on
        checkpoint.point(tmp_path / "last", tmp_path / f"step-{step - 1:06d}")
        save(tmp_path, step, model, optimizers, keep=2)
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == ["step-000001", "step-000002", "step-000003"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "gone", "a directory"])
def test_a_damaged_file_is_named_and_an_out_directory_falls_back(tmp_path, monkeypatch, name, damage):
    model, optimizers = trained(1)
    save(tmp_path, 1, model, optimizers)
    newest = save(tmp_path, 2, model, optimizers)
    content = (newest / name).read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    # the last byte of a JSON file is a line feed
    contents = {"truncated": content[:-2], "emptied": b"", "flipped": flipped}
    (newest / name).unlink()
    if damage == "a directory":
        (newest / name).mkdir()
    elif damage != "gone":
        (newest / name).write_bytes(contents[damage])
    said = []
    monkeypatch.setattr(checkpoint.logger, "warning", said.append)
    assert checkpoint.find(tmp_path, "last", to_resume=True).name == "step-000001"
    assert len(said) == 1 and "step-000002 is damaged: " in said[0] and name in said[0]
    with pytest.raises(ValueError, match="checkpoint step-000002 is damaged: "):
        checkpoint.find(newest, to_resume=True)


def test_the_optimizers_state_is_read_only_to_resume(tmp_path, monkeypatch):
    path, read, crc32 = save(tmp_path, 1, *trained(1)), [], checkpoint.crc32
    monkeypatch.setattr(checkpoint, "crc32", lambda file: (read.append(file.name), crc32(file))[1])
    assert checkpoint.find(tmp_path) == path
    assert sorted(read) == ["config.json", "model.safetensors", "tokenizer.json"]
    (path / "optimizer.safetensors").unlink()
    assert checkpoint.find(tmp_path) == path
    with pytest.raises(ValueError, match=r"step-000001 is damaged: .*optimizer.safetensors"):
        checkpoint.find(tmp_path, to_resume=True)


def test_an_empty_directory_and_no_directory_are_named(tmp_path):
    (tmp_path / "step-000003").mkdir()
    with pytest.raises(ValueError, match=r"step-000003 is damaged: .*trainer_state\.json"):
        checkpoint.find(tmp_path / "step-000003")
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        (tmp_path / "run").mkdir()
        checkpoint.find(tmp_path / "run")
    with pytest.raises(ValueError, match="is not a directory"):
        checkpoint.find(tmp_path / "nowhere")


def test_a_step_that_is_there_already_is_replaced_as_a_whole(tmp_path):
    save(tmp_path, 1, *trained(1))
    model, optimizers = trained(2)
    path = save(tmp_path, 1, model, optimizers)
    assert checkpoint.find_damage(path) is None
    assert torch.equal(load_checkpoint(path).wte.weight, model.wte.weight)
    assert shown(tmp_path) == ["last", "step-000001"]


@pytest.mark.parametrize("new_is_there", [True, False])
def test_a_kill_between_the_two_renames_of_a_save_loses_no_checkpoint(tmp_path, new_is_there):
    """For a moment neither the old checkpoint nor the new one has its final name."""
    saved = save(tmp_path, 1, *trained(1))
    if new_is_there:  # killed later: the old one is half removed
        shutil.copytree(saved, tmp_path / ".old-step-000001")
        (tmp_path / ".old-step-000001" / "config.json").unlink()
    else:
        saved.rename(tmp_path / ".old-step-000001")
    (tmp_path / ".tmp-step-000001").mkdir()
    checkpoint.remove_leftovers(tmp_path)
    assert checkpoint.find_damage(saved) is None
    assert shown(tmp_path) == ["last", "step-000001"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names open files on Linux only")
def test_all_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    done, fsync, point = [], os.fsync, checkpoint.point
    name = lambda descriptor: Path(os.readlink(f"/proc/self/fd/{descriptor}")).name  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda descriptor: (fsync(descriptor), done.append(name(descriptor))))
    monkeypatch.setattr(checkpoint, "point", lambda link, target: (point(link, target), done.append(link.name)))
    save(tmp_path / "run", 1, *trained(1), best=True)
    files, names = done[: done.index(".tmp-step-000001")], done[done.index(".tmp-step-000001") :]
    assert all(any(file in synced for synced in files) for file in FILES)  # JSON waits under another name
    assert names == [".tmp-step-000001", "best", "last", "run"]


def test_steps_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("step-1000000", "step-000009", "step-999999"):
        (tmp_path / name).mkdir()
    assert [checkpoint.step_of(step) for step in checkpoint.list_checkpoints(tmp_path)] == [9, 999_999, 1_000_000]


def test_of_several_whole_checkpoints_the_newest_is_taken(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, *trained(1), keep=0)
    (tmp_path / "last" / "config.json").unlink()
    assert checkpoint.find(tmp_path).name == "step-000002"


def test_settings_that_a_recipe_of_ones_own_has_added_are_passed_over(tmp_path):
    """Models trained with a subclass of TrainConfig are sampled and evaluated like any other."""
    path = save(tmp_path, 1, *trained(1), settings={"train": vars(TrainConfig(seed=7)) | {"temperature": 0.5}})
    assert checkpoint.load_configs(path)[1].seed == 7


def test_a_process_without_memory_for_copies_gathers_to_the_end(monkeypatch):
    """The others gather with it: they would wait."""
    model, gathered = GPT(GPTConfig(vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=16)), []

    def without_memory():
        raise MemoryError("no memory")

    def full(tensor):
        gathered.append(tensor)
        return SimpleNamespace(cpu=without_memory)

    monkeypatch.setattr(checkpoint, "full_tensor", full)
    with pytest.raises(MemoryError, match="no memory"):
        checkpoint.collect(model, [])
    assert len(gathered) == len(list(model.parameters()))
