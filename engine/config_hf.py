"""config.json of the Hugging Face hub -> the fields of ModelConfig.

Both dialects are read: the classic keys (`rope_theta`, `rope_scaling`, `torch_dtype`) and those of transformers 5
(`rope_parameters`, `dtype`, `layer_types`). A text model inside a multimodal one is taken from `text_config`.
Source: transformers 5, configuration_utils.py, modeling_rope_utils.py, models/*/configuration_*.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.architectures import BY_HF_CLASS, BY_NAME, Architecture
from engine.config_fields import (
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_VOCAB_SIZE,
    MAX_WIDTH,
    ConfigError,
    Fields,
)
from engine.quantization.checkpoint_config import StoredQuantization, read_quantization
from engine.rope import Rope, longrope_attention_factor, yarn_attention_factor
from modelfiles.quantized_weights import KEY as QUANTIZATION_KEY
from modelfiles.quantized_weights import quantization_level

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")


def fields_from_hf(config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ModelConfig."""
    row = _architecture(config)
    f = Fields(_flattened(config, row), "config.json")
    hidden_size = f.integer("hidden_size", MAX_WIDTH)
    num_layers = f.integer("num_hidden_layers", MAX_LAYERS)
    num_heads = f.integer("num_attention_heads", MAX_HEADS)
    vocab_size = f.integer("vocab_size", MAX_VOCAB_SIZE)
    head_dim = _head_dim(f, hidden_size, num_heads)
    max_positions = f.integer("max_position_embeddings", MAX_POSITIONS)
    if f.boolean("use_bidirectional_attention", default=False):
        raise ConfigError(f"{f.name('use_bidirectional_attention')} is true; Hob runs causal decoders only")
    query_scalar = f.optional_number("query_pre_attn_scalar", maximum=MAX_WIDTH)
    is_gemma = row.scale_embedding
    rope, local_rope = _ropes(f, row, head_dim, max_positions)
    if rope.scaling == "yarn":
        max_positions = max(max_positions, int(rope.original_max_positions * rope.factor))
    attention_bias = f.boolean("attention_bias", default=False) and row.name not in ("mistral", "phi3", "qwen2")
    return {
        "architecture": row.name,
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": f.integer("intermediate_size", MAX_WIDTH),
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": f.integer("num_key_value_heads", MAX_HEADS, default=num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": max_positions,
        "rms_norm_eps": f.number("rms_norm_eps", maximum=1.0),
        "rope": rope,
        "local_rope": local_rope,
        "windows": _windows(f, row, num_layers),
        "activation": _activation(f, row),
        "attention_scale": 0.0 if query_scalar is None else query_scalar**-0.5,
        "attention_softcap": f.optional_number("attn_logit_softcapping", maximum=1e6),
        "final_softcap": f.optional_number("final_logit_softcapping", maximum=1e6),
        "qkv_bias": row.qkv_bias or attention_bias,
        "output_bias": attention_bias,
        "mlp_bias": f.boolean("mlp_bias", default=False) and row.name == "llama",
        "qk_norm": row.qk_norm,
        "post_norms": row.post_norms,
        "norm_offset": 1.0 if row.unit_offset_norm else 0.0,
        "embedding_scale": hidden_size**0.5 if is_gemma else 1.0,
        "fused_projections": row.fused_projections,
        "tie_word_embeddings": f.boolean("tie_word_embeddings", default=False),
        "bos_token_id": next(iter(f.token_ids("bos_token_id", vocab_size)), None),
        "eos_token_ids": _eos_token_ids(f, generation_config, vocab_size),
        "quantization": _quantization(f),
        "stored_quantization": _stored_quantization(f),
    }


def _architecture(config: Mapping[str, Any]) -> Architecture:
    names, model_type = config.get("architectures"), config.get("model_type")
    if isinstance(names, list) and names and isinstance(names[0], str):
        shown = names[0]
        row = BY_HF_CLASS.get(shown)
    elif isinstance(model_type, str):
        shown = model_type
        row = BY_NAME.get(shown.removesuffix("_text"))
    else:
        raise ConfigError("architectures in config.json is missing; a model cannot be loaded without it")
    if row is None:
        raise ConfigError(f"architecture {shown[:80]!r} is not one that Hob runs; it runs {', '.join(BY_HF_CLASS)}")
    return row


