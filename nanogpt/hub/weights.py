"""Converts weights to and from transformers.

Three classes of transformers cover most of GPTConfig: GPT2LMHeadModel, LlamaForCausalLM and, with
QK-norm, Qwen3ForCausalLM. `layout` maps our parameters to their tensors, in both directions.
"""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open

from nanogpt import checkpoint
from nanogpt.data.files import first_line, is_count, require_regular
from nanogpt.hub import client
from nanogpt.model import GPT, GPTConfig

GELUS = {"gelu": "gelu", "gelu_tanh": "gelu_new"}  # names in GPTConfig and in transformers
TYPES = ("gpt2", "llama", "qwen3")
MOST_LAYERS = 10_000


def native_type(config: GPTConfig) -> str:
    """The transformers model type for a configuration: gpt2, llama or qwen3.

    Raises ValueError naming the field that none of them supports.
    """
    c = config
    if c.norm == "layernorm" and c.position == "learned":
        if c.mlp not in GELUS:
            raise ValueError(
                f"mlp={c.mlp!r}: with layernorm and learned positions (GPT-2) it must be "
                "gelu or gelu_tanh"
            )
        if c.kv_heads != c.n_head:
            raise ValueError(f"n_kv_head={c.n_kv_head}: GPT-2 has as many as n_head={c.n_head}")
        if c.head_size * c.n_head != c.n_embd:
            raise ValueError(f"head_dim={c.head_dim}: in GPT-2 it is n_embd / n_head")
        if c.qk_norm:
            raise ValueError(
                "qk_norm=True: GPT-2 has none; Qwen3 has, with rmsnorm, rope and swiglu"
            )
        return "gpt2"
    for name, value in (("norm", "rmsnorm"), ("position", "rope"), ("mlp", "swiglu")):
        if getattr(c, name) != value:
            raise ValueError(
                f"{name}={getattr(c, name)!r}: transformers has "
                "layernorm, learned, gelu together (GPT-2) and rmsnorm, "
                "rope, swiglu together (Llama, Qwen3)"
            )
    if c.qk_norm and c.bias:
        raise ValueError("bias=True: with qk_norm (Qwen3) there are no biases")
    return "qwen3" if c.qk_norm else "llama"


