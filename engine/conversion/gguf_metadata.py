"""A safetensors model's configuration as GGUF metadata: the inverse of `engine.config_gguf`.

What was written is read back and compared with the configuration it came from, so that nothing that GGUF has no key
for gets lost in silence. The vocabulary is in `gguf_vocabulary`. Used by `gguf_job`.

Source: ggml's docs/gguf.md; set_gguf_parameters of convert_hf_to_gguf.py (llama.cpp).
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from engine.architectures import BY_NAME
from engine.config import ModelConfig
from engine.conversion.errors import ConversionError
from engine.pooling import GGUF_MODES
from engine.rope import Rope, yarn_attention_factor
from modelfiles.gguf import GGUFValue, NewTensor

LOCAL_THETA = 10_000.0
"""Rope base of Gemma 3's windowed layers where a file does not say."""

CONVENTIONS = (
    "architecture", "norm_offset", "interleaved_rope", "fused_projections", "num_parameters", "quantization",
    "tie_word_embeddings",
)  # fmt: skip
"""Fields of ModelConfig that differ between the formats by design."""
ELSEWHERE = (
    "vocab_size", "rope", "local_rope", "windows", "max_position_embeddings", "bos_token_id", "eos_token_ids",
)  # fmt: skip
"""Fields that are compared in another way, or by `gguf_vocabulary`."""


@dataclass(frozen=True)
class GGUFDescription:
    """What stands in a GGUF file beside the weights."""

    metadata: dict[str, GGUFValue]
    tables: dict[str, bytes]
    """Name -> float32 values: rope factors, which GGUF keeps in tensors."""
    notes: tuple[str, ...]
    """Sentences about what the file has otherwise than its source."""


def describe(config: ModelConfig, name: str) -> GGUFDescription:
    """A model's configuration in the words of GGUF.

    Raises:
        ConversionError: GGUF has no word for something.
    """
    family = config.family
    windowed = _window(config)
    has_windows = BY_NAME[config.architecture].full_attention_every != 1 and config.architecture != "mistral"
    context, notes = config.max_position_embeddings, []
    if windowed is not None and not has_windows and windowed < context:
        notes.append(
            f"GGUF files of this family have no attention window; the context ends at the window, {windowed} tokens "
            f"instead of {context}"
        )
        context = windowed
    values: dict[str, GGUFValue] = {
        "context_length": context,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": config.rope.rotary_dim,
        "rope.freq_base": float(config.rope.theta),
        "vocab_size": config.vocab_size,
    }
    if config.attention_softcap is not None:
        values["attn_logit_softcapping"] = float(config.attention_softcap)
    if config.final_softcap is not None:
        values["final_logit_softcapping"] = float(config.final_softcap)
    if windowed is not None and has_windows:
        values["attention.sliding_window"] = windowed
    if config.local_rope is not None and config.local_rope.theta != LOCAL_THETA:
        values["rope.freq_base_swa"] = float(config.local_rope.theta)
    if config.pooling is not None:
        values["pooling_type"] = next(number for number, mode in GGUF_MODES.items() if mode == config.pooling.mode)
        values["normalize_embeddings"] = config.pooling.normalize
    scaling, tables = _rope_scaling(config.rope)
    metadata: dict[str, GGUFValue] = {
        "general.architecture": family,
        "general.type": "model",
        "general.name": name,
        **{f"{family}.{key}": value for key, value in {**values, **scaling}.items()},
    }
    return GGUFDescription(metadata, tables, tuple(notes))


def check_description(config: ModelConfig, description: GGUFDescription, tensors: Sequence[NewTensor]) -> None:
    """Whether a reader of the new file sees the model that was converted.

    Args:
        tensors: all of the new file; their data is not looked at.

    Raises:
        ConversionError: something differs; the message names it.
    """
    table = {tensor.name: tensor for tensor in tensors}
    read = ModelConfig.from_gguf(description.metadata, table, lambda name: memoryview(description.tables[name]))
    for field in dataclasses.fields(ModelConfig):
        old, new = getattr(config, field.name), getattr(read, field.name)
        if field.name not in (*CONVENTIONS, *ELSEWHERE) and not _is_same(old, new):
            raise _cannot_hold(config, f"{field.name} {old!r}, which readers would take for {new!r}")
    context = read.max_position_embeddings
    if not description.notes and (read.kv_groups != config.kv_groups or context != config.max_position_embeddings):
        raise _cannot_hold(config, "attention windows that alternate as its layers do")
    for layer in range(config.num_layers):
        old_rope, new_rope = config.rope_of(layer), read.rope_of(layer)
        if not _is_same(old_rope.attention_factor, new_rope.attention_factor) or not _is_same(
            old_rope.inv_freq(context), new_rope.inv_freq(context)
        ):
            raise _cannot_hold(config, f"rope scaling of the type {old_rope.scaling}, as it stands in config.json")


def _cannot_hold(config: ModelConfig, what: str) -> ConversionError:
    return ConversionError(
        f"this {config.architecture} model cannot become a GGUF file, which has no key for {what}; leave quantize out, "
        "or take fp8 or int8"
    )


def _window(config: ModelConfig) -> int | None:
    """The window of the layers that have one."""
    found = {window for window in config.windows if window is not None}
    return min(found) if found else None


def _rope_scaling(rope: Rope) -> tuple[dict[str, GGUFValue], dict[str, bytes]]:
    """Keys without the family's name, and the tensors of factors."""
    if rope.scaling == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope.factor)}, {}
    if rope.scaling == "yarn":
        return {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope.factor),
            "rope.scaling.original_context_length": rope.original_max_positions,
            "rope.scaling.attn_factor": rope.attention_factor / yarn_attention_factor(rope.factor),
            "rope.scaling.yarn_beta_fast": float(rope.beta_fast),
            "rope.scaling.yarn_beta_slow": float(rope.beta_slow),
        }, {}
    if rope.scaling == "llama3":
        plain = Rope(rope.theta, rope.rotary_dim).inv_freq(0)
        factors = [before / after for before, after in zip(plain, rope.inv_freq(0), strict=True)]
        return {}, {"rope_freqs.weight": _float32(factors)}
    if rope.scaling == "longrope":
        return {
            "rope.scaling.original_context_length": rope.original_max_positions,
            "rope.scaling.attn_factor": float(rope.attention_factor),
        }, {
            "rope_factors_long.weight": _float32(rope.long_factors),
            "rope_factors_short.weight": _float32(rope.short_factors),
        }
    return {}, {}  # "dynamic" has no key; the comparison finds out where it matters


def _float32(values: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def _is_same(old: object, new: object) -> bool:
    """Equal, but for what float32 rounds off."""
    if isinstance(old, tuple) and isinstance(new, tuple):
        return len(old) == len(new) and all(map(_is_same, old, new))
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-6)
    return old == new
