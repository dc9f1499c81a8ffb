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

from nanogpt import checkpoint
from nanogpt.data.files import first_line, read_json
from nanogpt.model import GPT, GPTConfig

GELUS = {"gelu": "gelu", "gelu_tanh": "gelu_new"}
FIELDS = {  # of GPTConfig, and what transformers calls them in GPT-2, and in Llama and Qwen3
    "vocab_size": ("vocab_size", "vocab_size"),
    "block_size": ("n_positions", "max_position_embeddings"),
    "n_layer": ("n_layer", "num_hidden_layers"),
    "n_head": ("n_head", "num_attention_heads"),
    "n_kv_head": (None, "num_key_value_heads"),
    "head_dim": (None, "head_dim"),
    "n_embd": ("n_embd", "hidden_size"),
    "n_inner": ("n_inner", "intermediate_size"),
    "norm_eps": ("layer_norm_epsilon", "rms_norm_eps"),
    "tie_embeddings": ("tie_word_embeddings", "tie_word_embeddings"),
    "bias": (None, "attention_bias"),
}
MODERN_FAMILY = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu"}
FAMILIES: dict[str, dict[str, object]] = {  # what all models of a class have
    "gpt2": {"norm": "layernorm", "position": "learned", "qk_norm": False},
    "llama": MODERN_FAMILY | {"qk_norm": False},
    "qwen3": MODERN_FAMILY | {"qk_norm": True, "bias": False},
}
ALLOWED: dict[str, dict[str, tuple]] = {  # values of transformers' settings that GPT has
    "gpt2": {
        "activation_function": (*GELUS.values(), "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    "llama": {"hidden_act": ("silu",)},
    "qwen3": {"hidden_act": ("silu",), "attention_bias": (False,), "use_sliding_window": (False,)},
}
# our parameters, and the tensors of Llama and Qwen3 that are stacked in them
MODERN = {
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


def native_type(config: GPTConfig) -> str:
    """The transformers model type for a configuration: gpt2, llama or qwen3.

    Raises ValueError naming the field that none of them supports.
    """
    c = config
    kind = "qwen3" if c.qk_norm else "llama"
    if c.norm == "layernorm" and c.position == "learned":
        kind = "gpt2"
    supported = {name: (value,) for name, value in FAMILIES[kind].items()}
    if kind == "gpt2":
        supported["mlp"] = tuple(GELUS)
        supported["n_kv_head"] = (c.n_head, None)
        supported["head_dim"] = (c.n_embd // c.n_head, None)
    for name, values in supported.items():
        if getattr(c, name) not in values:
            raise ValueError(
                f"transformers has no class for this model: {name}={getattr(c, name)!r}, but "
                f"{kind} has {name}={values[0]!r} (layernorm, learned and gelu go together, and "
                "rmsnorm, rope and swiglu)"
            )
    return kind


def hf_fields(kind: str) -> dict[str, str]:
    """The fields of GPTConfig that a model type of transformers has, and its names of them."""
    column = 0 if kind == "gpt2" else 1
    return {ours: names[column] for ours, names in FIELDS.items() if names[column]}


def layout(config: GPTConfig) -> dict[str, tuple[list[str], bool]]:
    """Maps each of our parameters to transformers' tensors, and whether these are transposed.

    Several tensors are stacked in ours. GPT-2's matrices are stored as (in, out).
    """
    kind, table = native_type(config), {}
    with torch.device("meta"):
        model = GPT(config)
    for name, _ in model.named_parameters():
        block, part, suffix = re.fullmatch(r"(h\.\d+\.)?(.*)\.(weight|bias)", name).groups("")
        if part == "lm_head":
            table[name] = [name], False
        elif kind == "gpt2":
            table[name] = [f"transformer.{name}"], bool(re.search(r"\.c_\w+\.weight$", name))
        else:
            prefix = "model." + block.replace("h.", "layers.")
            table[name] = [f"{prefix}{hf_name}.{suffix}" for hf_name in MODERN[part]], False
    return table


def rows_of(model: GPT, name: str, hf_names: list[str]) -> list[int]:
    """How many rows of our parameter `name` each of its tensors has, without padding."""
    if name in ("wte.weight", "lm_head.weight"):
        return [model.config.vocab_size]
    if len(hf_names) == 1:
        return [model.get_parameter(name).size(0)]
    return model.fused_rows()[name.replace(".bias", ".weight")]


def read_config(directory: Path) -> GPTConfig:
    """The GPTConfig of a transformers model. Raises ValueError if GPT does not support it."""
    from transformers import AutoConfig

    path = directory / "config.json"
    kind = str(checkpoint.read_json(path).get("model_type"))
    if kind not in FAMILIES:
        raise ValueError(
            f"{path}: model_type={kind[:40]} is not supported, only {', '.join(FAMILIES)}"
        )
    try:
        with quiet():
            hf_config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        return GPTConfig(**our_fields(kind, hf_config))
    except Exception as error:  # values of wrong types make transformers raise nearly anything
        raise ValueError(f"{path} is not supported: {first_line(error)}") from None


def our_fields(kind: str, hf_config) -> dict:
    """The fields of GPTConfig for a transformers configuration. Raises ValueError if it cannot."""
    allowed = dict(ALLOWED[kind])
    if kind == "llama":
        allowed["mlp_bias"] = (hf_config.attention_bias,)
    for name, values in allowed.items():
        if getattr(hf_config, name) not in values:
            value = str(getattr(hf_config, name))[:40]
            raise ValueError(f"{name}={value} is not one of {', '.join(map(str, values))}")
    fields = {ours: getattr(hf_config, theirs) for ours, theirs in hf_fields(kind).items()}
    if kind == "gpt2":
        gelus = {theirs: ours for ours, theirs in GELUS.items()}
        gelus["gelu_pytorch_tanh"] = "gelu_tanh"
        fields |= {"mlp": gelus[hf_config.activation_function], "bias": True}
    else:
        rope = hf_config.rope_parameters
        if rope["rope_type"] != "default":
            raise ValueError(f"rope_type={rope['rope_type']!s:.40}, only RoPE without scaling is")
        fields["rope_theta"] = rope["rope_theta"]
    return fields | FAMILIES[kind]


def check_files(directory: Path) -> None:
    """Raises ValueError unless all weights are safetensors files in the directory itself."""
    index = directory / "model.safetensors.index.json"
    try:
        files = {*read_json(index)["weight_map"].values()} if index.exists() else set()
        inside = all(f == Path(f).name and f.endswith(".safetensors") for f in files)
    except (ValueError, KeyError, TypeError, AttributeError):
        inside = False
    if not inside:
        raise ValueError(f"{index} names files that are not safetensors in this directory")
    if (directory / "adapter_config.json").exists():
        raise ValueError(f"{directory} has an adapter of peft: merge it into the model first")


def from_pretrained(directory: Path, *, dtype: torch.dtype = torch.float32, **changes) -> GPT:
    """Loads a GPT-2-, Llama- or Qwen3-shaped transformers model from a directory.

    `changes` are fields of GPTConfig that do not affect the weights, such as dropout. Reads only
    safetensors. Raises ValueError if they are missing, or if GPT does not support the model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = read_config(directory)
    check_files(directory)
    # nothing else in the directory's config.json has an effect, such as code for the attention
    hf_config = AutoConfig.for_model(native_type(config), **native_config(config, None, None))
    try:
        with quiet():
            loaded: tuple = AutoModelForCausalLM.from_pretrained(
                directory,
                config=hf_config,
                dtype=dtype,
                use_safetensors=True,  # a pickle could run code
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # damaged files can raise nearly anything
        raise ValueError(f"{directory} has no intact weights: {first_line(error)}") from None
    native, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{directory} lacks the tensor {missing[0]}: it is incomplete")
    state, tensors_of = native.state_dict(), layout(config)
    if native_type(config) == "gpt2":  # bias=False is exported as zeros
        changes["bias"] = any(state[name].any() for name in state if name.endswith(".bias"))
    with torch.device("meta"):
        model = GPT(replace(config, **changes))
    for name, p in list(model.named_parameters()):
        hf_names, transposed = tensors_of[name]
        parts = [state[hf_name] for hf_name in hf_names]
        value = torch.cat([part.t() if transposed else part for part in parts])
        if len(value) < len(p):
            value = F.pad(value, (0, 0, 0, len(p) - len(value)))
        model.load_state_dict({name: value.contiguous()}, strict=False, assign=True)
    return model.eval()


def is_transformers(directory: Path) -> bool:
    """Whether a directory holds a transformers model, whose config.json has a model_type."""
    path = directory / "config.json"
    return path.is_file() and "model_type" in checkpoint.read_json(path)


def to_transformers(model: GPT, eot_id: int | None = None, pad_id: int | None = None):
    """Converts the model to its transformers class, which shares the weights.

    The ids are those of special tokens, if any. Raises ValueError if no class supports it.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    c, state, tensors_of = model.config, {}, layout(model.config)
    if dict(model.named_parameters()).keys() != tensors_of.keys():
        raise ValueError(f"transformers has no class for {type(model).__name__}, only for a GPT")
    hf_config = AutoConfig.for_model(native_type(c), **native_config(c, eot_id, pad_id))
    with quiet(), init_empty_weights(include_buffers=False):  # RoPE's tables are buffers
        native = AutoModelForCausalLM.from_config(hf_config)
    for name, empty in native.state_dict().items():
        if name.endswith(".bias"):  # GPT2LMHeadModel always has biases
            state[name] = torch.zeros(empty.shape, dtype=model.wte.weight.dtype)
    for name, (hf_names, transposed) in tensors_of.items():
        rows = rows_of(model, name, hf_names)
        value = model.get_parameter(name).detach()[: sum(rows)]  # without padding
        for hf_name, part in zip(hf_names, value.split(rows), strict=True):
            state[hf_name] = (part.t() if transposed else part).contiguous()
    if c.tie_embeddings:
        state["lm_head.weight"] = state[tensors_of["wte.weight"][0][0]]
    native.load_state_dict(state, assign=True)
    native.tie_weights()
    return native.eval()


def native_config(c: GPTConfig, eot_id: int | None, pad_id: int | None) -> dict:
    """The arguments of the transformers configuration class."""
    kind = native_type(c)
    values = asdict(c) | {"n_kv_head": c.kv_heads, "head_dim": c.head_size, "n_inner": c.inner}
    config = {theirs: values[ours] for ours, theirs in hf_fields(kind).items()}
    config["dtype"] = "float32"
    # given even if None: with the classes' defaults a text would end at an ordinary token
    config |= {"bos_token_id": eot_id, "eos_token_id": eot_id, "pad_token_id": pad_id}
    if kind == "gpt2":
        config["n_ctx"] = c.block_size  # n_positions' older name, which some readers still need
        config["activation_function"] = GELUS[c.mlp]
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
