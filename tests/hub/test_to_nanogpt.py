"""Exports in nanoGPT's format have its model's logits (tests/nanogpts.py writes it out), or are refused."""

import dataclasses

import pytest
import torch
from nanogpts import ARGS, Theirs
from shapes import CASES, CHARACTERS, make_checkpoint

from nanogpt import GPTConfig
from nanogpt.cli import main
from nanogpt.data.tokenizer import CharTokenizer
from nanogpt.hub.export import export
from nanogpt.hub.load import load
from nanogpt.hub.to_nanogpt import require_nanogpts

CONFIG = GPTConfig(**ARGS, vocab_size=70)


@pytest.mark.parametrize("bias", [True, False])
def test_logits_are_the_same_there(tmp_path, bias):
    make_checkpoint(tmp_path / "run", dataclasses.replace(CONFIG, bias=bias), CharTokenizer(CHARACTERS))
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
        ({"n_kv_head": 1}, "n_kv_head=1"),
        ({"head_dim": 8}, "head_dim=8"),
        ({"n_inner": 48}, "n_inner=48"),
        ({"norm_eps": 1e-6}, "norm_eps=1e-06"),
        ({"qk_norm": True}, "qk_norm=True"),
    ],
)
def test_what_nanogpt_cannot_hold_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        require_nanogpts(dataclasses.replace(CONFIG, **changes))
    require_nanogpts(dataclasses.replace(CONFIG, n_kv_head=2, head_dim=4, n_inner=32, dropout=0.1))


def test_a_model_that_nanogpt_cannot_hold_leaves_nothing_behind(tmp_path, refused):
    make_checkpoint(tmp_path / "run", CASES["qwen3"], CharTokenizer(CHARACTERS))
    refused(main, ["export", str(tmp_path / "run"), "--to", str(tmp_path / "ckpt.pt"), "--format", "nanogpt"])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["ckpt.pt", "empty"])
def test_a_file_that_is_there_is_not_overwritten(tmp_path, name):
    make_checkpoint(tmp_path / "run", CONFIG, CharTokenizer(CHARACTERS))
    (tmp_path / "ckpt.pt").write_bytes(b"precious")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"{name} exists already"):
        export(tmp_path / "run", tmp_path / name, format="nanogpt")
    assert (tmp_path / "ckpt.pt").read_bytes() == b"precious"
