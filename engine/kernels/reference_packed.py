"""Products and rows of packed matrices in plain torch: the twins of `packed_product` and `packed_rows`.

Planes are read as `quantization.packed_format` describes them, in the most direct way; arithmetic is in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from engine.quantization.packed_format import ROW_BLOCK, Code, PackedWeight, Scale

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
    y = weight.ordered(x).float() @ _values(weight).T
    return (y if bias is None else y + bias.float()).to(x.dtype)


def _values(weight: PackedWeight) -> Tensor:
    """float32 [num_rows, num_columns]"""

    def spread(of_groups: Tensor) -> Tensor:
        """[num_rows, groups] -> [num_rows, num_columns]"""
        group = weight.format.group or weight.num_columns
        return of_groups.repeat_interleave(group, 1)[:, : weight.num_columns]

    scales = _scales(weight)
    codes = _codes(weight) - (weight.format.zero if scales.zeros is None else spread(scales.zeros))
    values = codes * spread(scales.factors)
    return values if scales.offsets is None else values + spread(scales.offsets)


def _codes(weight: PackedWeight) -> Tensor:
    """float32 [num_rows, num_columns]"""
    code, words = weight.format.code, weight.planes.words.int() & 0xFFFF
    if code in (Code.BYTE, Code.FP8):
        quarters = [(words[:, :, half] >> shift) & 255 for half in (0, 1) for shift in (0, 8)]
    else:
        quarters = [(words >> 4 * j) & 15 for j in range(4)]
    extra = weight.planes.extra.int()
    if code == Code.FIVE_BITS:
        bits = torch.cat([extra & 15, extra >> 4], -1)
        quarters = [quarter | ((bits >> j) & 1) << 4 for j, quarter in enumerate(quarters)]
    elif code == Code.SIX_BITS:
        quarters = [quarter | ((extra >> 2 * j) & 3) << 4 for j, quarter in enumerate(quarters)]
    codes = torch.stack(quarters, 3)  # [row_blocks, units, 16, 4, unit]
    codes = codes.transpose(1, 2).reshape(weight.num_rows, weight.num_columns)
    return codes.to(torch.uint8).view(torch.float8_e4m3fn).float() if code == Code.FP8 else codes.float()


class _Scales(NamedTuple):
    """float32 [num_rows, groups] each."""

    factors: Tensor
    offsets: Tensor | None = None
    """What is added to a product of code and factor."""
    zeros: Tensor | None = None
    """What is taken from a code, where that is not the format's."""


def _scales(weight: PackedWeight) -> _Scales:
    scale = weight.format.scale

    def by_row(plane: Tensor) -> Tensor:
        return plane.transpose(1, 2).clone(memory_format=torch.contiguous_format).view(weight.num_rows, -1)

    if scale == Scale.BLOCK:
        return _Scales(weight.planes.scales.squeeze(2).repeat_interleave(ROW_BLOCK, 0))
    scales = by_row(weight.planes.scales)
    if scale == Scale.FLOAT_ZERO:
        return _Scales((scales & -256).view(torch.float32), zeros=(scales & 255).float())
    if scale == Scale.HALF_PAIR:
        low, high = scales.contiguous().view(torch.float16).view(*scales.shape, 2).float().unbind(-1)
        return _Scales(low, high)
    if scale not in (Scale.BYTE, Scale.PAIR):
        return _Scales(scales.float())
    supers = by_row(weight.planes.supers).contiguous()
    groups = 256 // weight.format.group
    if scale == Scale.BYTE:
        return _Scales(supers.float().repeat_interleave(groups, 1) * scales.float())
    low, high = supers.view(torch.float16).view(*supers.shape, 2).float().repeat_interleave(groups, 1).unbind(-1)
    return _Scales(low * (scales & 255).float(), -(high * (scales >> 8).float()))
