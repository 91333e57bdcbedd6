"""Caches of 8 bits for the tests of kernels: what is poison in a float cache is poison in its scales, too."""

from __future__ import annotations

import torch

from engine.kernels.kv_types import is_quantized
from engine.kernels.reference_kv import quantize

Tensor = torch.Tensor

TYPES = (torch.int8, torch.float8_e4m3fn)
# (atol, rtol) of what is stored: one step, where the number was near the middle of two.
STORED_TOLERANCE = {torch.int8: (1.0, 0.0), torch.float8_e4m3fn: (2.0**-9, 0.13)}


def float_type(dtype: torch.dtype) -> torch.dtype:
    """What a cache is filled in before it is quantised."""
    return torch.float32 if is_quantized(dtype) else dtype


def quantized(k_cache: Tensor, v_cache: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Both caches in a type, and their scales by the names that kernels have for them; none where it has none."""
    if not is_quantized(dtype):
        return k_cache, v_cache, {}
    caches, scales = [], {}
    for name, cache in (("k_scales", k_cache), ("v_scales", v_cache)):
        poison = cache.isnan().any(-1)
        stored, own = quantize(cache.masked_fill(poison[..., None], 1.0), dtype)
        scales[name] = own.masked_fill_(poison, torch.nan)
        caches.append(stored)
    return caches[0], caches[1], scales


def result_type(dtype: torch.dtype, scales: dict[str, Tensor]) -> torch.dtype:
    """The type whose tolerance a result of `dtype` has: float16's weights are bfloat16 when they are times scales."""
    return torch.bfloat16 if scales and dtype == torch.float16 else dtype


def clones(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same by name, to be written to by somebody else."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_stored_close(actual: Tensor, expected: Tensor) -> None:
    """Equal but for a step of the type here and there."""
    atol, rtol = STORED_TOLERANCE[expected.dtype]
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual.float(), expected.float(), atol=atol, rtol=rtol)