def layout(config: GPTConfig) -> dict[str, tuple[list[str], bool]]:
    """Maps each of our parameters to transformers' tensors, and whether these are transposed.

    Several tensors are stacked in ours. GPT-2's matrices are stored as (in, out).
    """
    kinds = ("weight", "bias") if config.bias else ("weight",)
    if native_type(config) == "gpt2":
        table = {name: ([f"transformer.{name}"], False) for name in ("wte.weight", "wpe.weight")}
        for i in range(config.n_layer):
            for part in ("ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
                for kind in kinds:
                    name = f"h.{i}.{part}.{kind}"
                    table[name] = (
                        [f"transformer.{name}"],
                        kind == "weight" and not part.startswith("ln"),
                    )
        table |= {f"ln_f.{kind}": ([f"transformer.ln_f.{kind}"], False) for kind in kinds}
    else:
        parts = {"ln_1": ["input_layernorm"], "ln_2": ["post_attention_layernorm"]}
        if config.qk_norm:
            parts |= {"attn.q_norm": ["self_attn.q_norm"], "attn.k_norm": ["self_attn.k_norm"]}
        matrices = {
            "attn.c_attn": [f"self_attn.{x}_proj" for x in "qkv"],
            "attn.c_proj": ["self_attn.o_proj"],
        }
        matrices |= {"mlp.c_fc": ["mlp.gate_proj", "mlp.up_proj"], "mlp.c_proj": ["mlp.down_proj"]}
        table = {"wte.weight": (["model.embed_tokens.weight"], False)}
        for i in range(config.n_layer):
            for part, names in (parts | matrices).items():
                for kind in kinds if part in matrices else ("weight",):
                    table[f"h.{i}.{part}.{kind}"] = (
                        [f"model.layers.{i}.{name}.{kind}" for name in names],
                        False,
                    )
        table["ln_f.weight"] = ["model.norm.weight"], False
    if not config.tie_embeddings:
        table["lm_head.weight"] = ["lm_head.weight"], False
    return table


def read_config(directory: Path) -> GPTConfig:
    """The GPTConfig of a transformers model. Raises ValueError if GPT does not support it."""
    from transformers import AutoConfig

    path = directory / "config.json"
    raw = checkpoint.read_json(path)
    kind = raw.get("model_type")
    if kind not in TYPES:
        what = (
            f"a {str(kind)[:40]} model"
            if kind
            else "no transformers model (config.json has no model_type)"
        )
        raise ValueError(f"{directory} holds {what}; supported are {', '.join(TYPES)}")
    for name in ("n_layer", "num_hidden_layers"):  # transformers' classes make lists of this length
        if not is_count(raw.get(name, 1), 1) or raw.get(name, 1) > MOST_LAYERS:
            raise ValueError(f"{path}: {name}={str(raw[name])[:40]} is not a number of layers")
    try:
        with quiet():
            c = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        return GPTConfig(**translate(directory, kind, c))
    except ValueError:
        raise
    except (
        Exception
    ) as error:  # values of wrong types make transformers' classes raise nearly anything
        raise ValueError(
            f"{path} is not a {kind} model's configuration ({first_line(error)})"
        ) from None


def translate(directory: Path, kind: str, c) -> dict:
    """The fields of GPTConfig for a transformers configuration. Raises ValueError if it cannot."""
    shape = {"vocab_size": c.vocab_size, "tie_embeddings": bool(c.tie_word_embeddings)}
    if kind == "gpt2":
        expect(
            directory,
            c,
            scale_attn_weights=True,
            scale_attn_by_inverse_layer_idx=False,
            add_cross_attention=False,
        )
        gelus = {hf_name: name for name, hf_name in GELUS.items()}
        gelus["gelu_pytorch_tanh"] = "gelu_tanh"  # another name of the same function
        if c.activation_function not in gelus:
            raise ValueError(
                f"{directory}: activation_function={c.activation_function!r} is not one of "
                f"{', '.join(gelus)}"
            )
        return shape | {
            "block_size": c.n_positions,
            "n_layer": c.n_layer,
            "n_head": c.n_head,
            "n_embd": c.n_embd,
            "n_inner": c.n_inner,
            "mlp": gelus[c.activation_function],
            "norm_eps": c.layer_norm_epsilon,
            "bias": True,
        }
    expect(directory, c, hidden_act="silu")
    rope = c.rope_parameters
    if rope["rope_type"] != "default":
        raise ValueError(
            f"{directory}: rope_type={str(rope['rope_type'])[:40]!r} is not supported, "
            "only plain RoPE"
        )
    if kind == "qwen3":
        expect(directory, c, attention_bias=False, use_sliding_window=False)
    elif c.attention_bias != c.mlp_bias:
        raise ValueError(
            f"{directory}: attention_bias={c.attention_bias} and mlp_bias={c.mlp_bias} must agree"
        )
    return shape | {
        "block_size": c.max_position_embeddings,
        "n_layer": c.num_hidden_layers,
        "n_head": c.num_attention_heads,
        "n_kv_head": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "n_embd": c.hidden_size,
        "n_inner": c.intermediate_size,
        "norm": "rmsnorm",
        "norm_eps": c.rms_norm_eps,
        "position": "rope",
        "rope_theta": rope["rope_theta"],
        "mlp": "swiglu",
        "qk_norm": kind == "qwen3",
        "bias": kind == "llama" and c.attention_bias,
    }


def expect(directory: Path, config, **values) -> None:
    for name, value in values.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{directory}: {name}={str(getattr(config, name))[:40]} is not supported, "
                f"only {value}"
            )


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
    weights = Weights(directory)
    if config.n_layer > len(weights.file_of):
        raise ValueError(
            f"{directory} has {len(weights.file_of)} tensors, too few for {config.n_layer} layers"
        )
    if native_type(config) == "gpt2":
        biases = [names[0] for name, (names, _) in layout(config).items() if name.endswith(".bias")]
        changes["bias"] = any(
            weights[name].any() for name in biases
        )  # bias=False is exported as zeros
    config = replace(config, **changes)
    tensors_of, model = layout(config), empty_model(config, weights)
    # the largest first, while there is room for a second copy of it
    for name, _ in sorted(model.named_parameters(), key=lambda item: -item[1].numel()):
        hf_names, transposed = tensors_of[name]
        value = torch.cat([weights[t].t() if transposed else weights[t] for t in hf_names])
        if name in ("wte.weight", "lm_head.weight"):
            value = F.pad(value, (0, 0, 0, config.padded_vocab_size - value.size(0)))
        model.load_state_dict({name: value.to(dtype).contiguous()}, strict=False, assign=True)
    return model.eval()


def empty_model(config: GPTConfig, weights: "Weights") -> GPT:
    """The model on the meta device. Raises ValueError unless the stored tensors have its shapes."""
    try:
        with torch.device("meta"):
            model = GPT(config)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise ValueError(
            f"{weights.directory}/config.json does not describe a model ({first_line(error)})"
        ) from None
    named = dict(model.named_parameters())
    for name, (hf_names, transposed) in layout(config).items():
        expected = tuple(named[name].shape)
        if name in ("wte.weight", "lm_head.weight"):  # without our padding
            expected = (config.vocab_size, *expected[1:])
        shapes = [weights.shape(t)[:: -1 if transposed else 1] for t in hf_names]
        found = (sum(shape[0] for shape in shapes if shape), *shapes[0][1:])
        if found != expected or any(shape[1:] != expected[1:] for shape in shapes):
            found, expected = (shape[:: -1 if transposed else 1] for shape in (found, expected))
            raise ValueError(
                f"{weights.directory}: {hf_names[0]} has shape {found}, "
                f"its config.json says {expected}"
            )
    return model


