"""GGUF metadata and tensor table -> the fields of ModelConfig.

Sources: the GGUF description (ggml docs/gguf.md) for the keys; llama.cpp src/llama-model.cpp for what a file may leave
out, and for Gemma's attention scale, which no key carries.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Protocol

from engine.architectures import BY_GGUF_NAME, Architecture
from engine.config_fields import (
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_VOCAB_SIZE,
    MAX_WIDTH,
    ConfigError,
    Fields,
    checked_numbers,
)
from engine.pooling import pooling_of_gguf
from engine.rope import Rope, yarn_attention_factor

LABEL = "the GGUF metadata"
GUESSED = 1024
"""Bit of general.file_type: the writer guessed."""
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
    28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip
"""general.file_type -> name; the missing numbers are formats that were withdrawn."""
ROPE_TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")

TensorData = Callable[[str], memoryview]


class TensorInfo(Protocol):
    """What the configuration needs of modelfiles.gguf.GGUFTensor."""

    @property
    def shape(self) -> Sequence[int]:
        """Outermost first."""
        ...

    @property
    def type(self) -> IntEnum: ...


def fields_from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo], tensor_data: TensorData | None
) -> dict[str, Any]:
    """Keyword arguments of ModelConfig."""
    row = _architecture(metadata)
    f = Fields(metadata, LABEL, f"{row.gguf_name}.")
    hidden_size = f.integer("embedding_length", MAX_WIDTH)
    num_layers = f.integer("block_count", MAX_LAYERS)
    num_heads = f.integer("attention.head_count", MAX_HEADS)
    vocab_size = gguf_vocab_size(f, metadata, tensors)
    head_dim = _head_dim(f, hidden_size, num_heads)
    max_positions = f.integer("context_length", MAX_POSITIONS)
    rope = _rope(f, tensors, tensor_data, head_dim, max_positions, row)
    if rope.scaling == "yarn":
        max_positions = max(max_positions, int(rope.original_max_positions * rope.factor))
    tokens = Fields(metadata, LABEL, "tokenizer.ggml.")
    return {
        "architecture": row.name,
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": f.integer("feed_forward_length", MAX_WIDTH),
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": f.integer("attention.head_count_kv", MAX_HEADS, default=num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": max_positions,
        "rms_norm_eps": f.number("attention.layer_norm_rms_epsilon", maximum=1.0),
        "rope": rope,
        "local_rope": _local_rope(f, row, rope),
        "windows": _windows(f, row, num_layers),
        "activation": "gelu_tanh" if row.scale_embedding else "silu",
        "attention_scale": _attention_scale(row, num_layers, hidden_size, num_heads, head_dim),
        "attention_softcap": f.optional_number("attn_logit_softcapping", maximum=1e6),
        "final_softcap": f.optional_number("final_logit_softcapping", maximum=1e6),
        "qkv_bias": row.qkv_bias or "blk.0.attn_q.bias" in tensors,
        "output_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
        "qk_norm": row.qk_norm,
        "post_norms": row.post_norms,
        "embedding_scale": hidden_size**0.5 if row.scale_embedding else 1.0,
        "fused_projections": row.fused_projections and (not tensors or "blk.0.attn_qkv.weight" in tensors),
        "interleaved_rope": row.interleaved_rope_in_gguf,
        "tie_word_embeddings": bool(tensors) and "output.weight" not in tensors,
        "bos_token_id": next(iter(tokens.token_ids("bos_token_id", vocab_size)), None),
        "eos_token_ids": tuple(
            dict.fromkeys(token_id for key in END_KEYS for token_id in tokens.token_ids(key, vocab_size))
        ),
        "num_parameters": sum(math.prod(t.shape) for name, t in tensors.items() if name not in ROPE_TABLES),
        "quantization": gguf_quantization(metadata, tensors),
        "pooling": pooling_of_gguf(f),
    }


def _architecture(metadata: Mapping[str, Any]) -> Architecture:
    name = Fields(metadata, LABEL).text("general.architecture")
    if name not in BY_GGUF_NAME:
        raise ConfigError(f"architecture {name[:80]!r} is not one that Hob runs; it runs {', '.join(BY_GGUF_NAME)}")
    return BY_GGUF_NAME[name]


def gguf_vocab_size(f: Fields, metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> int:
    """Rows of the embedding; of a file with a vocabulary alone, its tokens."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    num_tokens = len(tokens) if isinstance(tokens, list) else 0
    if "token_embd.weight" not in tensors:
        return f.integer("vocab_size", MAX_VOCAB_SIZE, default=num_tokens or None)
    rows = tensors["token_embd.weight"].shape[0]
    if not 1 <= rows <= MAX_VOCAB_SIZE:
        raise ConfigError(f"token_embd.weight has {rows} rows; it must have between 1 and {MAX_VOCAB_SIZE}")
    if num_tokens > rows:
        raise ConfigError(f"tokenizer.ggml.tokens has {num_tokens} tokens, but token_embd.weight only {rows} rows")
    return rows


def _head_dim(f: Fields, hidden_size: int, num_heads: int) -> int:
    if not f.has("attention.key_length"):
        if hidden_size % num_heads:
            raise ConfigError(
                f"{f.name('embedding_length')} is {hidden_size}, which {num_heads} attention heads do not divide; "
                "attention.key_length must then be given"
            )
        return hidden_size // num_heads
    head_dim = f.integer("attention.key_length", MAX_HEAD_DIM)
    value_dim = f.integer("attention.value_length", MAX_HEAD_DIM, default=head_dim)
    if value_dim != head_dim:
        raise ConfigError(f"keys of {head_dim} and values of {value_dim} elements a head; Hob needs them to be equal")
    return head_dim


