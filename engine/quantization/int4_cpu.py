"""Int4Packed and Int8Packed: weights that stay quantised on a CPU, multiplied by torch's 4-bit product (`int4_op`).

Codes are those of the file, GGUF's or a quantised safetensors checkpoint's, or INT8 that is made of unquantised weights
where the destination asks for it. Scales and zeros are rounded to bfloat16, as the product wants them; that costs as
much as rounding weights to bfloat16 does. A weight takes one 4-bit code (Int4Packed, 5 bits with its share of a scale
and a zero) or two (Int8Packed, 10 bits): torch's own 8-bit product has one scale a row, to which few formats could be
brought without rounding them anew, and is no faster than two 4-bit ones on the processors measured.

Up to MAX_TOKENS rows take that product; more take pieces of the matrix expanded to bfloat16, a few MB at a time, which
the library then multiplies, in float32 where the processor is not made for bfloat16. Chosen by `selection`; what is no
code of at most 8 bits times a scale stays Dense.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import torch

from engine.quantization import int4_op
from engine.quantization.base import QuantMethod
from engine.quantization.checkpoint import PIECE_ELEMENTS, Destination
from engine.quantization.gguf_blocks import Parts
from engine.quantization.int4_op import GROUP, ROW_MULTIPLE, Layout
from engine.quantization.quantized_tensor import CheckpointMatrix, QuantizedTensor, StoredType
from engine.quantization.row_parts import row_pieces
from engine.quantization.scheme import WeightScheme
from modelfiles.gguf import GGMLType

Tensor = torch.Tensor

MAX_TOKENS = 64
"""Rows up to which the 4-bit product is faster than expanding the matrix, on a CPU with AMX; without, twice as many."""

NIBBLE_TYPES = {
    GGMLType.Q4_0: 8,
    GGMLType.Q4_1: 0,
    GGMLType.Q4_K: 0,
    GGMLType.TQ1_0: 8,
    GGMLType.TQ2_0: 8,
}
"""Formats whose codes fit 4 bits, with what is added to make them 0 to 15; all have groups of at least GROUP."""

BYTE_TYPES = {
    GGMLType.Q5_0: 8,
    GGMLType.Q5_1: -8,
    GGMLType.Q8_0: 0,
    GGMLType.Q2_K: 6,
    GGMLType.Q3_K: 8,
    GGMLType.Q5_K: -8,
    GGMLType.Q6_K: 8,
    GGMLType.Q8_K: 0,
    GGMLType.IQ4_NL: 8,
    GGMLType.IQ4_XS: 8,
    GGMLType.MXFP4: 8,
}
"""Formats that take two 4-bit codes a weight, with what is added to a code before it is split.

