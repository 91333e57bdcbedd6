"""What a safetensors checkpoint says of its quantised weights: where it says so, in a few words, in numbers.

Quantising tools describe their output in `quantization_config` of config.json; older ones left a file of their own
beside it. Here are the parts that the registry shows and the engine needs alike. Nothing is checked: whether Hob can
read such weights is for `engine.quantization.checkpoint_config` to say, when they are to be run.
Source: transformers utils/quantization_config.py; AutoGPTQ's quantize_config.json and AutoAWQ's quant_config.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from modelfiles.source import ModelSource

KEY = "quantization_config"
SIDE_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""A file of an older tool -> the method, which it does not name itself."""

PACKED = ("qweight", "weight_packed")
"""Last parts of the names of tensors whose elements are words of several weights."""
COMPANIONS = frozenset(
    (
        "qzeros",
        "scales",
        "g_idx",
        "weight_scale",
        "weight_scale_inv",
        "weight_zero_point",
        "weight_shape",
        "weight_g_idx",
    )
)
"""Last parts of the names of tensors that belong to a quantised one and are no weights of their own."""
ACTIVATION_SCALES = frozenset(
    ("input_scale", "input_zero_point", "activation_scale", "output_scale", "q_scale", "k_scale", "v_scale")
)
"""Ranges that were measured of activations. Hob computes with unquantised ones and needs none of these."""


def find_quantization(source: ModelSource, config: Mapping[str, Any]) -> tuple[dict[str, Any], str] | None:
    """The description of a checkpoint's quantisation and where it stands, or None where nothing is quantised.

    Args:
        config: the contents of config.json.

    Raises:
        SourceError: a file is not UTF-8.
    """
    inner = config.get("text_config")
    for holder in (config, inner if isinstance(inner, dict) else {}):
        if isinstance(found := holder.get(KEY), dict) and found:
            return found, f"{KEY} in config.json"
    for name, method in SIDE_FILES.items():
        try:
            found = json.loads(source.read_text(name) or "null")
        except (ValueError, RecursionError):  # no JSON: then it describes nothing
            continue
        if isinstance(found, dict) and found:
            return {"quant_method": method, **found}, name
    return None


def quantization_level(quantization: Mapping[str, Any]) -> str:
    """The way to say it: "AWQ-INT4", "GPTQ-INT8", "FP8", "INT4"; a method that Hob does not know, by its name."""
    method = quantization.get("quant_method")
    if not isinstance(method, str):
        return ""
    if method in ("fp8", "fbgemm_fp8"):
        return "FP8"
    if method == "compressed-tensors":
        levels = {_group_level(weights) for weights in _group_weights(quantization)} - {""}
        return "+".join(sorted(levels)) or method.upper()
    bits = packed_bits(quantization)
    return f"{method.upper()}-INT{bits}" if method in ("awq", "gptq") and bits else method.upper()


def packed_bits(quantization: Mapping[str, Any]) -> int:
    """Bits of a weight in a packed word; 0 where it is not said."""
    candidates = [quantization.get("bits"), quantization.get("w_bit")]
    candidates += [weights.get("num_bits") for weights in _group_weights(quantization) if weights.get("type") == "int"]
    candidates += [4] if quantization.get("quant_method") == "awq" else []
    return next((bits for bits in candidates if type(bits) is int and 1 <= bits <= 32), 0)


def num_weights(name: str, shape: tuple[int, ...], bits: int) -> int:
    """Weights that a tensor of a quantised checkpoint stands for; none for a companion."""
    last = name.rpartition(".")[2]
    if last in COMPANIONS or last in ACTIVATION_SCALES:
        return 0
    return math.prod(shape) * (32 // bits if last in PACKED and bits else 1)


def _group_weights(quantization: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """`weights` of each group of compressed-tensors."""
    groups = quantization.get("config_groups")
    if not isinstance(groups, dict):
        return []
    found = [group.get("weights") for group in groups.values() if isinstance(group, dict)]
    return [weights for weights in found if isinstance(weights, dict)]


def _group_level(weights: Mapping[str, Any]) -> str:
    kind = {"int": "INT", "float": "FP"}.get(str(weights.get("type", "int")))
    bits = weights.get("num_bits")
    return f"{kind}{bits}" if kind and type(bits) is int else ""
