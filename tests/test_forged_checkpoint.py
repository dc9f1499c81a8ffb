"""Forged or damaged checkpoints give a one-line error each, and nothing is loaded from them or done to other files."""

import json
import struct

import pytest
import torch
from helpers import seal_again
from test_checkpoint import CONFIG, save, trained

from nanogpt import checkpoint
from nanogpt.hub.load import load_checkpoint

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"


@pytest.fixture
def one(tmp_path):
    """A model, its optimizers, and their checkpoint."""
    model, optimizers = trained(1)
    return model, optimizers, save(tmp_path, 1, model, optimizers)


def forge(file, change) -> None:
    """Changes the tensors of a file, and seals its checkpoint again."""
    tensors = {name: tensor.clone() for name, tensor in checkpoint.read_tensors(file).items()}
    checkpoint.write_tensors(file, change(tensors))
    seal_again(file.parent)


def refused(path, model, optimizers, message: str, name: str = MODEL) -> None:
    """Neither the model alone nor a run can be loaded; both name what is wrong in one line, and change nothing."""
    before = [p.detach().clone() for p in model.parameters()]
    loads = [lambda: checkpoint.restore(path, model, optimizers), lambda: load_checkpoint(path)]
    for load in loads[: 1 + (name == MODEL)]:
        with pytest.raises(ValueError, match=message) as error:
            load()
        assert "\n" not in str(error.value) and name in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def header(size: int, text: str) -> bytes:
    """The beginning of a safetensors file: the size of its JSON header, and the header."""
    return struct.pack("<Q", size) + text.encode()


def tensor(dtype: str, shape: list[int], end: int) -> bytes:
    text = json.dumps({"wte.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}})
    return header(len(text), text)


HEADERS = {
    "a header longer than the file": header(2**62, "{}"),
    "not JSON": header(4, "{{{{"),
    "a tensor beyond the file": tensor("F32", [9], 36),
    "an unknown type": tensor("X9", [0], 0),
    "a pickle": b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.",
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
def test_a_hostile_file_of_tensors_is_one_line(one, kind, name):
    model, optimizers, path = one
    (path / name).write_bytes(HEADERS[kind])
    seal_again(path)
    refused(path, model, optimizers, "cannot be read", name)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda old: {name: value for name, value in old.items() if name != "wte.weight"}, "lacks 'wte.weight'"),
        (lambda old: old | {"../../etc/passwd": torch.zeros(1)}, "unknown '../../etc/passwd'"),
        (lambda old: old | {"wte.weight": torch.zeros(1)}, r"wte.weight is \(1,\) torch.float32 instead of \(64, 8\)"),
        (lambda old: old | {"ln_f.weight": torch.zeros(8, dtype=torch.int64)}, r"ln_f.weight is \(8,\) torch.int64"),
        (lambda old: old | {"ln_f.weight": torch.full((8,), torch.inf)}, "ln_f.weight is not finite everywhere"),
        (lambda old: old | {"ln_f.weight": torch.tensor([1.0] * 7 + [torch.nan])}, "ln_f.weight is not finite"),
    ],
)
def test_tensors_of_another_model_are_refused(one, change, message):
    model, optimizers, path = one
    forge(path / MODEL, change)
    refused(path, model, optimizers, message)


def test_the_state_of_unknown_parameters_is_refused(one):
    model, optimizers, path = one
    forge(path / OPTIMIZER, lambda old: old | {"wpe.bias.exp_avg": torch.zeros(1)})
    refused(path, model, optimizers, "unknown 'wpe.bias.exp_avg'", OPTIMIZER)


@pytest.mark.parametrize(
    "state", [torch.zeros(3), torch.zeros(()), torch.zeros(64, 8, dtype=torch.float16)], ids=["short", "scalar", "half"]
)
def test_state_that_fused_kernels_would_read_out_of_bounds_is_refused(one, state):
    model, optimizers, path = one
    forge(path / OPTIMIZER, lambda old: old | {"wte.weight.exp_avg": state})
    refused(path, model, optimizers, "wte.weight.exp_avg is .*damaged", OPTIMIZER)


def model(**settings) -> dict:
    return {"model": vars(CONFIG) | settings, "train": {}}


@pytest.mark.parametrize(
    "config, message",
    [
        (model(n_layer=10**9), "n_layer=1000000000 .* 1 to 1000"),
        (model(n_layer=20), "lacks 'h.1.attn"),
        (model(n_embd=2**18), "does not belong to this model"),
        (model(n_embd="8"), "n_embd='8'"),
        (model(n_head=0), "config.json"),
        ([], "config.json"),
        ({"model": {}, "train": 3}, "config.json"),
    ],
)
def test_a_hostile_configuration_is_one_line_and_takes_no_memory(one, config, message):
    (one[2] / "config.json").write_text(json.dumps(config))
    seal_again(one[2])
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(one[2])
    assert "\n" not in str(error.value)
