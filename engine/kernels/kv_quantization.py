"""Keys and values of 8 bits: how the kernels write them, and how they read them back.

A vector is stored as `kv_types` says. Int8 rounds to the nearest, halves up; float8 is e4m3fn, rounded to the nearest,
halves to even. Attention never multiplies scales out: what is stored is exact in 16 bits and goes into the product as
it is; a key's scale is a factor of its score, a value's one of its weight. Such weights may be too small for float16:
where that is the computing type, they and the values are bfloat16.

From compute capability 8.9 on, float8 is converted by the hardware. Elsewhere, in the interpreter too, launchers pass
the same bytes as uint8 (`stored_bytes`), and the conversion is a few integer operations: a float8's bits, moved to
where float16 or float32 has its exponent and fraction, are that number but for a power of two, subnormal or not.

Used by the kernels that touch the KV cache. The twin is `reference_kv`.

Source: Micikevicius et al. 2022, arXiv:2209.05433 (e4m3).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.kv_types import LARGEST, LEAST
from engine.kernels.launch import DOT_IN_FLOAT32, capability

MIN_FLOAT8_CAPABILITY = 89

_INT8_LARGEST: tl.constexpr = tl.constexpr(LARGEST[torch.int8])
_FLOAT8_LARGEST: tl.constexpr = tl.constexpr(LARGEST[torch.float8_e4m3fn])
_LEAST: tl.constexpr = tl.constexpr(LEAST)
_TO_FLOAT16: tl.constexpr = tl.constexpr(2.0**8)
"""What float8 bits, seen as float16, are multiplied by: the difference of the exponents' biases is 15 - 7."""
_FROM_FLOAT32: tl.constexpr = tl.constexpr(2.0**-120)
"""What a float32 is multiplied by to have the bits of a float8: 7 - 127."""


def stored_bytes(cache: torch.Tensor) -> torch.Tensor:
    """The cache as kernels take it on its device."""
    if cache.dtype == torch.float8_e4m3fn and capability(cache.device) < MIN_FLOAT8_CAPABILITY:
        return cache.view(torch.uint8)
    return cache


@triton.jit
def magnitude(x):
    """|x|; infinite where it is no number, so that a damaged vector's scale tells."""
    return tl.where(x == x, tl.abs(x), float("inf"))


@triton.jit
def scale_of(
    largest,  # float32, of a vector's magnitudes
    stored_type: tl.constexpr,  # type of the cache
):
    """A vector's scale, and what its elements are multiplied by to be stored."""
    is_there = largest > _LEAST
    divisor = tl.where(is_there, largest, 1.0)
    if stored_type == tl.int8:
        scale = largest * (1.0 / _INT8_LARGEST)
        inverse = _INT8_LARGEST / divisor
    else:
        scale = largest * (1.0 / _FLOAT8_LARGEST)
        inverse = _FLOAT8_LARGEST / divisor
    return tl.where(is_there, scale, 0.0), tl.where(is_there, inverse, 0.0)


@triton.jit
def encoded(
    x,  # float32, times `inverse`: at most the largest number of the type
    stored_type: tl.constexpr,
):
    """Elements as they are stored."""
    if stored_type == tl.int8:
        return tl.floor(x + 0.5).to(tl.int8)
    elif stored_type == tl.uint8:
        bits = (x * _FROM_FLOAT32).to(tl.uint32, bitcast=True)
        rounded = bits + 0x7FFFF + ((bits >> 20) & 1)  # a carry goes on into the exponent, as it should
        return (((rounded >> 20) & 0x7F) | ((bits >> 24) & 0x80)).to(tl.uint8)
    else:
        return x.to(stored_type)


@triton.jit
def decoded(
    stored,
    OUT: tl.constexpr,  # type of the products; holds every number of 8 bits
):
    """What a cache holds, without scales, as `tl.dot` can take it here: of type OUT, float32 in the interpreter."""
    if stored.dtype == tl.uint8:
        bits = ((stored & 0x80).to(tl.uint16) << 8) | ((stored & 0x7F).to(tl.uint16) << 7)
        numbers = bits.to(tl.float16, bitcast=True) * _TO_FLOAT16
    else:
        numbers = stored
    if DOT_IN_FLOAT32:
        return numbers.to(tl.float32)
    else:
        return numbers.to(OUT)


@triton.jit
def load_scales(
    scales_ptr,  # float32 [num_blocks, num_kv_heads, BLOCK_SIZE], of K or of V
    blocks,  # of the tile: one, or [TILE]
    start,  # first position of the tile
    first,  # half-open: positions to load are in [first, stop)
    stop,
    kv_head,
    num_kv_heads,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Scales of a tile of keys or values: [TILE], zero where nothing is to be loaded."""
    position = start + tl.arange(0, TILE)
    slot = (blocks.to(tl.int64) * num_kv_heads + kv_head) * BLOCK_SIZE + position % BLOCK_SIZE
    return tl.load(scales_ptr + slot, mask=(position >= first) & (position < stop), other=0.0)
