"""Checkpoints of nanoGPT, made here by plain torch code, go on in ours with its logits and settings.

Exports in its format have our model's logits, or are refused.
"""

import dataclasses
import pickle
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import randomize
from nanogpts import ARGS, Theirs
from shapes import CASES, CHARACTERS, make_checkpoint

from nanogpt import GPTConfig, checkpoint, rundir
from nanogpt.cli import main
from nanogpt.hub.load import load, load_checkpoint
from nanogpt.hub.nanogpt import export, import_checkpoint, require_nanogpts
from nanogpt.text.tokenizer import char_tokenizer

SETTINGS = {"batch_size": 4, "gradient_accumulation_steps": 1, "max_iters": 12, "eval_interval": 3, "eval_iters": 2}
SETTINGS |= {"learning_rate": 1e-2, "min_lr": 1e-3, "warmup_iters": 2, "lr_decay_iters": 10, "decay_lr": True}
SETTINGS |= {"weight_decay": 0.2, "beta1": 0.8, "beta2": 0.99, "grad_clip": 0.5, "log_interval": 1}
SETTINGS |= {"always_save_checkpoint": True, "device": "cpu", "dtype": "bfloat16", "dataset": "made_up"}


def write(path: Path, theirs: Theirs, **other) -> Path:
    contents = {"model": theirs.state_dict(), "model_args": theirs.args, "iter_num": 3, "config": SETTINGS}
    torch.save(contents | {"best_val_loss": torch.tensor(2.5)} | other, path)
    return path


def random_model(vocab_size: int, bias: bool = True) -> Theirs:
    return randomize(Theirs(vocab_size, bias))


@pytest.fixture
def theirs_data(tmp_path, text) -> Path:
    """A data directory as nanoGPT's shakespeare_char/prepare.py writes it."""
    directory = tmp_path / "theirs"
    directory.mkdir()
    characters = sorted(set(text))
    ids = np.array([characters.index(c) for c in text], dtype=np.uint16)
    ids[: len(ids) * 9 // 10].tofile(directory / "train.bin")
    ids[len(ids) * 9 // 10 :].tofile(directory / "val.bin")
    itos = dict(enumerate(characters))
    meta = {"vocab_size": len(characters), "itos": itos, "stoi": {c: i for i, c in itos.items()}}
    (directory / "meta.pkl").write_bytes(pickle.dumps(meta))
    return directory


@pytest.fixture
def vocab_size(text) -> int:
    return len(set(text))


@pytest.fixture
def imported(tmp_path, theirs_data, vocab_size):
    """Imports a checkpoint in which some values are others."""

    def make(**other) -> Path:
        return import_checkpoint(
            write(tmp_path / "ckpt.pt", random_model(vocab_size), **other), theirs_data, tmp_path / "out"
        )

    return make


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "_orig_mod.module."])
def test_logits_are_theirs(tmp_path, theirs_data, vocab_size, bias, prefix):
    model = random_model(vocab_size, bias)
    mask = torch.ones(1, 1, 16, 16).tril()  # a buffer of nanoGPT's where torch has no fused attention
    state = model.state_dict() | {f"transformer.h.{i}.attn.bias": mask for i in range(2)}
    state = {prefix + name: tensor for name, tensor in state.items()}
    path = write(tmp_path / "ckpt.pt", model, model=state)
    imported = load_checkpoint(import_checkpoint(path, theirs_data, tmp_path / "out"))
    idx = torch.randint(vocab_size, (3, 16))
    with torch.no_grad():
        torch.testing.assert_close(imported(idx), model(idx), atol=1e-5, rtol=0)


def test_what_export_writes_without_optimizer_can_be_imported(tmp_path, theirs_data, vocab_size, imported):
    imported()
    export(tmp_path / "out", tmp_path / "export.pt")
    again = import_checkpoint(tmp_path / "export.pt", theirs_data, tmp_path / "again")
    assert checkpoint.read_json(again / "trainer_state.json")["best_val_loss"] == 2.5
    idx = torch.randint(vocab_size, (3, 16))
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "again")[0](idx), load(tmp_path / "out")[0](idx))


def test_step_loss_and_settings_come_along(tmp_path, theirs_data, imported):
    saved = imported(config=SETTINGS | {"gradient_accumulation_steps": 5})
    assert saved.name == "step-000003" and (tmp_path / "out" / "best").resolve() == saved.resolve()
    state = checkpoint.read_json(saved / "trainer_state.json")
    assert (state["step"], state["tokens"], state["best_val_loss"], state["best_step"]) == (3, 3 * 5 * 4 * 16, 2.5, 3)
    train = checkpoint.load_configs(saved)[1]
    assert (train.beta1, train.beta2, train.weight_decay, train.grad_clip) == (0.8, 0.99, 0.2, 0.5)
    assert (train.lr_schedule, train.warmup_iters, train.lr_decay_iters, train.min_lr) == ("cosine", 2, 10, 1e-3)
    assert sorted(path.name for path in theirs_data.iterdir()) == ["meta.pkl", "train.bin", "val.bin"]