With 8, a format without offsets needs no zero; codes above 119 leave room for 0 only. Codes that have offsets are
centred, too, so that zeros and what is lost by rounding them are small.
"""

PAIRED = GROUP // 2
"""Weights whose codes make up a group: their upper halves, then their lower ones."""
MIN_ROWS = 2 * ROW_MULTIPLE
"""Of a piece: checkpoints may keep codes by columns, of which fewer rows would be read again and again."""


def code_bits(type: StoredType, num_columns: int) -> int | None:
    """4 or 8 for what can stay packed here; None: its values are no integers times a scale, or its groups too short."""
    if not isinstance(type, WeightScheme):
        return 4 if type in NIBBLE_TYPES else 8 if type in BYTE_TYPES else None
    shortest = GROUP if type.bits == 4 else PAIRED
    return None if type.packing == "fp8" or type.group_size(num_columns) % shortest else type.bits


class _Packed(QuantMethod):
    """What both have in common: tensors in the operator's layout, rows padded to ROW_MULTIPLE."""

    codes_a_weight: ClassVar[int]
    dtype = torch.bfloat16

    def __init__(
        self,
        layout: Layout,
        packed: Tensor,
        scales_zeros: Tensor,
        num_rows: int,
        num_columns: int,
        column_order: Tensor | None,
    ) -> None:
        self.layout = layout
        self.packed = packed  # uint8 [runs of rows, codes_a_weight * num_columns, bytes a column]
        self.scales_zeros = scales_zeros  # bfloat16 [codes_a_weight * num_columns / GROUP, padded rows, 2]
        self.num_rows = num_rows
        self.num_columns = num_columns
        self.column_order = column_order  # int64 [num_columns]: which column of x meets which of the codes

    @classmethod
    def from_checkpoint(cls, tensors: Sequence[CheckpointMatrix], destination: Destination) -> Self:
        layout = int4_op.layout()
        assert layout is not None, "selection asks first"
        first, num_rows = tensors[0], sum(tensor.num_rows for tensor in tensors)
        order = first.column_order() if isinstance(first, QuantizedTensor) else None
        padded, num_codes = _padded(num_rows), cls.codes_a_weight * first.num_columns
        packed = torch.empty(padded // layout.width, num_codes, layout.width // 2, dtype=torch.uint8)
        scales_zeros = torch.empty(num_codes // GROUP, padded, 2, dtype=torch.bfloat16)
        rows_a_piece = max(1, PIECE_ELEMENTS // (first.num_columns * ROW_MULTIPLE)) * ROW_MULTIPLE
        if isinstance(first, QuantizedTensor):
            rows_a_piece = max(MIN_ROWS, rows_a_piece)
        for start, taken in row_pieces(tensors, rows_a_piece, ROW_MULTIPLE, order, destination):
            stop = start + len(taken.codes)
            codes, scales, zeros = cls.encode(first.type, taken)
            packed[start // layout.width : stop // layout.width] = layout.pack(codes.view(stop - start, num_codes))
            scales_zeros[:, start:stop, 0] = scales.t()
            scales_zeros[:, start:stop, 1] = zeros.t()
        return cls(layout, packed, scales_zeros, num_rows, first.num_columns, order)

    @classmethod
    def stored_bytes(cls, type: StoredType, num_rows: int, num_columns: int, destination: Destination) -> int:
        num_codes = _padded(num_rows) * cls.codes_a_weight * num_columns
        has_order = isinstance(type, WeightScheme) and type.has_group_index
        return num_codes // 2 + num_codes // GROUP * 4 + (torch.int64.itemsize * num_columns if has_order else 0)

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Self:
        return self._with(change(self.packed), change(self.scales_zeros), self.num_rows)

    @property
    def num_bytes(self) -> int:
        order = self.column_order
        return self.packed.nbytes + self.scales_zeros.nbytes + (0 if order is None else order.nbytes)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.contiguous().view(-1, self.num_columns)
        if self.column_order is not None:
            rows = rows.index_select(1, self.column_order)
        y = self._product(rows) if rows.shape[0] <= MAX_TOKENS else self._expanded_product(rows)
        if bias is not None:
            y += bias
        return y.view(*x.shape[:-1], self.num_rows)

    def embed(self, rows: Tensor) -> Tensor:
        codes = self.layout.rows(self.packed, rows)
        scales, zeros = self.scales_zeros[:, rows].permute(2, 1, 0).float()  # [n, groups] each
        grouped = (codes.float() - 8).view(len(rows), -1, GROUP)
        values = grouped.mul_(scales[:, :, None]).add_(zeros[:, :, None])
        weights = self.joined(values).to(torch.bfloat16)
        order = self.column_order
        return weights if order is None else torch.empty_like(weights).index_copy_(1, order, weights)

    @classmethod
    @abstractmethod
    def encode(cls, type: StoredType, taken: Parts) -> tuple[Tensor, Tensor, Tensor]:
        """Codes 0 to 15, and the scale and zero of each GROUP of them, all in the order of the rows' elements."""

    @abstractmethod
    def spread(self, x: Tensor) -> Tensor:
        """[num_tokens, num_columns] -> what meets the codes, [num_tokens, codes_a_weight * num_columns]."""

    @abstractmethod
    def joined(self, values: Tensor) -> Tensor:
        """Decoded codes [n, groups, GROUP] -> weights [n, num_columns]."""

    @abstractmethod
    def expanded(self, first_run: int, last_run: int) -> Tensor:
        """Some runs of rows, as columns: bfloat16 [num_columns, rows]."""

    def _product(self, x: Tensor) -> Tensor:
        y = int4_op.product(self.spread(x), self.packed, self.scales_zeros)
        return y if y.shape[1] == self.num_rows else y[:, : self.num_rows].contiguous()

    def _expanded_product(self, x: Tensor) -> Tensor:
        y = x.new_empty(len(x), self.num_rows)
        width = self.layout.width
        # Without hardware for it, the library's product of bfloat16 is up to a hundred times slower.
        dtype = torch.bfloat16 if int4_op.has_fast_bfloat16() else torch.float32
        x = x.to(dtype)
        runs_a_piece = max(1, PIECE_ELEMENTS // (width * self.num_columns))
        for first in range(0, len(self.packed), runs_a_piece):
            weight = self.expanded(first, first + runs_a_piece)[:, : self.num_rows - first * width]
            y[:, first * width : first * width + weight.shape[1]] = x @ weight.to(dtype)
        return y

    def _run_scales(self, first_run: int, last_run: int) -> tuple[Tensor, Tensor]:
        """Scales and zeros of runs of rows: bfloat16 [runs, groups, 1, width] each."""
        width = self.layout.width
        piece = self.scales_zeros[:, first_run * width : last_run * width]
        scales, zeros = piece.view(len(piece), -1, width, 2).permute(3, 1, 0, 2).unsqueeze(3).contiguous()
        return scales, zeros

    def _with(self, packed: Tensor, scales_zeros: Tensor, num_rows: int) -> Self:
        return type(self)(self.layout, packed, scales_zeros, num_rows, self.num_columns, self.column_order)


class Int4Packed(_Packed):
    """One 4-bit code a weight: value = scale * code + offset = scale * (code - 8) + (8 * scale + offset)."""

    codes_a_weight = 1

    @classmethod
    def encode(cls, type: StoredType, taken: Parts) -> tuple[Tensor, Tensor, Tensor]:
        added = 0 if isinstance(type, WeightScheme) else NIBBLE_TYPES[type]
        codes = (taken.codes + added).view(torch.uint8)
        zeros = (8 - added) * taken.scales
        if taken.offsets is not None:
            zeros += taken.offsets
        repeats = codes.shape[1] // GROUP // taken.scales.shape[1]  # ternary blocks have one scale
        return codes, taken.scales.repeat_interleave(repeats, 1), zeros.repeat_interleave(repeats, 1)

    def spread(self, x: Tensor) -> Tensor:
        return x

    def joined(self, values: Tensor) -> Tensor:
        return values.flatten(1)

    def expanded(self, first_run: int, last_run: int) -> Tensor:
        codes = self.layout.unpack(self.packed[first_run:last_run]).view(torch.int8).sub_(8)
        scales, zeros = self._run_scales(first_run, last_run)
        grouped = codes.to(torch.bfloat16).view(len(codes), -1, GROUP, self.layout.width)
        weights = torch.addcmul(zeros, grouped, scales).view(len(codes), self.num_columns, -1)
        return weights.transpose(0, 1).flatten(1)


class Int8Packed(_Packed):
    """Two 4-bit codes a weight: value = scale * (16 * upper + lower) + offset.

    The factor of 16 is on the other side: rows of 16 * x, then of x, which bfloat16 holds exactly. A zero meets both,
    so it is the 17th part of what is to be added.
    """

    codes_a_weight = 2

    @classmethod
    def encode(cls, type: StoredType, taken: Parts) -> tuple[Tensor, Tensor, Tensor]:
        added = 0 if isinstance(type, WeightScheme) else BYTE_TYPES.get(type, 0)  # made here: as they are
        codes = taken.codes + added
        halves = torch.stack([(codes >> 4) + 8, codes & 15]).view(torch.uint8).view(2, len(codes), -1, PAIRED)
        zeros = (8 - added) * taken.scales
        if taken.offsets is not None:
            zeros += taken.offsets
        repeats = codes.shape[1] // PAIRED // taken.scales.shape[1]
        zeros = zeros.div_(17).repeat_interleave(repeats, 1)
        return halves.permute(1, 2, 0, 3).contiguous(), taken.scales.repeat_interleave(repeats, 1), zeros

    def spread(self, x: Tensor) -> Tensor:
        runs = x.view(len(x), -1, PAIRED)
        return torch.stack([runs * 16, runs], dim=2).flatten(1)

    def joined(self, values: Tensor) -> Tensor:
        upper, lower = values.view(len(values), -1, 2, PAIRED).unbind(2)
        return torch.add(lower, upper, alpha=16).flatten(1)

    def expanded(self, first_run: int, last_run: int) -> Tensor:
        codes = self.layout.unpack(self.packed[first_run:last_run])
        upper, lower = codes.view(len(codes), -1, 2, PAIRED, self.layout.width).unbind(2)
        # 8-bit integers are exact in bfloat16; 136 = 16 * 8 + 8 is what the codes of 0 to 15 are above signed ones.
        grouped = ((upper << 4) | lower).to(torch.bfloat16).sub_(136)
        scales, zeros = self._run_scales(first_run, last_run)
        weights = torch.addcmul(zeros * 17, grouped, scales).view(len(codes), self.num_columns, -1)
        return weights.transpose(0, 1).flatten(1)


def _padded(num_rows: int) -> int:
    return -(-num_rows // ROW_MULTIPLE) * ROW_MULTIPLE
