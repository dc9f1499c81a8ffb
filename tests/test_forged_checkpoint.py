"""Forged or damaged checkpoints: a one-line error each, and nothing is loaded from them."""

import json
import shutil
import struct
import zlib

import pytest
import safetensors
import torch
from packaging.version import Version
from test_checkpoint import CONFIG, save, trained

from nanogpt import checkpoint


def seal_again(path):
    """Makes the state file of a forged checkpoint match its other files, as an attacker would."""
    state = json.loads((path / "trainer_state.json").read_text())
    del state["crc32"]
    for name in state["files"]:
        file = path / name
        state["files"][name] = {"bytes": file.stat().st_size, "crc32": zlib.crc32(file.read_bytes())}
    state["crc32"] = checkpoint.seal(state)
    (path / "trainer_state.json").write_text(json.dumps(state))
    assert checkpoint.check(path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": {}}', '{"files": 3}', "[" * 100_000])
def test_a_hostile_state_file_is_no_crash(tmp_path, content):
    path = save(tmp_path, 1, *trained(1))
    (path / "trainer_state.json").write_text(content)
    assert "trainer_state.json is damaged" in checkpoint.check(path)
    with pytest.raises(ValueError, match="no intact checkpoint"):
        checkpoint.find(tmp_path, say=lambda text: None)


def header(size: int, text: str) -> bytes:
    """The beginning of a safetensors file: the size of its JSON header, and the header."""
    return struct.pack("<Q", size) + text.encode()


HEADERS = {
    "a header longer than the file": header(2**62, "{}"),
    "a header of 99 MB": header(99_000_000, "{}"),
    "not JSON": header(4, "{{{{"),
    "deep nesting": header(200_000, "[" * 100_000 + "]" * 100_000),
    "a tensor beyond the file": header(68, '{"wte.weight":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'),
    "a tensor of 2^62 numbers": header(
        91, '{"wte.weight":{"dtype":"F32","shape":[2147483648,2147483648],"data_offsets":[0,0]}}    '
    ),
    "a type that there is not": header(66, '{"wte.weight":{"dtype":"X9","shape":[0],"data_offsets":[0,0]}}    '),
    "a pickle": b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.",
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_hostile_file_of_tensors_is_one_line(tmp_path, kind, name):
    model, optimizers = trained(1)
    path = save(tmp_path, 1, model, optimizers)
    (path / name).write_bytes(HEADERS[kind])
    seal_again(path)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=name):
        checkpoint.restore(path, model, optimizers)
    if name == "model.safetensors":
        with pytest.raises(ValueError, match=name):
            checkpoint.load_model(path)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("wte.weight"), "lacks 'wte.weight': it does not belong to this model"),
        (lambda t: t.update({"../../etc/passwd": torch.zeros(1)}), "has an unknown '../../etc/passwd'"),
        (
            lambda t: t.update({"wte.weight": torch.zeros(1)}),
            r"wte.weight is \(1,\) torch.float32 instead of \(64, 8\)",
        ),
        (lambda t: t.update({"ln_f.weight": torch.zeros(8, dtype=torch.int64)}), r"ln_f.weight is \(8,\) torch.int64"),
    ],
)
def test_tensors_of_another_model_are_refused_before_anything_is_changed(tmp_path, change, message):
    model, optimizers = trained(1)
    path = save(tmp_path, 1, model, optimizers)
    tensors = checkpoint.read_tensors(path / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    checkpoint.write_tensors(path / "model.safetensors", tensors)
    seal_again(path)
    for load in (lambda: checkpoint.load_model(path), lambda: checkpoint.restore(path, model, optimizers)):
        with pytest.raises(ValueError, match=message):
            load()


@pytest.mark.parametrize(
    "model, message",
    [
        ({"n_layer": 10**9}, "n_layer=1000000000 must be from 1 to 1000"),
        ({"n_layer": 1000}, "has 9 tensors, too few for n_layer=1000"),
        ({"n_embd": 2**18}, "it does not belong to this model"),
        ({"n_embd": 10**9}, "n_embd=1000000000 must be from 1 to 262144"),
        ({"n_embd": "8"}, "n_embd='8' must be int"),
        ({"n_layer": [1]}, r"n_layer=\[1\] must be int"),
        ({"vocab_size": 10**7}, "it does not belong to this model"),
        ({"n_head": 0}, "config.json is not a run's configuration"),
    ],
)
def test_a_hostile_configuration_takes_neither_memory_nor_time(tmp_path, model, message):
    path = save(tmp_path, 1, *trained(1), settings={"model": vars(CONFIG) | model})
    with pytest.raises(ValueError, match=message):
        checkpoint.load_model(path)


def test_names_in_the_manifest_lead_nowhere(tmp_path):
    """Only our own names are ever opened: what else the manifest lists is neither read nor removed."""
    path = save(tmp_path, 1, *trained(1))
    state = json.loads((path / "trainer_state.json").read_text())
    del state["crc32"]
    state["files"] |= {"../../secret": {"bytes": 1, "crc32": 0}, "/etc/passwd": {"bytes": 1, "crc32": 0}}
    (tmp_path.parent / "secret").write_text("x")
    (path / "trainer_state.json").write_text(json.dumps(state | {"crc32": checkpoint.seal(state)}))
    assert checkpoint.check(path) is None
    assert checkpoint.find(tmp_path) == path.resolve()
    assert (tmp_path.parent / "secret").read_text() == "x"


@pytest.mark.parametrize(
    "values, message",
    [
        ({"step": "../../x"}, "step is '../../x'"),
        ({"step": True}, "step is 'True'"),
        ({"step": -1}, "step is '-1'"),
        ({"step": 10**30}, "step is '1000"),
        ({"train_seconds": float("nan")}, "train_seconds is 'nan'"),
        ({"tokens": None}, "tokens is 'None'"),
        ({"best_val_loss": "low"}, "best_val_loss is 'low'"),
        ({"train_seconds": [[[]]]}, "train_seconds is"),
        ({"loss_scale": float("inf")}, "loss_scale is 'inf'"),
        ({"loss_scale_steps": 1.5}, "loss_scale_steps is '1.5'"),
    ],
)
def test_a_state_of_wrong_types_is_named(tmp_path, values, message):
    whole = {"step": 1, "tokens": 2, "train_seconds": 0.5, "skipped_steps": 0}
    whole |= {"evaluated_step": None, "best_val_loss": 2.5, "best_step": 1}
    whole |= {"loss_scale": 2.0**60, "loss_scale_steps": 7}
    checkpoint.write_json(tmp_path / "trainer_state.json", whole)
    assert vars(checkpoint.read_state(tmp_path)) == whole
    checkpoint.write_json(tmp_path / "trainer_state.json", whole | values)
    with pytest.raises(ValueError, match=message):
        checkpoint.read_state(tmp_path)


def test_a_json_file_too_large_to_be_one_of_ours_is_not_read(tmp_path):
    path = tmp_path / "config.json"
    with open(path, "wb") as file:
        file.truncate(2**40)  # a file with a hole: it takes no space
    with pytest.raises(ValueError, match="it has more than 256 MiB"):
        checkpoint.read_json(path)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named_with_the_step_to_go_back_to(tmp_path, name, value):
    model, optimizers = trained(1)
    save(tmp_path, 1, model, optimizers, keep=0)
    spoilt = [save(tmp_path, step, model, optimizers, keep=0) for step in (2, 3)]
    for path in spoilt:
        tensors = {key: tensor.clone() for key, tensor in checkpoint.read_tensors(path / name).items()}
        key = next(key for key in tensors if tensors[key].dim() == 2)
        tensors[key][0, 0] = value
        checkpoint.write_tensors(path / name, tensors)
        seal_again(path)
    back = "step-000001" if name == "model.safetensors" else "step-000002"
    with pytest.raises(ValueError, match=rf"{key} has values that are not finite; go back to .*{back} \(--resume="):
        checkpoint.restore(spoilt[1], model, optimizers)
    shutil.rmtree(tmp_path / "step-000001")
    shutil.rmtree(tmp_path / "step-000002")
    with pytest.raises(ValueError, match="no earlier checkpoint is left"):
        checkpoint.restore(spoilt[1], model, optimizers)


@pytest.mark.parametrize("config", [[], {"model": []}, {"model": 3, "train": []}, {"model": {}, "train": 3}])
def test_a_sealed_configuration_of_wrong_types_is_one_line(tmp_path, config):
    path = save(tmp_path, 1, *trained(1))
    (path / "config.json").write_text(json.dumps(config))
    seal_again(path)
    with pytest.raises(ValueError, match=r"config.json (is not a run's configuration|cannot be read)") as error:
        checkpoint.load_model(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_sealed_tensors_of_wrong_types_are_one_line(tmp_path, dtype):
    if dtype.is_complex and Version(safetensors.__version__) < Version("0.7"):
        pytest.skip("this safetensors writes no complex numbers")
    path = save(tmp_path, 1, *trained(1))
    tensors = {key: tensor.to(dtype) for key, tensor in checkpoint.read_tensors(path / "model.safetensors").items()}
    checkpoint.write_tensors(path / "model.safetensors", tensors)
    seal_again(path)
    with pytest.raises(ValueError, match="it does not belong to this model"):
        checkpoint.load_model(path)


def test_moments_in_another_precision_are_restored_in_the_weights_own(tmp_path):
    model, optimizers = trained(1, "adamw")
    path = save(tmp_path, 1, model, optimizers)
    tensors = {key: tensor.double() for key, tensor in checkpoint.read_tensors(path / "optimizer.safetensors").items()}
    checkpoint.write_tensors(path / "optimizer.safetensors", tensors)
    seal_again(path)
    checkpoint.restore(path, model, optimizers)
    assert {v.dtype for o in optimizers for state in o.state.values() for v in state.values()} == {torch.float32}
    optimizers[0].step()
