"""Products and rows of packed matrices in plain torch: the twins of `packed_product` and `packed_rows`.

Planes are read as `quantization.packed_format` describes them, in the most direct way; arithmetic is in float32.
"""

from __future__ import annotations

import torch

from engine.quantization.packed_format import Code, PackedWeight, Scale

Tensor = torch.Tensor


def packed_rows(weight: PackedWeight, dtype: torch.dtype, rows: Tensor | None = None, *, pdl: bool = False) -> Tensor:
    """As `packed_rows.packed_rows`."""
    values = _values(weight)
    return (values if rows is None else values[rows.long()]).to(dtype)


def packed_token_rows(
    weight: PackedWeight, dtype: torch.dtype, rows: Tensor, positions: Tensor, tokens: Tensor, *, pdl: bool = False
) -> Tensor:
    """As `packed_rows.packed_token_rows`."""
    ids = torch.where(rows < 0, tokens[0, 0], tokens[rows.clamp(min=0).long(), positions.long()])
    return packed_rows(weight, dtype, ids)


def packed_product(x: Tensor, weight: PackedWeight, bias: Tensor | None = None, *, pdl: bool = False) -> Tensor:
    """As `packed_product.packed_product`."""
    y = x.float() @ _values(weight).T
    return (y if bias is None else y + bias.float()).to(x.dtype)


def _values(weight: PackedWeight) -> Tensor:
    """float32 [num_rows, num_columns]"""
    codes = (_codes(weight) - weight.format.zero).float()
    scales, offsets = _scales(weight)
    values = codes * scales.repeat_interleave(weight.format.group, 1)
    return values if offsets is None else values + offsets.repeat_interleave(weight.format.group, 1)


def _codes(weight: PackedWeight) -> Tensor:
    """int32 [num_rows, num_columns]"""
    words = weight.planes.words.int() & 0xFFFF
    if weight.format.code == Code.BYTE:
        quarters = [(words[:, :, half] >> shift) & 255 for half in (0, 1) for shift in (0, 8)]
    else:
        quarters = [(words >> 4 * j) & 15 for j in range(4)]
    extra = weight.planes.extra.int()
    if weight.format.code == Code.FIVE_BITS:
        bits = torch.cat([extra & 15, extra >> 4], -1)
        quarters = [quarter | ((bits >> j) & 1) << 4 for j, quarter in enumerate(quarters)]
    elif weight.format.code == Code.SIX_BITS:
        quarters = [quarter | ((extra >> 2 * j) & 3) << 4 for j, quarter in enumerate(quarters)]
    codes = torch.stack(quarters, 3)  # [row_blocks, units, 16, 4, unit]
    return codes.transpose(1, 2).reshape(weight.num_rows, weight.num_columns)


def _scales(weight: PackedWeight) -> tuple[Tensor, Tensor | None]:
    """float32 [num_rows, groups], and the offsets where there are any."""

    def by_row(plane: Tensor) -> Tensor:
        return plane.transpose(1, 2).clone(memory_format=torch.contiguous_format).view(weight.num_rows, -1)

    scales = by_row(weight.planes.scales)
    if weight.format.scale == Scale.HALF:
        return scales.float(), None
    if weight.format.scale == Scale.HALF_PAIR:
        low, high = scales.contiguous().view(torch.float16).view(*scales.shape, 2).float().unbind(-1)
        return low, high
    supers = by_row(weight.planes.supers).contiguous()
    groups = 256 // weight.format.group
    if weight.format.scale == Scale.BYTE:
        return supers.float().repeat_interleave(groups, 1) * scales.float(), None
    low, high = supers.view(torch.float16).view(*supers.shape, 2).float().repeat_interleave(groups, 1).unbind(-1)
    return low * (scales & 255).float(), -(high * (scales >> 8).float())


def rounded_activations(x: Tensor, weight: PackedWeight) -> Tensor:
    """x as `packed_gemv` multiplies codes that are integers with it: float32, like `x`.

    Of 32 columns at a time, eight consecutive ones of each quarter of a unit, the largest becomes 127.
    """
    parts = x.float().view(len(x), -1, 4, weight.unit // 8, 8)
    largest = parts.abs().amax((2, 4), keepdim=True).clamp_min(1e-30)
    return ((parts * (127.0 * (1.0 / largest))).round() * (largest * (1.0 / 127.0))).view(x.shape)
