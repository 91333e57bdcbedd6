"""How quantised matrices lie on a GPU without being expanded: which planes a format has, and how codes become them.

A matrix is cut into blocks of 16 rows and units of 4 * `words` columns (`words` is 64, or less where rows are short).
A unit's four quarters lie above each other in one word: bits 4j to 4j + 3 of word c are column j * words + c, so that
one shift yields a quarter, whose columns are consecutive and whose groups have one scale each. Planes:

    words   int16 [row_blocks, units, 16, words]       lower four bits of each code
            or [row_blocks, units, 2, 16, words]       whole bytes: two quarters a word
    extra   uint8 [row_blocks, units, 16, words / 2]   a fifth bit: bit j of byte c for column c of quarter j, and
                                                       bit 4 + j for column c + words / 2
            or [row_blocks, units, 16, words]          two more bits: bits 2j and 2j + 1
    scales  [row_blocks, groups, 16]                   one for each row and group, see Scale
            or [row_blocks, groups, 1]                 one for the 16 rows together
    supers  [row_blocks, units, 16]                    what a block of 256 columns has in common

The kernels that read them are `kernels.packed_product` and `kernels.packed_rows`, their twin is
`kernels.reference_packed`. Of block formats of GGUF (`pack`) a plane holds no bit that the file did not hold but for
scales of 6 bits, which take a byte: Q4_K grows by 2.8 %. Formats of two and three bits take four. What becomes of
quantised safetensors is in `packed_scheme`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

import torch

from engine.quantization.gguf_blocks import k_scales, parts
from modelfiles.gguf import BLOCK_LAYOUT, GGMLType

Tensor = torch.Tensor

ROW_BLOCK = 16
MAX_WORDS = 64
MIN_WORDS = 16
MAX_PRODUCT_TOKENS = 256
"""Tokens up to which multiplying by planes is faster than expanding the matrix and leaving the product to the
library."""


class Code(IntEnum):
    """How many bits a code has, and where."""

    NIBBLE = 0
    FIVE_BITS = 1
    SIX_BITS = 2
    BYTE = 3
    FP8 = 4
    """A byte, float8_e4m3fn. NaN is not among them: a row that has one has a scale of NaN."""


class Scale(IntEnum):
    """What a group's scale is. `super` and `super_minimum` are float16, of a block of 256 columns."""

    PAIR = 0
    """int16: scale | minimum << 8; the group's values are super * scale * code - super_minimum * minimum."""
    BYTE = 1
    """int8: super * scale * code."""
    HALF = 2
    """float16: scale * code."""
    HALF_PAIR = 3
    """int32, two float16: scale * code + offset."""
    FLOAT = 4
    """float32: scale * code."""
    FLOAT_ZERO = 5
    """int32: scale * (code - zero); a float32 in whose lowest 8 bits is the zero point. What is left of the float32 is
    exact for a scale that came as float16 or bfloat16, and within 2^-16 of another."""
    BLOCK = 6
    """float32 for 16 rows together: scale * code."""
    ROW = 7
    """float32: scale * code, of all columns of a row. A product multiplies sums with it."""


SCALE_TYPES = MappingProxyType(
    {
        Scale.PAIR: torch.int16,
        Scale.BYTE: torch.int8,
        Scale.HALF: torch.float16,
        Scale.HALF_PAIR: torch.int32,
        Scale.FLOAT: torch.float32,
        Scale.FLOAT_ZERO: torch.int32,
        Scale.BLOCK: torch.float32,
        Scale.ROW: torch.float32,
    }
)
"""What the plane of scales is made of."""


