"""GGUF files have the model's weights, sizes and tokens, as gguf, transformers and, by hand, llama.cpp read them."""

import dataclasses
import importlib.util
from itertools import islice

import numpy as np
import pytest
import tiktoken
import torch
from readers import READERS, SHAPES
from shapes import CASES, CHARACTERS, make_checkpoint
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from nanogpt.cli import main
from nanogpt.hub import weights
from nanogpt.hub.load import load
from nanogpt.text import bpe, chat, tokenizer
from nanogpt.text.tokenizer import END, START, BPETokenizer, byte_tokenizer, char_tokenizer

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install -e '.[gguf]'")
to_gguf = pytest.importorskip("nanogpt.extras.gguf")
llama_cpp_is_there = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)
WIDE = "".join(sorted("\n aäßЖ你😀é👍zÿ"))  # of one byte to four


def exported(tmp_path, config, tokenizer, **options):
    """(the file, what gguf reads in it, the model)."""
    make_checkpoint(tmp_path / "run", config, tokenizer)
    to = to_gguf.export(tmp_path / "run", tmp_path / "model.gguf", say=lambda text: None, **options)
    return to, gguf.GGUFReader(to), load(tmp_path / "run")[0]


def fields(reader) -> dict:
    return {name: field.contents() for name, field in reader.fields.items()}


FAST = ("gpt2, biases, tanh", "llama, untied, biases", "qwen3")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in FAST else pytest.mark.nightly) for case in CASES]
)
def test_transformers_reads_the_weights_of_every_shape(tmp_path, case):
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    to, _, model = exported(tmp_path, CASES[case], char_tokenizer(CHARACTERS))
    native = weights.to_transformers(model)
    read = load_gguf_checkpoint(to, return_tensors=True, model_to_load=native)["tensors"]
    expected = native.state_dict()
    assert read.keys() == expected.keys() - ({"lm_head.weight"} if CASES[case].tie_embeddings else set())
    for name, tensor in read.items():
        rows = len(expected[name])  # a token that ends a text was added
        assert torch.equal(tensor[:rows], expected[name]) and len(tensor) == rows + (rows == 70), name


def test_sizes_are_those_of_the_model(tmp_path):
    c = CASES["llama, all heads, own head size"]
    found = fields(exported(tmp_path, c, char_tokenizer(CHARACTERS))[1])
    sizes = {"context_length": 32, "embedding_length": 32, "block_count": 2, "feed_forward_length": c.inner}
    sizes |= {"attention.head_count": 4, "attention.head_count_kv": c.kv_heads, "vocab_size": 71}
    sizes |= {"attention.layer_norm_rms_epsilon": pytest.approx(c.norm_eps), "rope.freq_base": c.rope_theta}
    sizes |= dict.fromkeys(("attention.key_length", "attention.value_length", "rope.dimension_count"), c.head_size)
    assert {name: found[f"llama.{name}"] for name in sizes} == sizes


@pytest.mark.parametrize("dtype, kind", [("bfloat16", "BF16"), ("float16", "F16"), ("q8_0", "Q8_0")])
def test_matrices_are_rounded_and_vectors_are_not(tmp_path, dtype, kind):
    make_checkpoint(tmp_path / "run", dataclasses.replace(CASES["gpt2"], n_inner=80), char_tokenizer(CHARACTERS))
    main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "model.gguf"), "--dtype", dtype])
    model = load(tmp_path / "run")[0]
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    kinds = {name: tensor.tensor_type.name for name, tensor in found.items()}
    assert kinds["token_embd.weight"] == kinds["blk.1.attn_qkv.weight"] == kind
    assert kinds["output_norm.weight"] == kinds["position_embd.weight"] == kinds["blk.0.attn_qkv.bias"] == "F32"
    assert kinds["blk.0.ffn_down.weight"] == ("F32" if kind == "Q8_0" else kind)  # 80 is no multiple of 32
    stored, expected = found["blk.1.attn_qkv.weight"], model.h[1].attn.c_attn.weight.detach()
    read = torch.from_numpy(np.array(gguf.dequantize(stored.data, stored.tensor_type)))
    if kind == "Q8_0":  # 255 steps between the largest weight of a block and its negative
        assert 0 < (read - expected).abs().max() <= expected.abs().max() / 127 * 0.6
    else:
        assert torch.equal(read, expected.to(getattr(torch, dtype)).float())


def as_byte_level_bpe(found: dict) -> Tokenizer:
    """The tokenizer in a file as the library `tokenizers` has it; GPT-2's split."""
    tokens = found["tokenizer.ggml.tokens"]
    plain = [t for t, kind in zip(tokens, found["tokenizer.ggml.token_type"], strict=True) if kind == 1]
    vocab = {token: i for i, token in enumerate(tokens)} | {"ÿ": len(tokens), "ÿÿ": len(tokens) + 1}
    vocab |= {part: len(vocab) + i for i, part in enumerate(bpe.byte_alphabet()) if part not in vocab}
    merges = [tuple(merge.split(" ")) for merge in found["tokenizer.ggml.merges"]]
    for a, b in merges:
        vocab.setdefault(a + b, len(vocab))
    assert len(plain) == len(set(plain))
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return tokenizer


