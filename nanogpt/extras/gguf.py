"""Exports a model as GGUF, the format of llama.cpp and Ollama.

    pip install -e '.[gguf]' -c constraints.txt
    nanogpt export out/shakespeare --to exports/shakespeare.gguf --dtype q8_0

Before the file is finalized, every tensor is read back and compared with the model's.
Specification of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from pathlib import Path

import gguf
import numpy as np
import torch

from nanogpt.hub import weights
from nanogpt.hub.export import end_ids, writing
from nanogpt.hub.load import load
from nanogpt.model import GPT, GPTConfig
from nanogpt.text import bpe, chat
from nanogpt.text.tokenizer import END, EOT

KINDS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", "q8_0": "Q8_0"}
# largest error of a stored weight, as a share of the tensor's largest weight
ERRORS = {"F32": 0.0, "BF16": 2**-8, "F16": 2**-8, "Q8_0": 1 / 127}
BLOCK = 32  # weights of a row that share a scale in Q8_0


def export(
    run: str | Path,
    to: str | Path,
    *,
    dtype: torch.dtype | str = torch.float32,
    license: str = "unknown",
    say=print,
) -> Path:
    """Exports `run` to the file `to` and verifies it.

    `dtype` is a key of KINDS. Norms, biases and positions stay in fp32, and so do matrices whose
    rows Q8_0 cannot divide. Raises as `nanogpt.hub.export.export`; on error nothing is left.
    """
    to, kind = Path(to), KINDS[dtype]
    with writing(to) as file:
        model, tokenizer, _ = load(run, say=say)
        c = model.config
        writer = gguf.GGUFWriter(file, weights.native_type(c))
        if not end_ids(tokenizer, c.vocab_size):  # llama.cpp would take token 11 for it
            tokenizer = tokenizer.with_special([EOT])
        rows = max(c.vocab_size, tokenizer.vocab_size)
        add_tokenizer(writer, tokenizer, rows)
        add_sizes(writer, c, rows)
        writer.add_name(to.stem)
        writer.add_license(license)
        file_type = "ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"
        writer.add_file_type(gguf.LlamaFileType[file_type])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        tensors = to_llama_cpp(model, rows > c.vocab_size)
        for name, tensor in tensors.items():
            divides = kind != "Q8_0" or tensor.size(-1) % BLOCK == 0
            rounded = tensor.dim() == 2 and divides and not name.startswith("position_embd")
            stored = gguf.GGMLQuantizationType[kind if rounded else "F32"]
            writer.add_tensor(name, gguf.quantize(tensor.numpy(), stored), raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        verify(file, tensors)
    if rows > c.vocab_size:
        say(f"note: added {EOT}: llama.cpp needs an end of text; the model never prefers it")
    say(f"{to}: GGUF in {kind}, verified: its {len(tensors)} tensors were read back")
    return to


def add_tokenizer(writer, tokenizer, vocab_size: int) -> None:
    """Writes the tokens. Raises ValueError if llama.cpp has no such tokenizer."""
    kind, parts = gguf.TokenType, tokenizer.to_dict()
    if tokenizer.characters:
        vocab, merges = spell_characters(tokenizer.characters)
    else:
        check_split(tokenizer)
        vocab = parts["model"]["vocab"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in parts["model"]["merges"]]
    found = {i: (f"[PAD{i}]", kind.UNUSED) for i in range(vocab_size)}  # text and type by id
    found |= {i: (token, kind.NORMAL) for token, i in vocab.items()}
    for token in parts.get("added_tokens") or []:
        special = kind.CONTROL if token["special"] else kind.USER_DEFINED
        found[token["id"]] = (token["content"], special)
    end = end_ids(tokenizer, vocab_size)[0]
    tokens, types = zip(*found.values(), strict=True)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges or ["ÿ ÿ"])  # one is required; no text has the byte FF
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_add_bos_token(False)
    if chat.can_chat(tokenizer):
        writer.add_eot_token_id(tokenizer.special[END])
        writer.add_chat_template(chat.TEMPLATE)


def spell_characters(characters: str) -> tuple[dict[str, int], list[str]]:
    """Characters as byte-pair encoding: vocabulary, and merges of each from its UTF-8 bytes."""
    alphabet = bpe.byte_alphabet()
    vocab, merges = {}, {}
    for i, character in enumerate(characters):
        token = "".join(alphabet[byte] for byte in character.encode("utf-8", "surrogatepass"))
        vocab[token] = i
        merges |= {f"{token[:k]} {token[k]}": None for k in range(1, len(token))}
    return vocab, list(merges)


def check_split(tokenizer) -> None:
    """Raises ValueError unless a tokenizer splits text as GPT-2's, or its tokens are bytes."""
    parts, split = tokenizer.to_dict(), tokenizer.backend.pre_tokenizer
    model, decoder = parts["model"], (parts.get("decoder") or {}).get("type")
    normalizer = (parts.get("normalizer") or {}).get("type", "NFC")  # llama.cpp drops NFC
    byte_level = model["type"] == "BPE" and decoder == "ByteLevel" and normalizer == "NFC"
    if not byte_level or (model["merges"] and str(split) != str(bpe.GPT2_SPLIT)):
        raise ValueError(
            "GGUF is for characters, bytes, and byte-level BPE with GPT-2's split: export to a "
            "directory, and convert that with llama.cpp's convert_hf_to_gguf.py"
        )


