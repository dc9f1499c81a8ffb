"""Exports a model as GGUF, the format of llama.cpp and Ollama, with a Modelfile beside it.

    pip install -e '.[gguf]' -c constraints.txt
    nanogpt export out/shakespeare --to exports/shakespeare.gguf --dtype q8_0

Before the file is finalized, every tensor is read back and compared with the model's. If llama_cpp
is installed, llama.cpp reads it too, and its tokens and a greedy continuation are compared with the
model's. Specification of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import importlib.util
import io
from contextlib import redirect_stderr
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from nanogpt import chat
from nanogpt.data import bpe
from nanogpt.data.files import first_line
from nanogpt.data.tokenizer import END, EOT
from nanogpt.hub import weights
from nanogpt.hub.export import (
    check_target,
    load_with_info,
    named_errors,
    real_tokens,
    special_tokens,
)
from nanogpt.model import GPT
from nanogpt.sample import generate

KINDS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", "q8_0": "Q8_0"}
FILE_TYPES = {"F32": "ALL_F32", "BF16": "MOSTLY_BF16", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}
BLOCK = 32  # weights of a row that share a scale in Q8_0
# llama.cpp's names for the patterns by which text is split before byte-pair encoding
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    bpe.GPT2_PATTERN: "gpt-2",
    WORDS % r"\p{N}": "qwen2",
    WORDS % r"\p{N}{1,3}": "llama-bpe",
}
DIGITS = {"type": "Digits", "individual_digits": True}
MODELFILE = '''FROM ./{file}
PARAMETER num_ctx {block_size}
{stop}TEMPLATE """{template}"""
'''
CHAT = """{{ range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""


@dataclass
class Vocabulary:
    """The tokens as llama.cpp reads them."""

    tokens: list[str]  # by id, bytes spelled in GPT-2's alphabet
    types: list[int]  # gguf.TokenType
    merges: list[str]
    split: str
    end: int  # the token that ends a text
    added: bool  # whether the model has no row for it


def require_gguf():
    """The package gguf. Raises ValueError if it is missing."""
    try:
        import gguf
    except ImportError:
        raise ValueError(
            "GGUF needs the package gguf: pip install -e '.[gguf]' -c constraints.txt"
        ) from None
    return gguf


def export(
    run: str | Path,
    to: str | Path,
    *,
    which: str | None = None,
    dtype: torch.dtype | str = torch.float32,
    license: str = "unknown",
    say=print,
) -> Path:
    """Exports `run` to the file `to`, with a Modelfile beside it, and verifies the file.

    `dtype` is a key of KINDS. Norms, biases and positions stay in fp32, and so do matrices whose
    rows Q8_0 cannot divide. Raises ValueError if GGUF cannot hold the model or its tokenizer, if a
    file exists, or if what is read back differs; OSError if it cannot be written. On error nothing
    is left.

    If the directory has a Modelfile, that of another export, the new one is NAME.Modelfile.
    """
    to, gguf = Path(to), require_gguf()
    modelfile = to.with_name("Modelfile")
    if modelfile.exists():
        modelfile = to.with_name(f"{to.name.removesuffix('.gguf')}.Modelfile")
    for path in (to, modelfile):
        check_target(path, directory=False)
    model, tokenizer, _, info = load_with_info(run, which, say)
    vocabulary = read_vocabulary(tokenizer, model.config.vocab_size)
    tensors = to_llama_cpp(model, vocabulary.added)
    kinds = {
        n: gguf.GGMLQuantizationType[kind_of(n, tensor, KINDS[dtype])]
        for n, tensor in tensors.items()
    }
    with (
        named_errors(to),
        TemporaryDirectory(prefix=f".tmp-{to.name}-", dir=to.parent) as directory,
    ):
        temporary, temporary_modelfile = Path(directory, to.name), Path(directory, modelfile.name)
        writer = gguf.GGUFWriter(temporary, weights.native_type(model.config))
        add_sizes(writer, model, len(vocabulary.tokens))
        add_tokenizer(writer, vocabulary, tokenizer)
        writer.add_name(to.stem)
        writer.add_license(license)
        writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[KINDS[dtype]]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for n, tensor in tensors.items():
            writer.add_tensor(n, gguf.quantize(tensor.numpy(), kinds[n]), raw_dtype=kinds[n])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        verify(temporary, tensors, kinds)
        said = f"{to}: GGUF in {KINDS[dtype]}, verified: "
        said += f"its {len(tensors)} tensors, read back, are those of the model"
        if importlib.util.find_spec("llama_cpp"):
            ids = real_tokens(model, info)
            said += f"; {ask_llama_cpp(temporary, model, tokenizer, ids, KINDS[dtype])}"
        temporary_modelfile.write_text(for_ollama(to.name, model, tokenizer), encoding="utf-8")
        temporary.replace(to)
        temporary_modelfile.replace(modelfile)
    if vocabulary.added:
        say(
            f"note: llama.cpp needs a token that ends a text: {EOT} is added, "
            "and is never the most likely token"
        )
    say(f"{said}; for Ollama: {modelfile}")
    return to


def for_ollama(file: str, model: GPT, tokenizer) -> str:
    """The Modelfile."""
    stop, template = "", "{{ .Prompt }}"
    if chat.can_chat(tokenizer):
        stop, template = f'PARAMETER stop "{END}"\n', CHAT
    return MODELFILE.format(
        file=file, block_size=model.config.block_size, stop=stop, template=template
    )


def read_vocabulary(tokenizer, vocab_size: int) -> Vocabulary:
    """Raises ValueError if llama.cpp has no such tokenizer.

    llama.cpp takes token 11 for the end of text where a file names none. So if the tokenizer has
    none, it is a token that the tokenizer does not use, or else a new one.
    """
    gguf, eos_ids = require_gguf(), special_tokens(tokenizer, vocab_size).eos_ids
    parts = tokenizer.to_dict()
    if tokenizer.characters:
        known, merges, split = spell_characters(tokenizer.characters)
    else:
        known, split = parts["model"]["vocab"], name_split(parts)
        merges = [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in parts["model"]["merges"]
        ]
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    for token, i in known.items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
    for token in parts.get("added_tokens") or []:
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        tokens[token["id"]], types[token["id"]] = token["content"], kind
    end = eos_ids[0] if eos_ids else tokenizer.vocab_size
    added = end == vocab_size
    if not eos_ids:
        tokens[end:], types[end:] = (
            [EOT, *tokens[end + 1 :]],
            [gguf.TokenType.CONTROL, *types[end + 1 :]],
        )
    # llama.cpp requires a merge; no text has the byte FF
    return Vocabulary(tokens, types, merges or ["ÿ ÿ"], split, end, added)


def spell_characters(characters: str) -> tuple[dict[str, int], list[str], str]:
    """Characters as byte-pair encoding: each is merged from its UTF-8 bytes only."""
    alphabet = bpe.byte_alphabet()
    spelled = [
        "".join(alphabet[byte] for byte in c.encode("utf-8", "surrogatepass")) for c in characters
    ]
    merges = dict.fromkeys(
        f"{token[:i]} {token[i]}" for token in spelled for i in range(1, len(token))
    )
    return {token: i for i, token in enumerate(spelled)}, list(merges), "gpt-2"


def name_split(parts: dict) -> str:
    """llama.cpp's name for how a tokenizer.json splits text. Raises ValueError if it has none."""
    model, steps = parts["model"], parts.get("pre_tokenizer") or {}
    decoder, normalizer = (
        (parts.get(part) or {}).get("type") for part in ("decoder", "normalizer")
    )
    # llama.cpp drops NFC
    if model["type"] != "BPE" or decoder != "ByteLevel" or normalizer not in (None, "NFC"):
        raise ValueError(
            "GGUF holds characters and byte-level BPE, "
            f"but this tokenizer is {model['type']}: export to a directory"
        )
    if not model["merges"]:  # bytes, which no split changes
        return "gpt-2"
    if steps.get("pretokenizers") == [DIGITS, bpe.GPT2_SPLIT]:
        return "smollm"
    pattern = bpe.split_pattern(parts)
    if pattern not in SPLITS:
        raise ValueError(
            f"llama.cpp does not know how this tokenizer splits text ({pattern}): "
            "export to a directory"
        )
    return SPLITS[pattern]


def to_llama_cpp(model: GPT, added: bool) -> dict[str, torch.Tensor]:
    """The weights by llama.cpp's names, fp32.

    Matrices are (out, in). llama.cpp rotates neighbouring pairs in Llama, where transformers
    rotates halves of a head. A token that is `added` has the mean of the others' rows, so that its
    logit is their mean: never the largest.
    """
    gguf, c = require_gguf(), model.config
    kind = weights.native_type(c)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names, found = gguf.get_tensor_name_map(arch, c.n_layer), {}
    transposed = {
        name for hf_names, flag in weights.layout(c).values() if flag for name in hf_names
    }
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


def kind_of(name: str, tensor: torch.Tensor, wanted: str) -> str:
    """How a tensor is stored."""
    whole = wanted != "Q8_0" or tensor.size(-1) % BLOCK == 0
    return wanted if tensor.dim() == 2 and whole and not name.startswith("position_embd") else "F32"


def add_sizes(writer, model: GPT, vocab_size: int) -> None:
    """Writes the model's sizes; `vocab_size` counts an added token."""
    c = model.config
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


def add_tokenizer(writer, vocabulary: Vocabulary, tokenizer) -> None:
    """Writes the tokens, and the chat template if the model was trained on conversations."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(vocabulary.end)
    writer.add_add_bos_token(False)
    if chat.can_chat(tokenizer):
        writer.add_eot_token_id(tokenizer.special[END])
        writer.add_chat_template(chat.TEMPLATE)


def verify(file: Path, tensors: dict[str, torch.Tensor], kinds: dict) -> None:
    """Raises ValueError unless the file has these tensors, rounded; Q8_0: within half a step."""
    gguf = require_gguf()
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    if found.keys() != tensors.keys():
        raise ValueError(
            f"the export is wrong: its tensors differ: {sorted(found.keys() ^ tensors.keys())[:4]}"
        )
    rounded = {"F16": torch.float16, "BF16": torch.bfloat16}
    for name, tensor in tensors.items():
        stored, kind = found[name], kinds[name]
        read = torch.from_numpy(np.array(gguf.dequantize(stored.data, stored.tensor_type)))
        if stored.tensor_type != kind or read.shape != tensor.shape:
            raise ValueError(
                f"the export is wrong: {name} is {stored.tensor_type.name} of {tuple(read.shape)}"
            )
        bound = torch.zeros(1)
        if kind.name == "Q8_0":  # the scale is the largest weight / 127, in fp16
            step = tensor.view(-1, BLOCK).abs().amax(1, keepdim=True) / 127
            bound = (
                (step * (0.5 + 127 * 2**-11) + 127 * 2**-25).expand(-1, BLOCK).reshape(tensor.shape)
            )
        expected = tensor.to(rounded.get(kind.name, torch.float32)).float()
        if not ((read - expected).abs() <= bound).all():
            worst = (read - expected).abs().max()
            raise ValueError(f"the export is wrong: {name}, read back, differs by {worst:.2g}")


def ask_llama_cpp(file: Path, model: GPT, tokenizer, ids: torch.Tensor, kind: str) -> str:
    """Compares llama.cpp's tokens and text with the model's in fp32; says how far they agree.

    Raises ValueError if they differ. Where llama.cpp rounds activations (Q8_0, BF16, F16) or
    approximates GPT-2's exact GELU, a continuation may differ, and the number of equal tokens is
    told.
    """
    import llama_cpp

    T = model.config.block_size
    start = max(1, min(16, T - 32))
    fp32 = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    try:
        # it warns that its own cache is longer than a short context
        with redirect_stderr(io.StringIO()):
            reader = llama_cpp.Llama(str(file), n_ctx=T, verbose=False, **fp32)
    except Exception as error:
        raise ValueError(
            f"the export is wrong: llama.cpp cannot read it ({first_line(error)})"
        ) from None
    plain = [
        i
        for i in ids[0].tolist()
        if i < tokenizer.vocab_size and i not in tokenizer.special.values()
    ]
    text, new = tokenizer.decode(plain), min(32, T - start)
    read = reader.tokenize(text.encode(), add_bos=False)
    continued = list(
        islice(reader.generate(ids[0, :start].tolist(), temp=0, repeat_penalty=1), new)
    )
    reader.close()
    if read != tokenizer.encode(text).tolist():
        raise ValueError(f"the export is wrong: llama.cpp reads {text[:40]!r} differently")
    expected = generate(model, ids[:1, :start], new, temperature=0)[0, start:].tolist()
    same = next((i for i in range(new) if continued[i] != expected[i]), new)
    if same == new:
        return f"llama.cpp writes the same {new} greedy tokens"
    exact_gelu = weights.native_type(model.config) == "gpt2" and model.config.mlp == "gelu"
    if kind == "F32" and not exact_gelu:
        shown = slice(same, same + 8)
        raise ValueError(
            f"the export is wrong: llama.cpp continues with {continued[shown]}, "
            f"not {expected[shown]}"
        )
    same_tokens = f"the same {same} of {new} greedy tokens as the model in fp32"
    return f"llama.cpp, which rounds more, writes {same_tokens}"
