"""Converts weights and configurations to and from transformers.

Three classes of transformers cover most of GPTConfig: GPT2LMHeadModel, LlamaForCausalLM and, with
QK-norm, Qwen3ForCausalLM. The tables below say how they name what GPT has.
"""

import re
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from nanogpt import checkpoint
from nanogpt.data.files import one_line_errors, read_json
from nanogpt.model import GPT, GPTConfig

GELUS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
SHARED = {  # fields of GPTConfig, and what transformers calls them
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "tie_embeddings": "tie_word_embeddings",
}
GPT2 = SHARED | {"n_inner": "n_inner", "norm_eps": "layer_norm_epsilon"}
MODERN = SHARED | {
    "n_kv_head": "num_key_value_heads",
    "head_dim": "head_dim",
    "n_inner": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "bias": "attention_bias",
}
FIELDS = {"gpt2": GPT2, "llama": MODERN, "qwen3": MODERN}
# settings of transformers that change the results; GPT has one value of each
FIXED = ["scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention"]
FIXED += ["hidden_act", "mlp_bias", "use_sliding_window", "rope_parameters"]
STACKED = {  # our parameters, and the tensors of Llama and Qwen3 that are stacked in them
    "wte": ["embed_tokens"],
    "ln_1": ["input_layernorm"],
    "attn.c_attn": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attn.q_norm": ["self_attn.q_norm"],
    "attn.k_norm": ["self_attn.k_norm"],
    "attn.c_proj": ["self_attn.o_proj"],
    "ln_2": ["post_attention_layernorm"],
    "mlp.c_fc": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.c_proj": ["mlp.down_proj"],
    "ln_f": ["norm"],
}


def native_type(c: GPTConfig) -> str:
    """The transformers model type of a configuration: gpt2, llama or qwen3, or a ValueError."""
    plain_heads = c.kv_heads == c.n_head and c.head_size * c.n_head == c.n_embd and not c.qk_norm
    if (c.norm, c.position) == ("layernorm", "learned") and c.mlp != "swiglu" and plain_heads:
        return "gpt2"
    if (c.norm, c.position, c.mlp) == ("rmsnorm", "rope", "swiglu") and not (c.qk_norm and c.bias):
        return "qwen3" if c.qk_norm else "llama"
    names = ("norm", "position", "mlp", "n_kv_head", "head_dim", "qk_norm", "bias")
    raise ValueError(
        f"transformers has no class for {', '.join(f'{n}={getattr(c, n)!r}' for n in names)}, only "
        "for layernorm, learned, gelu and plain heads (GPT-2), or rmsnorm, rope and swiglu "
        "(Llama; with qk_norm and without bias Qwen3)"
    )


class Uninitialized(TorchFunctionMode):
    """Skips torch.nn.init, which for the meta device imports torch._dynamo: a second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return None
        return function(*args, **(kwargs or {}))


def on_meta(config: GPTConfig) -> GPT:
    """A model without memory for its weights, for their names, shapes and number."""
    with torch.device("meta"), Uninitialized():
        return GPT(config)


def check_parameters(model: GPT) -> None:
    """Raises ValueError if a subclass of GPT has other parameters, which no export can hold."""
    plain = on_meta(model.config)
    shapes = [{name: p.shape for name, p in m.named_parameters()} for m in (model, plain)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{type(model).__name__} has other parameters than GPT: no export fits")


def layout(config: GPTConfig) -> dict[str, tuple[list[str], bool]]:
    """Maps each of our parameters to transformers' tensors, and whether these are transposed.

    Several tensors are stacked in ours. GPT-2's matrices are stored as (in, out).
    """
    kind, table = native_type(config), {}
    for name, _ in on_meta(config).named_parameters():
        block, part, suffix = re.fullmatch(r"(h\.\d+\.)?(.*)\.(weight|bias)", name).groups("")
        if part == "lm_head":
            table[name] = [name], False
        elif kind == "gpt2":
            table[name] = [f"transformer.{name}"], bool(re.search(r"\.c_\w+\.weight$", name))
        else:
            prefix = "model." + block.replace("h.", "layers.")
            table[name] = [f"{prefix}{hf_name}.{suffix}" for hf_name in STACKED[part]], False
    return table


def pad(name: str, tensor: torch.Tensor, config: GPTConfig) -> torch.Tensor:
    """Pads a tensor that has a row per token with zeros to a multiple of 64 rows."""
    if not name.startswith(("wte.", "lm_head.")):
        return tensor
    return F.pad(tensor, (0, 0, 0, config.padded_vocab_size - config.vocab_size))


def read_config(directory: Path) -> GPTConfig:
    """The GPTConfig of a transformers model. Raises ValueError if GPT does not support it."""
    from transformers import AutoConfig

    path = directory / "config.json"
    kind = str(read_json(path).get("model_type"))
    if kind not in FIELDS:
        raise ValueError(f"{path}: model_type={kind[:40]} is not one of {', '.join(FIELDS)}")
    with one_line_errors(f"{path} is not supported", "load a plain GPT-2, Llama or Qwen3"):
        with quiet():
            theirs = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        fields = {ours: getattr(theirs, name) for ours, name in FIELDS[kind].items()}
        if kind == "gpt2":
            mlp = theirs.activation_function
            config = GPTConfig(**fields, mlp=GELUS.get(mlp, mlp), bias=True)
        else:
            theta = theirs.rope_parameters["rope_theta"]
            config = GPTConfig.modern(**fields, rope_theta=theta, qk_norm=kind == "qwen3")
        ours = AutoConfig.for_model(kind, **native_config(config))
        for name in FIXED:
            value, needed = getattr(theirs, name, None), getattr(ours, name, None)
            if value != needed:
                raise ValueError(f"{name}={value!s:.80} instead of {needed}")
        return config


def read_files(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of a transformers model, by name without the prefix of the base model.

    They are in model.safetensors, or in several model-N-of-N.safetensors. Pickles are not read.
    """
    if (directory / "adapter_config.json").exists():
        raise ValueError(f"{directory} has an adapter of peft: merge it into the model first")
    tensors, whole = {}, directory / checkpoint.MODEL
    shards = [] if whole.exists() else sorted(directory.glob("model-*-of-*.safetensors"))
    for file in shards or [whole]:
        for name, tensor in checkpoint.read_tensors(file).items():
            tensors[re.sub(r"^(transformer|model)\.", "", name)] = tensor
    return tensors