def to_llama_cpp(model: GPT, added: bool) -> dict[str, torch.Tensor]:
    """The weights by llama.cpp's names, fp32; matrices are (out, in).

    llama.cpp rotates neighboring pairs in Llama, where transformers rotates halves of a head. A
    token that is `added` has the mean of the others' rows, so its logit is never the largest.
    """
    c, found = model.config, {}
    kind = weights.native_type(c)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], c.n_layer)
    transposed = {hf_names[0] for hf_names, flag in weights.layout(c).values() if flag}
    for name, tensor in weights.to_transformers(model).state_dict().items():
        if name == "lm_head.weight" and c.tie_embeddings:
            continue
        tensor = tensor.float().t() if name in transposed else tensor.float()
        heads = {"q_proj": c.n_head, "k_proj": c.kv_heads}.get(name.split(".")[-2])
        if kind == "llama" and heads:
            halves = tensor.view(heads, 2, c.head_size // 2, -1)  # (H, 2, D/2, C)
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        if added and name.endswith(("wte.weight", "embed_tokens.weight", "lm_head.weight")):
            tensor = torch.cat([tensor, tensor.mean(0, keepdim=True)])
        found[names.get_name(name, try_suffixes=(".weight", ".bias"))] = tensor.contiguous()
    return found


def add_sizes(writer, c: GPTConfig, vocab_size: int) -> None:
    """Writes the model's sizes; `vocab_size` counts an added token."""
    writer.add_context_length(c.block_size)
    writer.add_embedding_length(c.n_embd)
    writer.add_block_count(c.n_layer)
    writer.add_feed_forward_length(c.inner)
    writer.add_head_count(c.n_head)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_vocab_size(vocab_size)
    if weights.native_type(c) == "gpt2":
        writer.add_layer_norm_eps(c.norm_eps)
        return
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_rope_dimension_count(c.head_size)
    writer.add_key_length(c.head_size)
    writer.add_value_length(c.head_size)


def verify(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Raises ValueError unless the file has these tensors, rounded as their kinds do."""
    for stored, (name, tensor) in zip(gguf.GGUFReader(file).tensors, tensors.items(), strict=True):
        kind = stored.tensor_type
        read = torch.from_numpy(np.array(gguf.dequantize(stored.data, kind)))
        worst = (read - tensor).abs().max()
        if stored.name != name or not worst <= ERRORS[kind.name] * tensor.abs().max():
            raise ValueError(f"the export is wrong: {name} differs by {worst:.2g}")
