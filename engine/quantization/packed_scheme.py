"""Quantised safetensors on a GPU: which packed format a scheme becomes, and how codes and scales fill its planes.

Codes are the checkpoint's own. A scale for each row, and one for all, become Scale.ROW; one for a block of rows, BLOCK;
others are by group. Scales are float32 whatever the file has. FP8 and INT8 that are made of unquantised weights while
these are loaded have a scale a row. Called by `packed`, which brings the pieces.
"""

from __future__ import annotations

import torch

from engine.quantization.affine import Affine
from engine.quantization.packed_format import ROW_BLOCK, Code, PackedFormat, Planes, Scale, pack_codes, unit_words
from engine.quantization.scheme import WeightScheme

Tensor = torch.Tensor

ROW_FORMATS = {
    torch.float8_e4m3fn: PackedFormat(Code.FP8, 0, Scale.ROW, 0),
    torch.int8: PackedFormat(Code.BYTE, 128, Scale.ROW, 0),
}
"""What `row_types.quantize_rows` makes of weights."""
SIGNED_ZERO = 128
"""What makes codes of int8 unsigned."""


def scheme_format(scheme: WeightScheme, num_columns: int) -> PackedFormat:
    """How matrices of a scheme lie on a GPU, if they fit."""
    if scheme.packing == "fp8":
        code, zero = Code.FP8, 0
    else:
        code, zero = (Code.NIBBLE, 8) if scheme.bits == 4 else (Code.BYTE, 128)
    if scheme.has_zeros:
        return PackedFormat(code, 0, Scale.FLOAT_ZERO, scheme.group_size(num_columns))
    if scheme.scale_columns is None:
        return PackedFormat(code, zero, Scale.ROW, 0)
    is_block = scheme.scale_rows is not None and scheme.scale_rows % ROW_BLOCK == 0
    return PackedFormat(code, zero, Scale.BLOCK if is_block else Scale.FLOAT, scheme.scale_columns)


def misfit(format: PackedFormat, num_rows: int, num_columns: int) -> str | None:
    """Why a matrix cannot lie so, as the rest of a sentence about it; None where it can."""
    words = unit_words(num_columns)
    if num_rows % ROW_BLOCK:
        return f"their rows are no multiple of {ROW_BLOCK}"
    if not words:
        return "their columns are no multiple of 64"
    if format.group and format.group % words and words % format.group:
        return f"groups of {format.group} columns do not fit pieces of {words}"
    return None


def pack_affine(format: PackedFormat, rows: Affine, out: Planes) -> None:
    """Writes rows into planes, on the device where both are.

    Args:
        rows: a whole number of row blocks, columns in the order of their groups.
        out: of as many row blocks.
    """
    codes = rows.codes
    if format.code == Code.FP8:
        unsigned = codes.view(torch.uint8).to(torch.int32)
    else:
        unsigned = codes.to(torch.int32)
        if codes.dtype == torch.int8:
            unsigned += SIGNED_ZERO
    pack_codes(format.code, unsigned, out.words, out.extra)
    scales = rows.scales
    if format.code == Code.FP8:  # planes have no code for NaN
        has_nan = ((unsigned & 127) == 127).any(1, keepdim=True)
        scales = scales.masked_fill(has_nan, torch.nan)
    if format.scale == Scale.FLOAT_ZERO:
        assert rows.zeros is not None
        scales = _with_zeros(scales, rows.zeros + (SIGNED_ZERO if codes.dtype == torch.int8 else 0))
    blocks = scales.reshape(-1, ROW_BLOCK, scales.shape[1]).transpose(1, 2)  # [row_blocks, groups, 16]
    # The rows of a block have one scale, or NaN, which the maximum keeps.
    out.scales.copy_(blocks.amax(2, keepdim=True) if format.scale == Scale.BLOCK else blocks)


def _with_zeros(scales: Tensor, zeros: Tensor) -> Tensor:
    """int32 of float32 scales and zero points 0 to 255."""
    nearest = (scales.view(torch.int32) + 128) & -256
    return nearest | zeros.to(torch.int32)