def _flattened(config: Mapping[str, Any], row: Architecture) -> dict[str, Any]:
    """The family's defaults, under the outer keys, under those of `text_config`."""
    nested = config.get("text_config")
    if nested is None:
        nested = {}
    if not isinstance(nested, Mapping):
        raise ConfigError(f"text_config in config.json must be an object, not {type(nested).__name__}")
    # An explicit null counts where it means something: `"sliding_window": null` is not the default window.
    return {**row.hf_defaults, **config, **nested} | {
        key: config[key] for key in ("eos_token_id", "bos_token_id") if config.get(key) is not None
    }


def _head_dim(f: Fields, hidden_size: int, num_heads: int) -> int:
    if f.has("head_dim"):
        return f.integer("head_dim", MAX_HEAD_DIM)
    if hidden_size % num_heads:
        raise ConfigError(
            f"{f.name('hidden_size')} is {hidden_size}, which {num_heads} attention heads do not divide; "
            "head_dim must then be given"
        )
    return hidden_size // num_heads


def _windows(f: Fields, row: Architecture, num_layers: int) -> tuple[int | None, ...]:
    window = f.optional_integer("sliding_window", MAX_POSITIONS)
    is_qwen = row.name in ("qwen2", "qwen3")
    if window is None or (is_qwen and not f.boolean("use_sliding_window", default=False)):
        return (None,) * num_layers
    layer_types = f.raw("layer_types")
    if layer_types is not None and row.name not in ("llama", "phi3"):
        return _windows_by_type(f, layer_types, window, num_layers)
    if is_qwen:
        first = f.integer("max_window_layers", MAX_LAYERS, minimum=0)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    every = row.full_attention_every
    if row.name == "gemma3":
        every = f.integer("sliding_window_pattern", MAX_LAYERS, default=every)
    return tuple(None if every and (layer + 1) % every == 0 else window for layer in range(num_layers))


def _windows_by_type(f: Fields, layer_types: object, window: int, num_layers: int) -> tuple[int | None, ...]:
    known = {"sliding_attention": window, "full_attention": None}
    if not isinstance(layer_types, list) or len(layer_types) != num_layers:
        raise ConfigError(f"{f.name('layer_types')} must be a list with one entry for each of {num_layers} layers")
    for layer_type in layer_types:
        if not isinstance(layer_type, str) or layer_type not in known:
            raise ConfigError(f"{f.name('layer_types')} holds {str(layer_type)[:60]!r}; Hob knows {', '.join(known)}")
    return tuple(known[layer_type] for layer_type in layer_types)