def _windows(f: Fields, row: Architecture, num_layers: int) -> tuple[int | None, ...]:
    """Families of the row's pattern only: other files may name a window that their model does not use."""
    if row.full_attention_every == 1:
        return (None,) * num_layers
    window = f.optional_integer("attention.sliding_window", MAX_POSITIONS, minimum=0)
    if row.name == "gemma2" and window is None:
        window = 4096  # files from before the key was written
    if not window:
        return (None,) * num_layers
    pattern = f.raw("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        if len(pattern) != num_layers or not all(isinstance(is_windowed, bool) for is_windowed in pattern):
            raise ConfigError(f"{f.name('attention.sliding_window_pattern')} must hold a boolean for each layer")
        return tuple(window if is_windowed else None for is_windowed in pattern)
    every = row.full_attention_every
    if pattern is not None:
        every = f.integer("attention.sliding_window_pattern", MAX_LAYERS)
    return tuple(None if every and (layer + 1) % every == 0 else window for layer in range(num_layers))


def _attention_scale(row: Architecture, num_layers: int, hidden_size: int, num_heads: int, head_dim: int) -> float:
    """0 for the usual head_dim ** -0.5. The two 27B Gemmas, told by their depth, divide by hidden_size / num_heads."""
    if (row.name, num_layers) in (("gemma2", 46), ("gemma3", 62)) and hidden_size != num_heads * head_dim:
        return math.sqrt(num_heads / hidden_size)
    return 0.0


def _rope(
    f: Fields,
    tensors: Mapping[str, TensorInfo],
    tensor_data: TensorData | None,
    head_dim: int,
    max_positions: int,
    row: Architecture,
) -> Rope:
    key = "rope.global.freq_base" if f.has("rope.global.freq_base") else "rope.freq_base"
    default = 1_000_000.0 if row.name == "gemma3" else 10_000.0
    theta = f.number(key, above=1.0, maximum=1e15, default=default)
    rotary_dim = f.integer("rope.dimension_count", MAX_HEAD_DIM, default=head_dim)
    original = f.integer(
        "rope.scaling.original_context_length", MAX_POSITIONS, minimum=2, default=max(max_positions, 2)
    )
    attention = f.number("rope.scaling.attn_factor", maximum=1e3, default=1.0)
    if "rope_freqs.weight" in tensors:
        factors = _factors("rope_freqs.weight", tensors, tensor_data, rotary_dim)
        return Rope(theta, rotary_dim, "factors", short_factors=factors, attention_factor=attention)
    if "rope_factors_long.weight" in tensors:
        short = _factors("rope_factors_short.weight", tensors, tensor_data, rotary_dim)
        long = _factors("rope_factors_long.weight", tensors, tensor_data, rotary_dim)
        return Rope(
            theta, rotary_dim, "longrope", max(1.0, max_positions / original), original, attention,
            short_factors=short, long_factors=long,
        )  # fmt: skip
    # rope.scale_linear is the key of files from 2023.
    scaling = f.text("rope.scaling.type", default="linear" if f.has("rope.scale_linear") else "none")
    if scaling == "none":
        return Rope(theta, rotary_dim)
    if scaling not in ("linear", "yarn"):
        raise ConfigError(f"{f.name('rope.scaling.type')} is {scaling[:60]!r}; Hob knows none, linear, yarn, longrope")
    factor_key = "rope.scale_linear" if f.has("rope.scale_linear") else "rope.scaling.factor"
    factor = f.number(factor_key, maximum=1e6, default=1.0)
    if scaling == "linear":
        return Rope(theta, rotary_dim, "linear", factor)
    return Rope(
        theta,
        rotary_dim,
        "yarn",
        factor,
        original,
        attention * yarn_attention_factor(factor),
        beta_fast=f.number("rope.scaling.yarn_beta_fast", maximum=1e6, default=32.0),
        beta_slow=f.number("rope.scaling.yarn_beta_slow", maximum=1e6, default=1.0),
    )


def _local_rope(f: Fields, row: Architecture, rope: Rope) -> Rope | None:
    if row.name != "gemma3":
        return None
    key = "rope.local.freq_base" if f.has("rope.local.freq_base") else "rope.freq_base_swa"
    return Rope(f.number(key, above=1.0, maximum=1e15, default=10_000.0), rope.rotary_dim)


def _factors(
    name: str, tensors: Mapping[str, TensorInfo], tensor_data: TensorData | None, rotary_dim: int
) -> tuple[float, ...]:
    """A table of rope factors, one a pair of dimensions, out of a tensor."""
    if name not in tensors:
        raise ConfigError(f"{name} is missing beside rope_factors_long.weight")
    if tensor_data is None:
        raise ConfigError(f"the rope scaling lies in {name}; the tensors' data is needed to read it")
    if tensors[name].type.name != "F32" or tuple(tensors[name].shape) != (rotary_dim // 2,):
        raise ConfigError(
            f"{name} is {tensors[name].type.name} of shape {list(tensors[name].shape)}; "
            f"it must be F32 of shape [{rotary_dim // 2}]"
        )
    return checked_numbers(struct.unpack(f"<{rotary_dim // 2}f", tensor_data(name)), rotary_dim // 2, name, 1e9)


def gguf_quantization(metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str:
    """The file type's name, or the type of most weights where the file does not say."""
    file_type = metadata.get("general.file_type")
    if isinstance(file_type, int) and not file_type & GUESSED and file_type in FILE_TYPES:
        return FILE_TYPES[file_type]
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[tensor.type.name] += math.prod(tensor.shape)
    return sizes.most_common(1)[0][0] if sizes else "unknown"
