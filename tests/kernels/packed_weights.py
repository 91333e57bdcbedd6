"""Packed matrices of random valid blocks and codes, for tests of their kernels."""

from __future__ import annotations

import torch

from engine.quantization.affine import Affine
from engine.quantization.packed_format import (
    FORMATS,
    Code,
    PackedFormat,
    PackedWeight,
    Scale,
    empty_planes,
    pack,
)
from engine.quantization.packed_scheme import pack_affine, scheme_format
from engine.quantization.scheme import WeightScheme
from modelfiles.gguf import BLOCK_LAYOUT, GGMLType

HALVES: dict[GGMLType, tuple[int, ...]] = {
    GGMLType.Q4_1: (0, 2), GGMLType.Q5_1: (0, 2), GGMLType.Q2_K: (80, 82), GGMLType.Q3_K: (108,),
    GGMLType.Q4_K: (0, 2), GGMLType.Q5_K: (0, 2), GGMLType.Q6_K: (208,),
}  # fmt: skip
"""Where a block's float16 numbers begin, if not at 0 alone."""


def random_blocks(type: GGMLType, num_rows: int, num_columns: int, device: torch.device) -> torch.Tensor:
    """uint8 [num_rows, bytes_per_row]: any bits, with scales that a model could have."""
    elements, num_bytes = BLOCK_LAYOUT[type]
    blocks = torch.randint(0, 256, (num_rows * num_columns // elements, num_bytes), dtype=torch.uint8, device=device)
    for start in HALVES.get(type, (0,)):
        halves = (torch.rand(len(blocks), 1, device=device) * 0.01 + 0.001).half()
        blocks[:, start : start + 2] = halves.view(torch.uint8)
    return blocks.view(num_rows, -1)


def packed(type: GGMLType, raw: torch.Tensor, num_columns: int) -> PackedWeight:
    """Rows of a file, packed."""
    format, num_rows = FORMATS[type], len(raw)
    planes = empty_planes(format, num_rows, num_columns, raw.device)
    pack(type, raw, num_columns, planes)
    return PackedWeight(planes, format, num_rows, num_columns)


def random_affine(scheme: WeightScheme, num_rows: int, num_columns: int, device: torch.device) -> Affine:
    """Any codes but FP8's NaN, with scales as a checkpoint has them."""
    codes = torch.randint(0, 1 << scheme.bits, (num_rows, num_columns), dtype=torch.uint8, device=device)
    if scheme.packing == "fp8":
        codes = torch.where((codes & 127) == 127, 0, codes).view(torch.float8_e4m3fn)
    elif scheme.packing == "int8":
        codes = codes.view(torch.int8)
    grid = scheme.num_scale_rows(num_rows), scheme.num_groups(num_columns)
    scales = (torch.rand(grid, device=device) * 0.01 + 0.001).half().float()
    scales = scales.repeat_interleave(scheme.scale_rows or num_rows, 0)[:num_rows]
    zeros = None
    if scheme.has_zeros:
        zeros = codes[:, torch.randperm(num_columns)[: grid[1]]].float()  # some of the codes there are
    elif scheme.packing == "packed":
        zeros = torch.full_like(scales, 1 << (scheme.bits - 1))
    return Affine(codes, scales, zeros, scheme.group_size(num_columns))


def packed_affine(scheme: WeightScheme, rows: Affine) -> PackedWeight:
    num_rows, num_columns = rows.codes.shape
    format = scheme_format(scheme, num_columns)
    planes = empty_planes(format, num_rows, num_columns, rows.codes.device)
    pack_affine(format, rows.rows(0, num_rows, rows.column_order), planes)
    return PackedWeight(planes, format, num_rows, num_columns, rows.column_order)


def random_packed(format: PackedFormat, num_rows: int, num_columns: int, device: torch.device) -> PackedWeight:
    """A matrix of a format of checkpoints: any codes, and scales between 0.001 and 0.01."""
    planes = empty_planes(format, num_rows, num_columns, device)
    codes = torch.randint(0, 256, (*planes.words.shape[:-1], 2 * planes.words.shape[-1]), dtype=torch.uint8)
    if format.code == Code.FP8:
        codes[(codes & 127) == 127] = 0  # NaN
    scales = torch.rand(planes.scales.shape) * 0.009 + 0.001
    if format.scale == Scale.FLOAT_ZERO:
        zeros = torch.randint(0, 16 if format.code == Code.NIBBLE else 256, scales.shape, dtype=torch.int32)
        scales = (scales.view(torch.int32) & -256) | zeros
    planes.words.copy_(codes.view(torch.int16))
    planes.scales.copy_(scales)
    return PackedWeight(planes, format, num_rows, num_columns)