class Weights:
    """The tensors of a transformers directory by name, each read when it is needed."""

    def __init__(self, directory: Path):
        """Raises ValueError if there are no safetensors, or their header cannot be read."""
        files = sorted(directory.glob("model*.safetensors"))
        if not files:
            pickles = sorted(path.name for path in directory.glob("*.bin"))
            why = (
                f"only {pickles[0]}, a pickle, which can run code when it is loaded"
                if pickles
                else "no weights"
            )
            raise ValueError(
                f"{directory} has {why}: expected model.safetensors "
                "(transformers' save_pretrained writes it)"
            )
        self.directory, self.file_of, self.shapes = directory, {}, {}
        for file in files:
            with self.open(file) as tensors:
                names = tensors.keys()
                self.shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
                self.file_of |= dict.fromkeys(names, file)
        # GPT-2's own files leave the prefix out, and so do some fine-tunes of it
        self.bare = not any(name.startswith(("transformer.", "model.")) for name in self.file_of)

    def stored(self, name: str) -> str:
        """The name that a tensor has in the files. Raises ValueError where there is none."""
        stored = name.removeprefix("transformer.").removeprefix("model.") if self.bare else name
        if stored not in self.file_of:
            raise ValueError(f"{self.directory} lacks the tensor {stored}: it is incomplete")
        return stored

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[self.stored(name)]

    def __getitem__(self, name: str) -> torch.Tensor:
        stored = self.stored(name)
        with self.open(self.file_of[stored]) as tensors:  # closing it frees the pages read
            return tensors.get_tensor(stored)

    @contextmanager
    def open(self, file: Path):
        try:
            require_regular(file)
            with safe_open(file, "pt") as tensors:
                yield tensors
        except (
            SafetensorError,
            OSError,
            ValueError,
            KeyError,
            OverflowError,
            MemoryError,
        ) as error:
            raise ValueError(f"{file} cannot be read: {error}") from None


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
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    c, rows, state = model.config, model.fused_rows(), {}
    parameters = dict(model.named_parameters())
    tensors_of = layout(c)
    for name, (hf_names, transposed) in tensors_of.items():
        value = parameters[name].detach()
        if name in ("wte.weight", "lm_head.weight"):
            value = value[: c.vocab_size]
        parts = (
            value.split(rows[name.replace(".bias", ".weight")]) if len(hf_names) > 1 else [value]
        )
        for target, part in zip(hf_names, parts, strict=True):
            state[target] = (part.t() if transposed else part).contiguous()
    arguments = native_config(c, eot_id, pad_id)
    with quiet(), init_empty_weights(include_buffers=False):  # RoPE's tables are buffers
        native = AutoModelForCausalLM.from_config(AutoConfig.for_model(native_type(c), **arguments))
    for name, empty in native.state_dict().items():
        if name.endswith(".bias") and name not in state:  # GPT2LMHeadModel always has biases
            state[name] = torch.zeros(empty.shape, dtype=model.wte.weight.dtype)
    if c.tie_embeddings:
        state["lm_head.weight"] = state[tensors_of["wte.weight"][0][0]]
    native.load_state_dict(state, assign=True)
    native.tie_weights()
    return native.eval()


def native_config(c: GPTConfig, eot_id: int | None, pad_id: int | None) -> dict:
    """The arguments of the transformers configuration class."""
    config = {
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.tie_embeddings,
        "dtype": "float32",
        # given even if None: with the classes' defaults a text would end at an ordinary token
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "pad_token_id": pad_id,
    }
    if native_type(c) == "gpt2":
        return config | {
            "n_positions": c.block_size,
            "n_ctx": c.block_size,  # an older name of n_positions, which some readers still need
            "n_embd": c.n_embd,
            "n_layer": c.n_layer,
            "n_head": c.n_head,
            "n_inner": c.inner,
            "activation_function": GELUS[c.mlp],
            "layer_norm_epsilon": c.norm_eps,
            "resid_pdrop": c.dropout,
            "embd_pdrop": c.dropout,
            "attn_pdrop": c.dropout,
        }
    if not c.qk_norm:
        config["mlp_bias"] = c.bias
    return config | {
        "max_position_embeddings": c.block_size,
        "hidden_size": c.n_embd,
        "intermediate_size": c.inner,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_size,
        "rms_norm_eps": c.norm_eps,
        "attention_dropout": c.dropout,
        "attention_bias": c.bias,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
    }


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