@dataclass(frozen=True)
class PackedFormat:
    """How a matrix lies on a GPU."""

    code: Code
    zero: int
    """What is taken from a code, which is unsigned; 0 with FLOAT_ZERO and FP8."""
    scale: Scale
    group: int
    """Columns that share a scale, the last of a row perhaps fewer; with ROW, which has no groups, 0."""

    def num_groups(self, num_columns: int) -> int:
        """Scales of a row."""
        return -(-num_columns // self.group) if self.group else 1

    def bytes(self, num_rows: int, num_columns: int) -> int:
        """Of all planes."""
        code_bits = (4, 5, 6, 8, 8)[self.code]
        super_bits = {Scale.PAIR: 32, Scale.BYTE: 16}.get(self.scale, 0)
        elements = num_rows * num_columns
        num_scales = num_rows // self.rows_a_scale * self.num_groups(num_columns)
        scale_bytes = num_scales * SCALE_TYPES[self.scale].itemsize
        return elements * code_bits // 8 + scale_bytes + elements // 256 * super_bits // 8

    @property
    def rows_a_scale(self) -> int:
        """Rows that share a scale."""
        return ROW_BLOCK if self.scale == Scale.BLOCK else 1

    @property
    def has_wide_scales(self) -> bool:
        """Whether each quarter of a unit has scales of 4 bytes to itself."""
        return SCALE_TYPES[self.scale].itemsize == 4 and self.group % (2 * MAX_WORDS) > 0


FORMATS: dict[GGMLType, PackedFormat] = {
    GGMLType.Q4_0: PackedFormat(Code.NIBBLE, 8, Scale.HALF, 32),
    GGMLType.Q4_1: PackedFormat(Code.NIBBLE, 0, Scale.HALF_PAIR, 32),
    GGMLType.Q5_0: PackedFormat(Code.FIVE_BITS, 16, Scale.HALF, 32),
    GGMLType.Q5_1: PackedFormat(Code.FIVE_BITS, 0, Scale.HALF_PAIR, 32),
    GGMLType.Q8_0: PackedFormat(Code.BYTE, 128, Scale.HALF, 32),
    GGMLType.Q2_K: PackedFormat(Code.NIBBLE, 0, Scale.PAIR, 16),
    GGMLType.Q3_K: PackedFormat(Code.NIBBLE, 4, Scale.BYTE, 16),
    GGMLType.Q4_K: PackedFormat(Code.NIBBLE, 0, Scale.PAIR, 32),
    GGMLType.Q5_K: PackedFormat(Code.FIVE_BITS, 0, Scale.PAIR, 32),
    GGMLType.Q6_K: PackedFormat(Code.SIX_BITS, 32, Scale.BYTE, 16),
    GGMLType.IQ4_NL: PackedFormat(Code.BYTE, 128, Scale.HALF, 32),
    GGMLType.IQ4_XS: PackedFormat(Code.BYTE, 128, Scale.BYTE, 32),
}


def unit_words(num_columns: int) -> int:
    """Words of a unit for rows of that length; 0: they cannot be cut into units."""
    words = MAX_WORDS
    while words >= MIN_WORDS and num_columns % (4 * words):
        words //= 2
    return words if words >= MIN_WORDS else 0


@dataclass(frozen=True)
class Planes:
    """A matrix, or some of its row blocks; see above."""

    words: Tensor
    extra: Tensor
    scales: Tensor
    supers: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.words, self.extra, self.scales, self.supers

    def blocks(self, start: int, stop: int) -> Planes:
        """A view of row blocks [start, stop)."""
        return self.map(lambda plane: plane[start:stop])

    def map(self, change: Callable[[Tensor], Tensor]) -> Planes:
        """The same with other tensors in place of those that have elements."""
        return Planes(*(change(plane) if plane.numel() else plane for plane in self.tensors))


@dataclass(frozen=True)
class PackedWeight:
    """A matrix whose weights stay quantised, as kernels take it."""

    planes: Planes
    format: PackedFormat
    num_rows: int
    """A multiple of ROW_BLOCK."""
    num_columns: int
    column_order: Tensor | None = None
    """int64 [num_columns]: column c of the planes is this column of the matrix; None: they are in order."""

    def ordered(self, x: Tensor) -> Tensor:
        """x [n, num_columns] with its columns in the planes' order."""
        return x if self.column_order is None else x.index_select(1, self.column_order)

    @property
    def unit(self) -> int:
        """Words of a unit."""
        return unit_words(self.num_columns)

    @property
    def constants(self) -> dict[str, int]:
        """What kernels are compiled for."""
        return {
            "WIDTH": self.num_columns,
            "UNIT": self.unit,
            "CODE": int(self.format.code),
            "ZERO": self.format.zero,
            "SCALE": int(self.format.scale),
            "GROUP": self.format.group or self.num_columns,
        }


def empty_planes(format: PackedFormat, num_rows: int, num_columns: int, device: torch.device) -> Planes:
    """Planes without values. Those that a format lacks have no elements."""
    blocks, words = num_rows // ROW_BLOCK, unit_words(num_columns)
    units = num_columns // (4 * words)
    is_whole = format.code in (Code.BYTE, Code.FP8)
    word_shape = (blocks, units, 2, ROW_BLOCK, words) if is_whole else (blocks, units, ROW_BLOCK, words)
    extra_bytes = {Code.FIVE_BITS: words // 2, Code.SIX_BITS: words}.get(format.code)
    extra_shape = (0,) if extra_bytes is None else (blocks, units, ROW_BLOCK, extra_bytes)
    scale_shape = blocks, format.num_groups(num_columns), ROW_BLOCK // format.rows_a_scale
    super_dtype = {Scale.PAIR: torch.int32, Scale.BYTE: torch.float16}.get(format.scale)
    super_shape = (0,) if super_dtype is None else (blocks, num_columns // 256, ROW_BLOCK)
    return Planes(
        torch.empty(word_shape, dtype=torch.int16, device=device),
        torch.empty(extra_shape, dtype=torch.uint8, device=device),
        torch.empty(scale_shape, dtype=SCALE_TYPES[format.scale], device=device),
        torch.empty(super_shape, dtype=super_dtype or torch.int16, device=device),
    )


def pack(type: GGMLType, raw: Tensor, num_columns: int, out: Planes) -> None:
    """Writes rows of a file into planes, on the device where both are.

    Args:
        raw: uint8 [num_rows, bytes_per_row] or flat; a whole number of row blocks.
        out: of as many row blocks.
    """
    format = FORMATS[type]
    elements, num_bytes = BLOCK_LAYOUT[type]
    blocks = raw.view(-1, num_bytes)
    taken = parts(type, blocks)
    pack_codes(format.code, (taken.codes.to(torch.int32) + format.zero).view(-1, num_columns), out.words, out.extra)

    def by_group(values: Tensor) -> Tensor:
        """[num_blocks, n] -> [row_blocks, groups, 16]"""
        return values.reshape(-1, ROW_BLOCK, num_columns // elements * values.shape[1]).transpose(1, 2)

    if format.scale == Scale.HALF:
        out.scales.copy_(by_group(taken.scales))
    elif format.scale == Scale.HALF_PAIR:
        assert taken.offsets is not None
        out.scales.copy_(by_group(_pair(taken.scales.half(), taken.offsets.half())))
    elif format.scale == Scale.PAIR:
        scales, minima = _small_pairs(type, blocks)
        out.scales.copy_(by_group(scales.to(torch.int32) | minima.to(torch.int32) << 8))
        start = 80 if type == GGMLType.Q2_K else 0
        out.supers.copy_(by_group(blocks[:, start : start + 4].contiguous().view(torch.int32)))
    else:
        scales, super_scale = _byte_scales(type, blocks)
        out.scales.copy_(by_group(scales))
        out.supers.copy_(by_group(super_scale))


def pack_codes(code: Code, codes: Tensor, words: Tensor, extra: Tensor) -> None:
    """Writes codes into their planes, or into some units of them.

    Args:
        codes: int32 [num_rows, num_columns], unsigned; whole row blocks and units.
        words: of as many row blocks and units.
        extra: the same; without elements where the format has none.
    """
    length = words.shape[-1]
    codes = codes.view(-1, ROW_BLOCK, codes.shape[1] // (4 * length), 4, length)
    quarters = codes.transpose(1, 2).unbind(-2)  # four of [row_blocks, units, 16, words]
    if code in (Code.BYTE, Code.FP8):
        halves = [quarters[j] | quarters[j + 1] << 8 for j in (0, 2)]
        words.copy_(torch.stack(halves, 2))
        return
    words.copy_(_joined([quarter & 15 for quarter in quarters], 4))
    if code == Code.FIVE_BITS:
        low, high = _joined([quarter >> 4 for quarter in quarters], 1).chunk(2, -1)
        extra.copy_(low | high << 4)
    elif code == Code.SIX_BITS:
        extra.copy_(_joined([quarter >> 4 for quarter in quarters], 2))


def _joined(fields: Sequence[Tensor], bits: int) -> Tensor:
    """Fields above each other, the first lowest."""
    joined = fields[0].clone()
    for number, field in enumerate(fields[1:], 1):
        joined |= field << bits * number
    return joined


def _pair(low: Tensor, high: Tensor) -> Tensor:
    """Two float16 as one int32."""
    return torch.stack([low, high], -1).view(torch.int32).squeeze(-1)


def _small_pairs(type: GGMLType, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima as integers, [num_blocks, groups]."""
    if type == GGMLType.Q2_K:
        return blocks[:, :16] & 15, blocks[:, :16] >> 4
    return k_scales(blocks[:, 4:16])


def _byte_scales(type: GGMLType, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Signed scales [num_blocks, groups] and what multiplies them, float16 [num_blocks, 1].

    The former are what the block's scales would be if the latter were 1.
    """
    start = {GGMLType.Q6_K: 208, GGMLType.Q3_K: 108, GGMLType.IQ4_XS: 0}[type]
    super_scale = blocks[:, start : start + 2].contiguous().view(torch.float16)
    ones = blocks.clone()
    ones[:, start : start + 2] = torch.tensor([0, 0x3C], dtype=torch.uint8, device=blocks.device)  # 1.0
    return parts(type, ones).scales.to(torch.int8), super_scale
