"""The model computes what transformers' GPT-2, Llama and Qwen3 do, with the same weights."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import randomize
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.torch_version import TorchVersion
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import nanogpt.model
from nanogpt.model import GPT, GPTConfig, Ops, attention, plain_attention
from nanogpt.ops.cpu import CPU

GPT2 = GPTConfig(vocab_size=65, block_size=32, n_layer=2, n_head=4, n_embd=32)
MODERN = dataclasses.replace(GPT2, norm="rmsnorm", position="rope", mlp="swiglu", n_kv_head=2, n_inner=48)


def gpt2_reference(model: GPT) -> PreTrainedModel:
    """transformers' GPT-2 with our weights; its Conv1D stores matrices as (in, out), so they are transposed."""
    c = model.config
    settings = {"vocab_size": c.vocab_size, "n_positions": c.block_size, "tie_word_embeddings": c.tie_embeddings}
    settings["activation_function"] = {"gelu": "gelu", "gelu_tanh": "gelu_new"}[c.mlp]
    reference = GPT2LMHeadModel(GPT2Config(n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head, **settings))
    state = {name: torch.zeros_like(p) for name, p in reference.state_dict().items() if name.endswith("bias")}
    state["lm_head.weight"] = head(model)
    for name, p in model.named_parameters():
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            p = p.t()
        if name != "lm_head.weight":
            state[f"transformer.{name}"] = p[: c.vocab_size] if name == "wte.weight" else p
    reference.load_state_dict(state)
    return reference.eval()


def modern_reference(model: GPT) -> PreTrainedModel:
    """transformers' Llama, or with QK-norm Qwen3, with our weights."""
    c = model.config
    settings = {"vocab_size": c.vocab_size, "hidden_size": c.n_embd, "intermediate_size": c.inner}
    settings |= {"num_hidden_layers": c.n_layer, "num_attention_heads": c.n_head, "num_key_value_heads": c.kv_heads}
    settings |= {"head_dim": c.head_size, "max_position_embeddings": c.block_size, "rms_norm_eps": c.norm_eps}
    settings |= {"tie_word_embeddings": c.tie_embeddings, "bos_token_id": None, "eos_token_id": None}
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": c.rope_theta}
    reference = Qwen3ForCausalLM(Qwen3Config(**settings)) if c.qk_norm else LlamaForCausalLM(LlamaConfig(**settings))
    state = {"model.embed_tokens.weight": model.wte.weight[: c.vocab_size], "model.norm.weight": model.ln_f.weight}
    state["lm_head.weight"] = head(model)
    for i, block in enumerate(model.h):
        q, k, v = block.attn.c_attn.weight.split(block.attn.qkv_rows)
        gate, up = block.mlp.c_fc.weight.chunk(2)
        layer = {"input_layernorm": block.ln_1.weight, "post_attention_layernorm": block.ln_2.weight}
        layer |= {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v}
        layer |= {"self_attn.o_proj": block.attn.c_proj.weight, "mlp.down_proj": block.mlp.c_proj.weight}
        layer |= {"mlp.gate_proj": gate, "mlp.up_proj": up}
        if c.qk_norm:
            layer |= {"self_attn.q_norm": block.attn.q_norm.weight, "self_attn.k_norm": block.attn.k_norm.weight}
        state |= {f"model.layers.{i}.{name}.weight": p for name, p in layer.items()}
    reference.load_state_dict(state)
    return reference.eval()


def head(model: GPT) -> torch.Tensor:
    return (model.lm_head or model.wte).weight[: model.config.vocab_size]


