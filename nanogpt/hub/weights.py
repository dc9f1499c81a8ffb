"""Converts weights to and from transformers.

Three classes of transformers cover most of GPTConfig: GPT2LMHeadModel, LlamaForCausalLM and, with
QK-norm, Qwen3ForCausalLM. The tables below say how they name what GPT has.
"""

import re
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open

from nanogpt import checkpoint
from nanogpt.data.files import first_line, is_count, require_regular
from nanogpt.hub import client
from nanogpt.model import GPT, GPTConfig

GELUS = {"gelu": "gelu", "gelu_tanh": "gelu_new"}
TYPES = ("gpt2", "llama", "qwen3")
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
# settings of these classes with only one value that GPT has
REQUIRED: dict[str, dict[str, object]] = {
    "gpt2": {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    "llama": {"hidden_act": "silu"},
    "qwen3": {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
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
MOST_LAYERS = 10_000


def native_type(config: GPTConfig) -> str:
    """The transformers model type for a configuration: gpt2, llama or qwen3.

    Raises ValueError naming the field that none of them supports.
    """
    c = config
    if c.norm == "layernorm" and c.position == "learned":
        kind = "gpt2"
        supported = {
            "mlp": tuple(GELUS),
            "n_kv_head": (c.n_head, None),
            "head_dim": (c.n_embd // c.n_head, None),
            "qk_norm": (False,),
        }
    else:
        kind = "qwen3" if c.qk_norm else "llama"
        supported = {"norm": ("rmsnorm",), "position": ("rope",), "mlp": ("swiglu",)}
        if c.qk_norm:
            supported["bias"] = (False,)
    for name, values in supported.items():
        value = getattr(c, name)
        if value not in values:
            raise ValueError(
                f"{name}={value!r}: {kind} in transformers has {name}={values[0]!r} "
                "(layernorm, learned and gelu go together, and rmsnorm, rope and swiglu)"
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
    raw = checkpoint.read_json(path)
    kind = raw.get("model_type")
    if kind not in TYPES:
        raise ValueError(
            f"{path}: model_type={str(kind)[:40]} is not supported, only {', '.join(TYPES)}"
        )
    name = hf_fields(kind)["n_layer"]
    layers = raw.get(name, 1)
    if not is_count(layers, 1) or layers > MOST_LAYERS:  # transformers makes lists of this length
        raise ValueError(f"{path}: {name}={str(layers)[:40]} is not a number of layers")
    try:
        with quiet():
            hf_config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        return GPTConfig(**translate(directory, kind, hf_config))
    except ValueError:
        raise
    except Exception as error:  # values of wrong types make transformers raise nearly anything
        raise ValueError(
            f"{path} is not a {kind} model's configuration ({first_line(error)})"
        ) from None


def translate(directory: Path, kind: str, hf_config) -> dict:
    """The fields of GPTConfig for a transformers configuration. Raises ValueError if it cannot."""
    required = dict(REQUIRED[kind])
    if kind == "llama":
        required["mlp_bias"] = hf_config.attention_bias
    for name, value in required.items():
        if (actual := getattr(hf_config, name)) != value:
            raise ValueError(
                f"{directory}: {name}={str(actual)[:40]} is not supported, only {value}"
            )
    fields = {ours: getattr(hf_config, theirs) for ours, theirs in hf_fields(kind).items()}
    if kind == "gpt2":
        gelus = {hf_name: name for name, hf_name in GELUS.items()}
        gelus["gelu_pytorch_tanh"] = "gelu_tanh"  # the same function
        activation = hf_config.activation_function
        if activation not in gelus:
            raise ValueError(
                f"{directory}: activation_function={activation!r} is not one of {', '.join(gelus)}"
            )
        return fields | {"mlp": gelus[activation], "bias": True}
    rope = hf_config.rope_parameters
    if rope["rope_type"] != "default":
        raise ValueError(
            f"{directory}: rope_type={str(rope['rope_type'])[:40]!r} is not supported, only RoPE "
            "without scaling"
        )
    return fields | {
        "norm": "rmsnorm",
        "position": "rope",
        "rope_theta": rope["rope_theta"],
        "mlp": "swiglu",
        "qk_norm": kind == "qwen3",
    }


def from_pretrained(
    name_or_dir: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    **changes,
) -> GPT:
    """Loads a GPT-2-, Llama- or Qwen3-shaped transformers model from a directory or the Hub.

    `revision` is a branch, a tag or a commit on the Hub; `changes` are fields of GPTConfig that do
    not affect the weights, such as dropout. Reads only safetensors, one tensor at a time, so it
    takes little more memory than the weights. Raises ValueError if there is no such model, or if
    GPT does not support it.
    """
    directory = find_directory(name_or_dir, revision)
    config = read_config(directory)
    kind = native_type(config)
    tensors = Tensors(directory, "transformer." if kind == "gpt2" else "model.")
    tensors_of = layout(config)
    if kind == "gpt2":  # bias=False is exported as zeros
        names = [hf_names[0] for hf_names, _ in tensors_of.values()]
        changes["bias"] = any(tensors.read(n).any() for n in names if n.endswith(".bias"))
    with torch.device("meta"):
        model = GPT(replace(config, **changes))
    # the largest first, while there is room for a second copy of it
    for name, p in sorted(model.named_parameters(), key=lambda item: -item[1].numel()):
        hf_names, transposed = tensors_of[name]
        parts = []
        for hf_name, rows in zip(hf_names, rows_of(model, name, hf_names), strict=True):
            part = tensors.read(hf_name)
            shape = (rows, *p.shape[1:])
            if transposed:
                shape = shape[::-1]
            if part.shape != shape:
                raise ValueError(
                    f"{directory}: {hf_name} has shape {tuple(part.shape)}, "
                    f"its config.json says {shape}"
                )
            parts.append(part.t() if transposed else part)
        value = torch.cat(parts)
        if len(value) < len(p):
            value = F.pad(value, (0, 0, 0, len(p) - len(value)))
        model.load_state_dict({name: value.to(dtype).contiguous()}, strict=False, assign=True)
    return model.eval()


class Tensors:
    """The tensors of a transformers directory by name, each read when it is needed."""

    def __init__(self, directory: Path, prefix: str):
        """Finds the tensors. GPT-2's own files leave the `prefix` of their names out.

        Raises ValueError if there are no safetensors, or their header cannot be read.
        """
        self.directory = directory
        self.places: dict[str, tuple[Path, str]] = {}  # full name: its file and its name there
        files = sorted(directory.glob("model*.safetensors"))
        if not files:
            pickles = sorted(path.name for path in directory.glob("*.bin"))
            found = f"only {pickles[0]}, a pickle, which can run code" if pickles else "no weights"
            raise ValueError(
                f"{directory} has {found}: expected model.safetensors "
                "(transformers' save_pretrained writes it)"
            )
        for file in files:
            with open_tensors(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    whole = name.startswith((prefix, "lm_head."))
                    self.places[name if whole else prefix + name] = file, name

    def read(self, name: str) -> torch.Tensor:
        """The tensor of that name. Raises ValueError if there is none, or it cannot be read."""
        if name not in self.places:
            raise ValueError(f"{self.directory} lacks the tensor {name}: it is incomplete")
        file, stored = self.places[name]
        with open_tensors(file) as tensors:  # closing it frees the pages read
            return tensors.get_tensor(stored)


@contextmanager
def open_tensors(file: Path):
    """Context manager that opens a safetensors file; what fails in it names the file."""
    try:
        require_regular(file)
        with safe_open(file, "pt") as tensors:
            yield tensors
    except Exception as error:  # a damaged header can raise nearly anything
        raise ValueError(f"{file} cannot be read: {first_line(error)}") from None


def find_directory(name_or_dir: str | Path, revision: str | None = None) -> Path:
    """The directory of a transformers model: a local one, or downloaded from the Hub."""
    path = Path(name_or_dir)
    if path.is_dir():
        return path
    if path.is_absolute() or (path.parent != Path(".") and path.parent.is_dir()):
        raise ValueError(
            f"{str(name_or_dir)!r} is not a directory: "
            "name an out directory, a checkpoint in one, or a transformers model"
        )
    return client.download(str(name_or_dir), revision)


def is_transformers(directory: Path) -> bool:
    """Whether a directory holds a transformers model, whose config.json has a model_type."""
    path = directory / "config.json"
    return path.is_file() and "model_type" in checkpoint.read_json(path)


def to_transformers(model: GPT, eot_id: int | None = None, pad_id: int | None = None):
    """Converts the model to its transformers class, which shares the weights.

    The ids are those of special tokens, if any. Raises ValueError if no class supports it.
    """
    if type(model) is not GPT:
        raise ValueError(f"transformers has no class for {type(model).__name__}, only for a GPT")
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    c, state, tensors_of = model.config, {}, layout(model.config)
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
    """Context manager that silences transformers' progress bars and hints."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
