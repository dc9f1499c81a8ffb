"""Weights to and from transformers give its own models' logits; what ours cannot be is refused before it is built."""

import dataclasses
import json

import pytest
import torch
import transformers
from helpers import randomize
from safetensors.torch import save_file
from shapes import CASES, GPT2

from nanogpt import GPT
from nanogpt.hub import weights


def hf_logits(model: transformers.PreTrainedModel, idx: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(idx).logits


@pytest.mark.parametrize("name", CASES)
def test_a_round_trip_through_transformers_is_bit_identical(tmp_path, name):
    model = GPT(CASES[name]).eval()
    randomize(model)
    hf_model = weights.to_transformers(model)
    idx = torch.randint(70, (2, 20))
    torch.testing.assert_close(hf_logits(hf_model, idx), model(idx), atol=1e-4, rtol=1e-4)
    hf_model.save_pretrained(tmp_path)
    back = GPT.from_pretrained(tmp_path)
    differ = {f for f in vars(back.config) if getattr(back.config, f) != getattr(model.config, f)}
    assert differ <= {"head_dim", "n_kv_head", "n_inner"}  # which transformers' configuration always has
    for (a, p), (b, q) in zip(model.named_parameters(), back.named_parameters(), strict=True):
        rows = 70 if a in ("wte.weight", "lm_head.weight") else len(p)  # the padding is nobody's
        assert a == b and torch.equal(p[:rows], q[:rows])
    with torch.no_grad():
        assert torch.equal(model(idx), back(idx))


REFERENCES = {
    "gpt2": lambda **k: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=70, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None, **k
        )
    ),
    "llama": lambda **k: transformers.LlamaForCausalLM(transformers.LlamaConfig(**MODERN_SIZES, **k)),
    "qwen3": lambda **k: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**MODERN_SIZES, head_dim=8, **k)),
}
MODERN_SIZES = dict(vocab_size=70, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
MODERN_SIZES |= dict(num_key_value_heads=2, max_position_embeddings=32, bos_token_id=None, eos_token_id=None)


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("gpt2", {}),
        ("gpt2", {"activation_function": "gelu", "tie_word_embeddings": False}),
        ("gpt2, without a prefix", {}),  # as in GPT-2's own files
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", {"rms_norm_eps": 1e-3, "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}),
    ],
)
def test_a_model_made_by_transformers_has_its_logits_here(tmp_path, kind, settings):
    kind, _, plain = kind.partition(", ")
    hf_model = randomize(REFERENCES[kind](**settings))
    if plain:
        hf_model.save_pretrained(tmp_path)
        state = {n.removeprefix("transformer."): p.clone() for n, p in hf_model.state_dict().items()}
        save_file({n: p for n, p in state.items() if n != "lm_head.weight"}, tmp_path / "model.safetensors")
    else:
        hf_model.save_pretrained(tmp_path, max_shard_size="20KB")  # several files
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
    idx = torch.randint(70, (2, 20))
    torch.testing.assert_close(GPT.from_pretrained(tmp_path)(idx), hf_logits(hf_model, idx), atol=1e-4, rtol=1e-4)


# as published in the models' config.json, with the parameters that their cards or papers state
PUBLISHED = {
    "gpt2": ({"n_layer": 12, "n_head": 12, "n_embd": 768}, 124_439_808),
    "SmolLM2-135M": (
        {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
        | {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}
        | {"max_position_embeddings": 8192, "rope_theta": 100000, "rms_norm_eps": 1e-5, "hidden_act": "silu"},
        134_515_008,
    ),
    "Qwen3-0.6B": (
        {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}
        | {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
        | {"max_position_embeddings": 40960, "rope_theta": 1000000, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
        596_049_920,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_have_their_parameters_and_shapes(tmp_path, name):
    config, parameters = PUBLISHED[name]
    gpt2 = {"model_type": "gpt2", "n_positions": 1024, "vocab_size": 50257, "activation_function": "gelu_new"}
    (tmp_path / "config.json").write_text(json.dumps(config if "model_type" in config else gpt2 | config))
    with torch.device("meta"):
        model = GPT(weights.read_config(tmp_path))
        hf_model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    assert model.get_num_params() == parameters == hf_model.num_parameters()
    shapes = {n: tuple(p.shape) for n, p in weights.to_transformers(model).state_dict().items()}
    assert shapes == {n: tuple(p.shape) for n, p in hf_model.state_dict().items()}
    if "rope_theta" in config:
        assert (model.config.rope_theta, model.config.norm_eps) == (config["rope_theta"], config["rms_norm_eps"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_kv_head": 2}, "n_kv_head=2"),
        ({"head_dim": 16}, "head_dim=16"),
        ({"qk_norm": True}, "qk_norm=True"),
        ({"norm": "rmsnorm"}, "norm='rmsnorm', position='learned'"),
        ({"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "qk_norm": True, "bias": True}, "bias=True"),
        ({"mlp": "swiglu"}, "mlp='swiglu'"),
    ],
)
def test_a_configuration_without_a_native_class_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        weights.native_type(dataclasses.replace(GPT2, **changes))


@pytest.mark.parametrize(
    "config, message",
    [
        ({"model_type": "mamba"}, "mamba.*gpt2, llama, qwen3"),
        ({"vocab_size": 5}, "model_type"),
        ({"model_type": "gpt2", "activation_function": "relu"}, "mlp.*relu"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act=gelu"),
        ({"model_type": "llama", "attention_bias": True}, "mlp_bias=False instead of True"),
        ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8}, "use_sliding_window=True"),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope.*linear"),
    ],
)
def test_a_model_that_ours_cannot_be_is_refused(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        weights.read_config(tmp_path)


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        ("gpt2", {"n_layer": 3}, r"lacks an intact h\.2\."),
        ("gpt2", {"vocab_size": 71}, "wte.weight is .127, 32. .* instead of .128, 32."),
        ("llama", {"num_hidden_layers": "2"}, "config.json is not supported"),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused(tmp_path, kind, changes, message):
    REFERENCES[kind]().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message) as error:
        GPT.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", [None, "pytorch_model.bin", "../model.safetensors"])
def test_only_safetensors_in_the_directory_itself_are_read(tmp_path, file):
    model = REFERENCES["gpt2"]()
    model.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path / "model")
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    if file:
        index = {"weight_map": {name: file for name in model.state_dict()}}
        (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model/(pytorch_model.bin|model\.safetensors) cannot be read"):
        GPT.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_half_a_file_is_refused(tmp_path, name):
    REFERENCES["gpt2"]().save_pretrained(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"(model\.safetensors|config\.json) cannot be read"):
        GPT.from_pretrained(tmp_path)