def test_of_their_50304_rows_the_50257_with_a_token_are_kept(tmp_path, text, gpt2_files):
    from nanogpt.text.tokenizer import BPETokenizer

    (tmp_path / "gpt2").mkdir()
    ids = BPETokenizer.get("gpt2").encode(text).astype(np.uint16)
    for split in ("train", "val"):
        ids.tofile(tmp_path / "gpt2" / f"{split}.bin")
    model = random_model(50304)
    saved = import_checkpoint(write(tmp_path / "ckpt.pt", model), tmp_path / "gpt2", tmp_path / "out")
    imported = load_checkpoint(saved)
    assert imported.config.vocab_size == 50257
    idx = torch.from_numpy(ids[:16].astype(np.int64))[None]
    with torch.no_grad():
        torch.testing.assert_close(imported(idx), model(idx)[..., :50257], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["model"].pop("transformer.h.1.mlp.c_fc.weight"), "lacks 'h.1.mlp.c_fc.weight'"),
        (lambda c: c["model_args"].update(n_embd=16), "wte.weight is .64, 8. .* instead of .64, 16."),
        (lambda c: c["model_args"].update(vocab_size=77), "vocabulary has 77 tokens, the data.s .* with --data"),
        (lambda c: c["model_args"].pop("n_head"), "n_head"),
        (lambda c: c["config"].update(batch_size=0), "batch_size=0 must be from 1 to 65536"),
    ],
)  # fmt: skip
def test_what_is_not_nanogpts_is_named_and_nothing_written(tmp_path, theirs_data, vocab_size, change, message):
    contents = torch.load(write(tmp_path / "ckpt.pt", random_model(vocab_size)))
    change(contents)
    torch.save(contents, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match=f"ckpt.pt cannot be imported .*{message}") as error:
        import_checkpoint(tmp_path / "ckpt.pt", theirs_data, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_command_that_is_shown_goes_on(tmp_path, theirs_data, vocab_size, command, recipe, refused):
    words = ["import-nanogpt", write(tmp_path / "ckpt.pt", random_model(vocab_size)), "--data", theirs_data]
    words += ["--out_dir", tmp_path / "out"]
    python, name, *flags = shlex.split(command(*words).splitlines()[-1])
    rundir.CLAIMED.clear()  # as at the end of the command's process
    done = recipe(Path(name).stem, *flags, "--device=cpu")
    assert done.returncode == 0, done.stderr
    assert python == "python" and "other settings" not in done.stdout
    assert "resuming from step 3" in done.stdout and (tmp_path / "out" / "step-000012").is_dir()
    assert "already holds a run" in refused(main, [str(word) for word in words])


def test_early_checkpoints_have_biases_and_a_constant_rate_stays_one(vocab_size, imported):
    args = {name: value for name, value in Theirs(vocab_size, True).args.items() if name != "bias"}
    config, train = checkpoint.load_configs(imported(config={"decay_lr": False}, model_args=args))
    assert config.bias and (train.lr_schedule, train.warmup_iters) == ("constant", 0)


CONFIG = GPTConfig(**ARGS, vocab_size=70)


@pytest.mark.parametrize("bias", [True, False])
def test_logits_are_the_same_there(tmp_path, bias):
    make_checkpoint(tmp_path / "run", dataclasses.replace(CONFIG, bias=bias), char_tokenizer(CHARACTERS))
    main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "new" / "ckpt.pt"), "--format", "nanogpt"])
    contents = torch.load(tmp_path / "new" / "ckpt.pt", weights_only=True)
    assert contents["model_args"] == ARGS | {"vocab_size": 70, "bias": bias}
    assert (contents["iter_num"], contents["best_val_loss"]) == (7, 2.0)
    nanogpt_model = Theirs(70, bias)
    nanogpt_model.load_state_dict(contents["model"])  # strict: all of the names, and no others
    idx = torch.randint(70, (3, 16))
    with torch.no_grad():
        torch.testing.assert_close(nanogpt_model(idx), load(tmp_path / "run")[0](idx), atol=1e-5, rtol=0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["ckpt.pt"]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dataclasses.asdict(CASES["llama"]), "norm=rmsnorm"),
        ({"mlp": "gelu_tanh"}, "mlp=gelu_tanh"),
        ({"tie_embeddings": False}, "tie_embeddings=False"),
        ({"n_kv_head": 1}, "kv_heads=1"),
        ({"head_dim": 8}, "head_size=8"),
        ({"n_inner": 48}, "inner=48"),
    ],
)
def test_what_nanogpt_cannot_hold_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        require_nanogpts(dataclasses.replace(CONFIG, **changes))
    require_nanogpts(dataclasses.replace(CONFIG, n_kv_head=2, head_dim=4, n_inner=32, dropout=0.1))
