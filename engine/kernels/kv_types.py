"""Types of a KV cache of 8 bits, whose every vector (one token, one KV head, K or V) has a scale of its own.

    x ~ scale * stored,    scale = max |x| / LARGEST[type]

Scales are float32: those of 16 bits would save 1 to 3 % of the cache, and lose vectors of small numbers. What is known
here without Triton; the arithmetic is in `kv_quantization` and its twin `reference_kv`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

LARGEST: Mapping[torch.dtype, float] = MappingProxyType({torch.int8: 127.0, torch.float8_e4m3fn: 448.0})
"""The number that the largest element of a vector is stored as."""
LEAST = 1e-30
"""A vector that is nowhere larger counts as zero, with a scale of zero: 1 / scale could be beyond float32."""
SCALE_DTYPE = torch.float32


def is_quantized(dtype: torch.dtype) -> bool:
    """Whether a cache of this type has scales."""
    return dtype in LARGEST


def check_scales(
    kernel: str, k_cache: torch.Tensor, k_scales: torch.Tensor | None, v_scales: torch.Tensor | None
) -> None:
    """What all kernels ask of the scales of a cache.

    Raises:
        ValueError: a cache of 8 bits has none, another has some, or they are not one a slot.
    """
    if (k_scales is None) != (v_scales is None) or (k_scales is not None) != is_quantized(k_cache.dtype):
        raise ValueError(
            f"{kernel}: a cache of {k_cache.dtype}; scales of K and V belong to one of 8 bits, and only it"
        )
    for scales in (k_scales, v_scales):
        if scales is not None and (
            scales.shape != k_cache.shape[:3] or scales.dtype != SCALE_DTYPE or not scales.is_contiguous()
        ):
            raise ValueError(
                f"{kernel}: scales are {scales.dtype} {tuple(scales.shape)}; they must be {SCALE_DTYPE} "
                f"{tuple(k_cache.shape[:3])} and contiguous"
            )