def from_pretrained(directory: Path, *, dtype: torch.dtype = torch.float32, **changes) -> GPT:
    """Loads a GPT-2-, Llama- or Qwen3-shaped transformers model from a directory.

    `changes` are fields of GPTConfig that do not affect the weights, such as dropout. Reads only
    safetensors. Raises ValueError if they are missing, or if GPT does not support the model.
    """
    config, tensors, weights = read_config(directory), read_files(directory), {}
    for name, (hf_names, transposed) in layout(config).items():
        with one_line_errors(f"{directory} lacks an intact {name}", "download it again"):
            parts = [tensors.pop(re.sub(r"^(transformer|model)\.", "", n)) for n in hf_names]
            value = torch.cat([part.t() if transposed else part for part in parts])
            weights[name] = pad(name, value.contiguous(), config)
        if not {part.dtype for part in parts} <= {*checkpoint.DTYPES}:
            raise ValueError(f"{directory} is quantized: {hf_names[0]} is {parts[0].dtype}")
    biases = [name for name in weights if name.endswith(".bias")]
    if native_type(config) == "gpt2" and not any(weights[name].any() for name in biases):
        # bias=False is exported as zeros
        changes["bias"] = False
        weights = {name: weights[name] for name in weights.keys() - biases}
    model = on_meta(replace(config, **changes))
    checkpoint.check_tensors(directory, weights, model)
    model.load_state_dict({name: w.to(dtype) for name, w in weights.items()}, assign=True)
    return model.eval()


def to_transformers(model: GPT, end_id: int | None = None):
    """Converts the model to its transformers class, which shares the weights.

    `end_id` is the token that ends a text, if any. Raises ValueError if no class supports it.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    check_parameters(model)
    c, state, tensors_of = model.config, {}, layout(model.config)
    hf_config = AutoConfig.for_model(native_type(c), **native_config(c, end_id))
    with quiet(), init_empty_weights(include_buffers=False):  # RoPE's tables are buffers
        native = AutoModelForCausalLM.from_config(hf_config)
    for name, empty in native.state_dict().items():
        if name.endswith(".bias"):  # GPT2LMHeadModel always has biases
            state[name] = torch.zeros(empty.shape, dtype=model.wte.weight.dtype)
    fused = on_meta(c).fused_rows()
    for name, (hf_names, transposed) in tensors_of.items():
        value = model.get_parameter(name).detach()
        if name in ("wte.weight", "lm_head.weight"):
            value = value[: c.vocab_size]  # without padding
        rows = fused[name.replace(".bias", ".weight")] if len(hf_names) > 1 else len(value)
        for hf_name, part in zip(hf_names, value.split(rows), strict=True):
            state[hf_name] = (part.t() if transposed else part).contiguous()
    if c.tie_embeddings:
        state["lm_head.weight"] = state[tensors_of["wte.weight"][0][0]]
    native.load_state_dict(state, assign=True)
    native.tie_weights()
    return native.eval()


def native_config(c: GPTConfig, end_id: int | None = None) -> dict:
    """The arguments of the transformers configuration class."""
    kind = native_type(c)
    values = asdict(c) | {"n_kv_head": c.kv_heads, "head_dim": c.head_size, "n_inner": c.inner}
    config = {theirs: values[ours] for ours, theirs in FIELDS[kind].items()}
    config["dtype"] = "float32"
    # given even if None: with the classes' defaults a text would end at an ordinary token
    config |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end_id)
    if kind == "gpt2":
        config["n_ctx"] = c.block_size  # n_positions' older name, which some readers still need
        config["activation_function"] = "gelu" if c.mlp == "gelu" else "gelu_new"
        return config | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), c.dropout)
    if kind == "llama":
        config["mlp_bias"] = c.bias
    config["attention_dropout"] = c.dropout
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": c.rope_theta}
    return config


@contextmanager
def quiet():
    """Context manager that silences transformers' hints, and its progress bars for good."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