def _activation(f: Fields, row: Architecture) -> str:
    # Gemma's early config.json says hidden_act "gelu" for weights trained with the tanh form: hidden_activation counts.
    key = "hidden_activation" if row.scale_embedding else "hidden_act"
    name = f.text(key, default="gelu_pytorch_tanh" if row.scale_embedding else "silu")
    if name not in ACTIVATIONS:
        raise ConfigError(f"{f.name(key)} is {name[:60]!r}; Hob knows {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _eos_token_ids(f: Fields, generation_config: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    generation = Fields(generation_config, "generation_config.json")
    ids = f.token_ids("eos_token_id", vocab_size) + generation.token_ids("eos_token_id", vocab_size)
    return tuple(dict.fromkeys(ids))


def _quantization(f: Fields) -> str:
    if quantization := f.mapping(QUANTIZATION_KEY).values:
        return quantization_level(quantization)
    dtype = f.text("dtype" if f.has("dtype") else "torch_dtype", default="unknown").removeprefix("torch.")
    return DTYPES.get(dtype, dtype)


def _stored_quantization(f: Fields) -> StoredQuantization | None:
    quantization = f.mapping(QUANTIZATION_KEY)
    return read_quantization(quantization.values, quantization.label) if quantization.values else None


def _ropes(f: Fields, row: Architecture, head_dim: int, max_positions: int) -> tuple[Rope, Rope | None]:
    """The rotation of full-attention layers, and of the windowed ones where it differs."""
    key = "rope_parameters" if f.has("rope_parameters") else "rope_scaling"
    parameters = f.mapping(key)
    if row.name != "gemma3":
        return _rope(f, parameters, row, head_dim, max_positions, "rope_theta", 10_000.0), None
    if parameters.has("full_attention") or parameters.has("sliding_attention"):
        full, local = parameters.mapping("full_attention"), parameters.mapping("sliding_attention")
    else:
        full, local = parameters, Fields({}, f.label)
    return (
        _rope(f, full, row, head_dim, max_positions, "rope_theta", 1_000_000.0),
        _rope(f, local, row, head_dim, max_positions, "rope_local_base_freq", 10_000.0),
    )


def _rope(
    f: Fields, p: Fields, row: Architecture, head_dim: int, max_positions: int, theta_key: str, default_theta: float
) -> Rope:
    theta_fields, key = (p, "rope_theta") if p.has("rope_theta") else (f, theta_key)
    theta = theta_fields.number(key, above=1.0, maximum=1e15, default=default_theta)
    partial = p if p.has("partial_rotary_factor") else f
    rotary_dim = int(head_dim * partial.number("partial_rotary_factor", maximum=1.0, default=1.0))
    scaling = p.text("rope_type" if p.has("rope_type") else "type", default="default")
    # Phi-3's first files say "su", and "yarn" for what became LongRoPE.
    if scaling == "su" or (scaling == "yarn" and row.name == "phi3"):
        scaling = "longrope"
    if scaling not in ROPE_TYPES:
        raise ConfigError(f"{p.name('rope_type')} is {scaling[:60]!r}; Hob knows {', '.join(ROPE_TYPES)}")
    if scaling == "default":
        return Rope(theta, rotary_dim)
    stretched = p if p.has("original_max_position_embeddings") else f
    original = stretched.integer(
        "original_max_position_embeddings", MAX_POSITIONS, minimum=2, default=max(max_positions, 2)
    )
    ratio = max_positions / original if scaling in ("yarn", "longrope") else None
    factor = p.number("factor", maximum=1e6, default=ratio)
    common: dict[str, Any] = {"factor": factor, "original_max_positions": original, "scaling": scaling}
    if scaling == "llama3":
        low = p.number("low_freq_factor", maximum=1e6)
        high = p.number("high_freq_factor", maximum=1e6)
        if high <= low:
            raise ConfigError(f"{p.name('high_freq_factor')} is {high:g}; it must exceed low_freq_factor, {low:g}")
        return Rope(theta, rotary_dim, low_freq_factor=low, high_freq_factor=high, **common)
    if scaling == "longrope":
        attention = p.number("attention_factor", maximum=1e3, default=longrope_attention_factor(factor, original))
        short, long = (p.numbers(name, rotary_dim // 2, maximum=1e9) for name in ("short_factor", "long_factor"))
        return Rope(theta, rotary_dim, attention_factor=attention, short_factors=short, long_factors=long, **common)
    if scaling == "yarn":
        return _yarn(p, theta, rotary_dim, common)
    return Rope(theta, rotary_dim, **common)


def _yarn(p: Fields, theta: float, rotary_dim: int, common: dict[str, Any]) -> Rope:
    mscale, mscale_all = p.optional_number("mscale", maximum=1e3), p.optional_number("mscale_all_dim", maximum=1e3)
    attention = yarn_attention_factor(common["factor"])
    if mscale and mscale_all:
        attention = yarn_attention_factor(common["factor"], mscale) / yarn_attention_factor(
            common["factor"], mscale_all
        )
    return Rope(
        theta,
        rotary_dim,
        attention_factor=p.number("attention_factor", maximum=1e3, default=attention),
        beta_fast=p.number("beta_fast", maximum=1e6, default=32.0),
        beta_slow=p.number("beta_slow", maximum=1e6, default=1.0),
        truncate=p.boolean("truncate", default=True),
        **common,
    )