SHAPES = {
    "gpt2": (GPT2, {"bias": True, "mlp": "gelu_tanh"}, gpt2_reference),
    "nanogpt": (GPT2, {"bias": False, "mlp": "gelu"}, gpt2_reference),
    "llama": (MODERN, {}, modern_reference),
    "llama-mha": (MODERN, {"n_kv_head": None}, modern_reference),
    "qwen3": (MODERN, {"qk_norm": True}, modern_reference),
    "qwen3-mqa": (MODERN, {"qk_norm": True, "n_kv_head": 1, "head_dim": 16, "rope_theta": 1e6}, modern_reference),
}


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_loss_equal_those_of_transformers(shape, tie):
    base, changes, reference = SHAPES[shape]
    model = randomize(GPT(dataclasses.replace(base, tie_embeddings=tie, **changes)).eval())
    for embedding in filter(None, (model.wte, model.lm_head)):
        embedding.weight.data *= 0.3  # logits of ordinary size, so that 1e-5 means the same for all
    idx = torch.randint(65, (3, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(model)(idx).logits
        logits, loss = model(idx), model(idx[:, :-1], idx[:, 1:])
    assert logits.shape == (3, 32, 65) and expected.std() > 0.3
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    by_transformers = F.cross_entropy(expected[:, :-1].flatten(0, 1), idx[:, 1:].flatten())
    torch.testing.assert_close(loss, by_transformers, atol=1e-5, rtol=1e-5)


def test_logits_to_keep_gives_the_last_positions():
    model = GPT(GPT2).eval()
    idx = torch.randint(65, (2, 9))
    torch.testing.assert_close(model(idx, logits_to_keep=2), model(idx)[:, -2:])


def test_vocabulary_padding_gets_no_probability_and_no_gradient():
    model = GPT(dataclasses.replace(GPT2, tie_embeddings=False))
    assert model.lm_head.weight.shape == (128, 32)
    idx = torch.randint(65, (2, 9))
    model(idx, idx).backward()
    assert model.lm_head.weight.grad[65:].abs().max() == 0
    assert model.lm_head.weight.grad[:65].abs().min() > 0


def test_targets_of_minus_one_do_not_count():
    model = GPT(GPT2).eval()
    idx = torch.randint(65, (1, 8))
    targets = idx.clone()
    targets[:, 3:] = -1
    torch.testing.assert_close(model(idx, targets), model(idx[:, :3], idx[:, :3]))
    torch.testing.assert_close(model(idx, targets, reduction="sum"), 3 * model(idx, targets))


def test_the_train_temperature_divides_the_logits_of_training_and_no_others():
    model, idx = GPT(dataclasses.replace(MODERN, train_temperature=0.8)), torch.randint(65, (2, 16))
    randomize(model)
    logits = model(idx).flatten(0, 1)
    expected = F.cross_entropy(logits / 0.8, idx.flatten())
    torch.testing.assert_close(model.train()(idx, idx), expected)
    torch.testing.assert_close(model.eval()(idx, idx), F.cross_entropy(logits, idx.flatten()))
    assert (expected - model(idx, idx)).abs() > 0.01


def test_gradient_checkpointing_runs_blocks_twice_for_equal_gradients():
    gradients, idx = [], torch.randint(65, (2, 16))
    for checkpointing, order in ((False, [0, 1]), (True, [0, 1, 1, 0])):
        torch.manual_seed(0)
        model, layers = GPT(dataclasses.replace(MODERN, dropout=0.1, gradient_checkpointing=checkpointing)), []
        for i, block in enumerate(model.h):
            block.register_forward_pre_hook(lambda *_, layers=layers, i=i: layers.append(i))
        model(idx, idx).backward()
        model.eval()(idx, idx)
        assert layers == [*order, 0, 1]
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_gpt2_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=50257, bias=True, mlp="gelu_tanh"))
    assert model.get_num_params() == 124_439_808
    untied = GPT(dataclasses.replace(GPT2, tie_embeddings=False))
    assert untied.get_num_params() == GPT(GPT2).get_num_params() + 65 * 32  # padding counts in neither


def test_flops_per_token_by_hand():
    # one layer of C = 8: attention 4 * 64, MLP 8 * 64, norms 3 * 8; output projection 10 * 8
    model = GPT(GPTConfig(vocab_size=10, block_size=4, n_layer=1, n_head=2, n_embd=8))
    matmul_params = 12 * 64 + 3 * 8
    assert model.get_num_params() == matmul_params + 10 * 8 + 4 * 8
    assert model.flops_per_token() == 6 * (matmul_params + 80) + 12 * 1 * 8 * 4


def test_initial_loss_is_that_of_a_uniform_guess():
    torch.manual_seed(0)
    idx = torch.randint(65, (8, 32))
    for config in (GPT2, MODERN):
        assert GPT(config)(idx[:, :-1], idx[:, 1:]).item() == pytest.approx(4.174, abs=0.05)  # ln 65


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_embd": 30}, "n_embd=30 .* n_head=4: .* set head_dim"),
        ({"n_kv_head": 3}, "n_head=4 .* n_kv_head=3"),
        ({"norm": "batchnorm"}, "norm='batchnorm' .* layernorm, rmsnorm"),
        ({"n_layer": 0}, "n_layer=0 .* 1 to 1000"),
        ({"dropout": 1.5}, "dropout=1.5"),
        ({"position": "rope", "head_dim": 5}, "even head size; it is 5"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GPT2, **changes)


def test_dropout_is_in_all_four_places_and_off_in_evaluation():
    model, chances, attend = GPT(dataclasses.replace(GPT2, dropout=0.5)), [], F.scaled_dot_product_attention

    def record(q, k, v, mask, dropout, *args, **kwargs):
        chances.append(dropout)
        return attend(q, k, v, mask, dropout, *args, **kwargs)

    def drop(x, p, training):
        chances.append(p * training)
        return F.dropout(x, p, training)

    model.use(Ops(attention=record, dropout=drop))
    idx = torch.randint(65, (2, 16))
    model(idx, idx)
    assert chances == [0.5] * (1 + 3 * 2)  # the embeddings, and in each of two blocks attention and two branches
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(idx), model(idx))
    assert set(chances[7:]) == {0.0}


