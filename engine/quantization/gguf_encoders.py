"""Float weights -> block formats of GGUF: one vectorised function a format, looked up in `ENCODERS`.

The inverse of `gguf_blocks`. Each encoder takes float32 [num_blocks, elements_per_block] and returns uint8
[num_blocks, bytes_per_block]. The formats of 32 elements are here, bit for bit what ggml's reference makes of the same
weights; those of 256 are in `gguf_k_encoders`. `engine.conversion` calls `quantize` a bounded piece at a time.

Source: quantize_row_*_ref of ggml-quants.c (llama.cpp).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.quantization import gguf_k_encoders
from engine.quantization.gguf_blocks import IQ4_VALUES
from engine.quantization.scale_search import TINY, signed_extreme
from modelfiles.gguf import BLOCK_LAYOUT, GGMLType

Tensor = torch.Tensor
Encoder = Callable[[Tensor], Tensor]

MAX_HALF = 65504.0
"""Largest float16, in which blocks keep their scales."""


class UnquantizableError(ValueError):
    """Weights that a format cannot hold; the message is the end of a sentence that begins with their name."""


def quantize(type: GGMLType, values: Tensor) -> Tensor:
    """Packs weights into blocks of any format of `ENCODERS`.

    Args:
        values: float32 [num_rows, num_columns]; a row is a whole number of blocks.

    Returns:
        uint8 [num_rows, bytes_per_row].

    Raises:
        UnquantizableError: a value is not finite, or so large that no scale of the format reaches it.
        ValueError: the format has no encoder, or rows are no whole number of blocks.
    """
    encode = ENCODERS.get(type)
    if encode is None:
        known = ", ".join(sorted(known.name for known in ENCODERS))
        raise ValueError(f"block format {type.name} cannot be written; these can: {known}")
    elements, num_bytes = BLOCK_LAYOUT[type]
    if values.dtype != torch.float32 or values.ndim != 2 or values.shape[1] % elements:
        raise ValueError(
            f"{type.name} packs float32 rows of a multiple of {elements}, not {values.dtype} {list(values.shape)}"
        )
    _check(type, values)
    blocks = encode(values.reshape(-1, elements).contiguous())
    return blocks.view(len(values), values.shape[1] // elements * num_bytes)


def _check(type: GGMLType, values: Tensor) -> None:
    largest = values.abs().amax().item() if values.numel() else 0.0
    if not largest < float("inf"):  # also where it is NaN
        row = int((~values.isfinite()).any(1).nonzero()[0])
        raise UnquantizableError(f"has a value that is no finite number, in row {row}")
    limit = MAX_VALUES.get(type, MAX_HALF)
    if largest > limit:
        raise UnquantizableError(f"has a value of magnitude {largest:.3g}; {type.name} reaches {limit:.3g}")


def half_bytes(values: Tensor) -> Tensor:
    """float32 [num_blocks, count] -> the same as float16, uint8 [num_blocks, 2 * count]."""
    return values.half().contiguous().view(torch.uint8)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0, 1 / scale)


def _nibbles(levels: Tensor) -> Tensor:
    """uint8 [num_blocks, 32] -> [num_blocks, 16]: the first half low, the second high."""
    low, high = levels.chunk(2, dim=1)
    return (low & 15) | (high << 4)


def _fifth_bits(levels: Tensor) -> Tensor:
    """uint8 [num_blocks, 32] -> [num_blocks, 4]: bit i of the little-endian word is element i's fifth bit."""
    bits = (levels >> 4).view(-1, 4, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=levels.device)).sum(2, dtype=torch.uint8)


def _f32(values: Tensor) -> Tensor:
    return values.view(torch.uint8)


def _bf16(values: Tensor) -> Tensor:
    return values.bfloat16().view(torch.uint8)


