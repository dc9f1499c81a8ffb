"""Graphs for ONNX Runtime compute what transformers does with the same export, or the export is removed."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from shapes import CASES, CHARACTERS, make_checkpoint

from nanogpt.cli import main
from nanogpt.text.tokenizer import char_tokenizer

to_onnx = pytest.importorskip("nanogpt.extras.page.to_onnx", reason="onnx or onnxruntime is not installed")
FAST = ("gpt2", "llama", "qwen3")
MANY = "".join(chr(0x4E00 + i) for i in range(20_000))  # characters, so that the embeddings are most of the file
REST = [name for name in CASES if name not in FAST]


def export(tmp_path: Path, config, tokenizer) -> Path:
    make_checkpoint(tmp_path / "run", config, tokenizer)
    return to_onnx.export(tmp_path / "run", tmp_path / "export", say=lambda text: None)


def open_session(directory: Path):
    return to_onnx.onnxruntime.InferenceSession(directory / to_onnx.FILE, providers=["CPUExecutionProvider"])


def transformers_model(directory: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory).eval()


def empty_cache(session, batch_size: int) -> dict[str, np.ndarray]:
    """As transformers.js makes it: by the graph's own shapes, where every name but batch_size is 0."""
    inputs = [i for i in session.get_inputs() if i.name.startswith("past_key_values.")]
    size = {"batch_size": batch_size}
    shapes = ([size.get(d, 0) if isinstance(d, str) else d for d in i.shape] for i in inputs)
    return {i.name: np.zeros(shape, np.float32) for i, shape in zip(inputs, shapes, strict=True)}


def step(session, ids: np.ndarray, mask: np.ndarray, cache: dict) -> tuple[np.ndarray, dict]:
    """Logits and cache after the tokens ids (B, T), of which mask (B, S + T) leaves some out."""
    positions = (mask.cumsum(-1) - 1).clip(0)[:, -ids.shape[1] :]
    logits, *present = session.run(None, {"input_ids": ids, "attention_mask": mask, "position_ids": positions} | cache)
    return logits, dict(zip(cache, present, strict=True))


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.nightly) for name in REST)])
def test_logits_are_those_of_transformers(tmp_path, name):
    directory = export(tmp_path, dataclasses.replace(CASES[name], block_size=80), char_tokenizer(CHARACTERS))
    session, hf_model = open_session(directory), transformers_model(directory)
    ids = torch.randint(70, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = hf_model(ids).logits.numpy()
    first, cache = step(session, ids[:, :30].numpy(), np.ones((3, 30), np.int64), empty_cache(session, 3))
    rest, cache = step(session, ids[:, 30:].numpy(), np.ones((3, 40), np.int64), cache)  # ten more at once
    np.testing.assert_allclose(np.concatenate((first, rest), axis=1), expected, atol=1e-4, rtol=0)
    assert all(tensor.shape[2] == 40 for tensor in cache.values())


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_texts_padded_on_the_left_have_the_logits_that_they_have_alone(tmp_path, name):
    session = open_session(export(tmp_path, CASES[name], char_tokenizer(CHARACTERS)))
    ids, pad = np.arange(20)[None], 6
    alone, _ = step(session, ids, np.ones_like(ids), empty_cache(session, 1))
    padded = np.concatenate((np.full((1, pad), 69), ids), axis=1)
    mask = np.concatenate((np.zeros((1, pad), np.int64), np.ones_like(ids)), axis=1)
    logits, _ = step(session, padded, mask, empty_cache(session, 1))
    np.testing.assert_allclose(logits[:, pad:], alone, atol=1e-5, rtol=0)
    assert np.isfinite(logits).all()


def test_embeddings_are_stored_once_beside_an_export(tmp_path, capsys):
    make_checkpoint(tmp_path / "run", dataclasses.replace(CASES["gpt2"], vocab_size=20_000), char_tokenizer(MANY))
    to = tmp_path / "export"
    main(["export", str(tmp_path / "run"), "--to", str(to), "--format", "onnx", "--license", "mit"])
    said = capsys.readouterr().out
    assert "GPT2LMHeadModel, verified" in said and "onnx/model.onnx, verified" in said
    assert (to / to_onnx.FILE).stat().st_size < 1.02 * (to / "model.safetensors").stat().st_size + 100_000
    files = {str(path.relative_to(to)) for path in to.rglob("*") if path.is_file()}
    assert {"config.json", "tokenizer.json", "README.md", "onnx/model.onnx"} <= files
    assert str(to) in (to / "README.md").read_text() and ".tmp-" not in (to / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "run"]


@pytest.mark.parametrize("wrong", ["write", "feed"])
def test_a_wrong_export_is_removed(tmp_path, monkeypatch, wrong):
    original = getattr(to_onnx, wrong)

    def write(model, path):
        other = copy.deepcopy(model)
        other.ln_f.weight.data[0] += 1
        original(other, path)

    def feed(tokens, read, past):  # with the cache it reads other tokens
        return original(tokens * (read == 0), read, past)

    monkeypatch.setattr(to_onnx, wrong, locals()[wrong])
    with pytest.raises(ValueError, match="logits differ"):
        export(tmp_path, CASES["qwen3"], char_tokenizer(CHARACTERS))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