def test_projections_into_the_residual_stream_begin_smaller():
    torch.manual_seed(0)
    for name, p in GPT(dataclasses.replace(GPT2, n_layer=8)).named_parameters():
        if p.ndim == 2:  # 1/sqrt(2 n_layer) is a quarter
            assert p.std().item() == pytest.approx(0.005 if "c_proj" in name else 0.02, rel=0.1), name


@pytest.mark.parametrize(
    "device, dtype, capability, masked, repeated",
    [
        ("cuda", torch.bfloat16, 8, False, False),  # the flash kernel takes groups as they are
        ("cuda", torch.float32, 8, False, True),
        ("cuda", torch.float16, 7, False, True),
        ("cuda", torch.bfloat16, 9, True, True),
        ("mps", torch.float32, None, False, True),
    ],
)
def test_keys_are_repeated_if_a_gpu_has_no_gqa_kernel(monkeypatch, device, dtype, capability, masked, repeated):
    got = []
    attend = lambda q, k, v, *_, enable_gqa: got.append((k, v, enable_gqa))  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=capability))
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    with FakeTensorMode():
        q, k = (torch.empty(2, heads, 9, 8, device=device, dtype=dtype) for heads in (6, 2))
        attention(q, k, k, torch.empty(9, 9) if masked else None, 0.0, not masked, enable_gqa=True)
    keys, values, grouped = got[0]
    assert keys.shape == values.shape == (2, 6 if repeated else 2, 9, 8) and grouped is not repeated


@pytest.mark.parametrize("version, T, fused", [("2.11.0", 8, False), ("2.11.0", 9, True), ("2.12.0", 8, True)])
@pytest.mark.parametrize("K", [3, 1])
def test_a_few_queries_are_written_out_for_mps_before_torch_2_12(monkeypatch, version, T, fused, K):
    masks, keys = [], []
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, mask, *args, **options: masks.append(mask))
    written_out = lambda q, k, v, mask: (masks.append(mask), keys.append(k.shape))  # noqa: E731
    monkeypatch.setattr(nanogpt.model, "plain_attention", written_out)
    with FakeTensorMode():
        q, k = (torch.empty(2, heads, T, 64, device="mps") for heads in (3, K))
        attention(q, k, k, causal=True, enable_gqa=K < 3)
        if not fused:
            one = torch.empty(2, 3, 1, 64, device="mps")  # a query after others in the cache
            attention(one, k, k, enable_gqa=K < 3)
    assert (masks == [None]) == fused and keys == [(2, 3, T, 64)] * (0 if fused else 2)
    assert fused or (masks[0].shape == (T, T) and masks[1] is None)


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}, {"n_kv_head": 2, "qk_norm": True}], ids=str)
@pytest.mark.parametrize("ops", [Ops(), CPU], ids=["torch", "cpu"])
def test_with_a_separator_packed_documents_have_the_loss_and_gradient_of_each_alone(settings, ops):
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(MODERN, separator=7, **settings), ops)
    randomize(model)
    documents = [torch.randint(8, 65, (3, n)) for n in (5, 9, 2)]
    for document in documents:
        document[:, 0] = 7
    targets = [torch.randint(65, document.shape) for document in documents]
    packed = model(torch.cat(documents, dim=1), torch.cat(targets, dim=1), reduction="sum")
    alone = sum(model(x, y, reduction="sum") for x, y in zip(documents, targets, strict=True))
    torch.testing.assert_close(packed, alone)
    parameters = list(model.parameters())
    for a, b in zip(torch.autograd.grad(packed, parameters), torch.autograd.grad(alone, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_torch_compile_sees_one_graph_for_all_lengths():
    counter = CompileCounter()
    torch.compiler.reset()
    model = GPT(dataclasses.replace(MODERN, qk_norm=True))
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for T in (32, 16, 24, 8):  # the second one compiles for any length
        idx = torch.arange(T)[None]
        torch.testing.assert_close(compiled(idx, idx), model(idx, idx))
    assert counter.frame_count == 2


@pytest.mark.parametrize("mask", [None, torch.arange(7)[None, :] < 5, torch.ones(7, 7, dtype=torch.bool).tril()])
def test_attention_in_plain_operators_is_torchs(mask):
    q, k, v = torch.randn(2, 3, 1 if mask is None else len(mask), 64), *torch.randn(2, 2, 3, 7, 64)
    expected = F.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(plain_attention(q, k, v, mask), expected)