def _symmetric(x: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Scale, and levels 0 to 2 * half - 1: the element of the largest magnitude gets level 0."""
    scale = signed_extreme(x) / -half
    levels = (x * _inverse(scale) + (half + 0.5)).trunc_().clamp_(0, 2 * half - 1)
    return scale, levels.to(torch.uint8)


def _affine(x: Tensor, max_level: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, minimum and levels 0 to max_level."""
    low = x.amin(1, keepdim=True)
    scale = (x.amax(1, keepdim=True) - low) / max_level
    levels = ((x - low) * _inverse(scale) + 0.5).trunc_().clamp_(0, max_level)
    return scale, low, levels.to(torch.uint8)


def _q4_0(x: Tensor) -> Tensor:
    scale, levels = _symmetric(x, 8)
    return torch.cat([half_bytes(scale), _nibbles(levels)], dim=1)


def _q4_1(x: Tensor) -> Tensor:
    scale, low, levels = _affine(x, 15)
    return torch.cat([half_bytes(scale), half_bytes(low), _nibbles(levels)], dim=1)


def _q5_0(x: Tensor) -> Tensor:
    scale, levels = _symmetric(x, 16)
    return torch.cat([half_bytes(scale), _fifth_bits(levels), _nibbles(levels)], dim=1)


def _q5_1(x: Tensor) -> Tensor:
    scale, low, levels = _affine(x, 31)
    return torch.cat([half_bytes(scale), half_bytes(low), _fifth_bits(levels), _nibbles(levels)], dim=1)


def _q8_0(x: Tensor) -> Tensor:
    scale = x.abs().amax(1, keepdim=True) / 127
    scaled = x * _inverse(scale)
    magnitude = scaled.abs()
    floor = magnitude.floor()
    rounded = floor + (magnitude - floor >= 0.5)  # halves away from zero, as C's roundf; torch rounds them to even
    levels = torch.copysign(rounded, scaled).to(torch.int8)
    return torch.cat([half_bytes(scale), levels.view(torch.uint8)], dim=1)


def _iq4_nl(x: Tensor) -> Tensor:
    """16 uneven values: rows of Q2_K and Q3_K that are no multiple of 256 become this. Searched as the K-quants are."""
    values = torch.tensor(IQ4_VALUES, dtype=torch.float32, device=x.device)
    borders = (values[1:] + values[:-1]) / 2
    extreme = signed_extreme(x)
    is_zero = extreme.abs() < TINY
    weights = x * x
    scale, best = torch.zeros_like(extreme), torch.full_like(extreme, -1)
    # The extreme becomes about -127; or it is beyond the other end, 113.
    for reach in (-IQ4_VALUES[0], *range(IQ4_VALUES[0] - 7, IQ4_VALUES[0] + 8)):
        inverse = torch.where(is_zero, 0, reach / extreme)
        level = values[torch.bucketize(x * inverse, borders)]
        sum_lx = (weights * x * level).sum(1, keepdim=True)
        sum_ll = (weights * level * level).sum(1, keepdim=True)
        fitted = sum_lx / torch.where(sum_ll > 0, sum_ll, 1)
        is_better = (sum_ll > 0) & (fitted * sum_lx > best)
        best = torch.where(is_better, fitted * sum_lx, best)
        scale = torch.where(is_better, fitted, scale)
    scale = torch.where(is_zero, 0, scale)
    levels = torch.bucketize(x * _inverse(scale.half().float()), borders).to(torch.uint8)
    return torch.cat([half_bytes(scale), _nibbles(levels)], dim=1)


ENCODERS: dict[GGMLType, Encoder] = {
    GGMLType.F32: _f32,
    GGMLType.F16: half_bytes,
    GGMLType.BF16: _bf16,
    GGMLType.Q4_0: _q4_0,
    GGMLType.Q4_1: _q4_1,
    GGMLType.Q5_0: _q5_0,
    GGMLType.Q5_1: _q5_1,
    GGMLType.Q8_0: _q8_0,
    GGMLType.IQ4_NL: _iq4_nl,
    GGMLType.Q2_K: gguf_k_encoders.q2_k,
    GGMLType.Q3_K: gguf_k_encoders.q3_k,
    GGMLType.Q4_K: gguf_k_encoders.q4_k,
    GGMLType.Q5_K: gguf_k_encoders.q5_k,
    GGMLType.Q6_K: gguf_k_encoders.q6_k,
}

MAX_VALUES: dict[GGMLType, float] = {
    GGMLType.F32: float("inf"),
    GGMLType.BF16: 3.38e38,
    GGMLType.Q4_0: 8 * MAX_HALF,
    GGMLType.Q5_0: 16 * MAX_HALF,
    GGMLType.Q8_0: 127 * MAX_HALF,
    GGMLType.IQ4_NL: 113 * MAX_HALF,
}
"""Largest magnitude that each format's scale reaches; MAX_HALF, which is below that of the others, where none is given.
"""