def small_gpt2() -> BPETokenizer:
    """GPT-2's split with merges of a few words."""
    ranks = {bytes([b]): b for b in range(256)} | {b"he": 256, b" t": 257, b" the": 258, b"kn": 259, b" kn": 260}
    special = {"<|endoftext|>": 261}
    split = bpe.GPT2_PATTERN
    return BPETokenizer(tiktoken.Encoding("small", pat_str=split, mergeable_ranks=ranks, special_tokens=special))


TOKENIZERS = {  # and a text, and the token that ends one
    "characters": (char_tokenizer(WIDE), WIDE[::-1] + WIDE + WIDE[1::2], len(WIDE)),
    "bytes": (byte_tokenizer(), "Été, 你", 256),
    "gpt2": (small_gpt2(), "I don't know the king's 12 horses.\n  Été! 你好", 261),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_is_byte_pair_encoding(tmp_path, name):
    tokenizer, text, end = TOKENIZERS[name]
    config = dataclasses.replace(CASES["llama"], vocab_size=tokenizer.vocab_size)
    found = fields(exported(tmp_path, config, tokenizer)[1])
    assert as_byte_level_bpe(found).encode(text).ids == tokenizer.encode(text).tolist()
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert found["tokenizer.ggml.add_bos_token"] is False and found["tokenizer.ggml.eos_token_id"] == end
    assert (found["tokenizer.ggml.tokens"][end], found["tokenizer.ggml.token_type"][end]) == ("<|endoftext|>", 3)


def test_a_token_that_ends_texts_is_added_and_never_the_likeliest(tmp_path, capsys):
    make_checkpoint(tmp_path / "run", CASES["gpt2, untied, own n_inner"], char_tokenizer(CHARACTERS))
    to = to_gguf.export(tmp_path / "run", tmp_path / "model.gguf")
    reader, model = gguf.GGUFReader(to), load(tmp_path / "run")[0]
    found, tensors = fields(reader), {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    assert found["tokenizer.ggml.tokens"][70:] == ["<|endoftext|>"] and found["tokenizer.ggml.eos_token_id"] == 70
    for name, rows in (("token_embd.weight", model.wte.weight), ("output.weight", model.lm_head.weight)):
        torch.testing.assert_close(tensors[name][70], rows[:70].mean(0))
    assert "<|endoftext|>" in capsys.readouterr().out


def test_the_template_of_conversations_is_in_the_file(tmp_path):
    tokenizer = byte_tokenizer().with_special([START, END])
    config = dataclasses.replace(CASES["qwen3"], vocab_size=tokenizer.vocab_size)
    found = fields(exported(tmp_path, config, tokenizer)[1])
    assert found["tokenizer.chat_template"] == chat.TEMPLATE
    assert (found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.eot_token_id"]) == (256, 258)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "q8_0"])
def test_a_wrong_tensor_is_caught_and_nothing_is_left(tmp_path, monkeypatch, dtype):
    right = gguf.quantize

    def wrong(array, kind):
        array = array.copy()
        array.flat[3] += 0.05 * np.abs(array).max()
        return right(array, kind)

    monkeypatch.setattr(gguf, "quantize", wrong)
    with pytest.raises(ValueError, match=r"token_embd.weight.* differs by"):
        exported(tmp_path, CASES["llama"], char_tokenizer(CHARACTERS), dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_split_of_text_that_is_not_gpt2s_is_refused():
    backend = bpe.byte_level({"a": 0, "b": 1, "ab": 2}, [("a", "b")])
    backend.pre_tokenizer = bpe.GPT2_SPLIT
    to_gguf.check_split(tokenizer.Tokenizer(backend))
    others = {"pre_tokenizer": pre_tokenizers.Whitespace(), "decoder": decoders.Fuse(), "normalizer": normalizers.NFD()}
    for part, other in others.items():
        changed = Tokenizer.from_str(backend.to_str())
        setattr(changed, part, other)
        with pytest.raises(ValueError, match="export to a directory"):
            to_gguf.check_split(tokenizer.Tokenizer(changed))


@pytest.mark.manual
@llama_cpp_is_there
@pytest.mark.parametrize("encoding", ["char", "bpe"])
@pytest.mark.parametrize("shape", READERS["llama.cpp (GGUF in F32)"])
def test_llama_cpp_writes_the_same_greedy_tokens(tmp_path, shape, encoding):
    import llama_cpp

    tokenizer = char_tokenizer(WIDE) if encoding == "char" else small_gpt2()
    config = dataclasses.replace(SHAPES[shape], vocab_size=tokenizer.vocab_size, block_size=80)
    to, _, model = exported(tmp_path, config, tokenizer)
    fp32 = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    reader = llama_cpp.Llama(str(to), n_ctx=80, logits_all=True, verbose=False, **fp32)
    ids = torch.arange(60) % tokenizer.vocab_size
    greedy = list(islice(reader.generate(ids[:16].tolist(), temp=0, repeat_penalty=1), 32))
    assert greedy == model.generate(ids[None, :16], 32, temperature=0)[0, 16:].tolist()
    reader.reset()
    reader.eval(ids.tolist())
    with torch.no_grad():
        expected = model(ids[None])[0]
    found = torch.tensor(np.array(reader.scores[:60, : tokenizer.vocab_size]))
    # llama.cpp takes GPT-2's GELU from a table in half precision
    torch.testing.assert_close(found, expected, atol=0.1 if shape == "GPT-2" else 1e-3, rtol=0)
