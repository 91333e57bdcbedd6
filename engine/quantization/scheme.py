"""WeightScheme: how a matrix of a quantised safetensors checkpoint is stored, and so which tensors it consists of.

Every scheme means value = (code - zero) * scale; scales and zeros are shared by a rectangle of the matrix. `PACKINGS`
has a row for each way in which tools lay codes and scales out. `models.tensor_plan` compares a file's table with what
`stored_parts` says, `quantized_tensor` reads the parts. No torch: `create` asks before a model is stored.

A matrix has `rows` outputs and `columns` inputs, whichever way round its file has them; `words` are int32 that hold
32 / bits codes each.

Source: AutoAWQ awq/modules/linear/gemm.py; AutoGPTQ nn_modules/qlinear; vllm-project/compressed-tensors, compressors;
transformers integrations/finegrained_fp8.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Packing = Literal["awq", "gptq", "packed", "int8", "fp8"]

FLOATS = ("F32", "F16", "BF16")
"""Types of scales."""


@dataclass(frozen=True)
class WeightScheme:
    """How a matrix is stored."""

    packing: Packing
    bits: int
    scale_rows: int | None
    """Rows that share a scale; None: all."""
    scale_columns: int | None
    """Columns that share a scale; None: all."""
    has_zeros: bool = False
    """Zero points are stored; without, they are 0, or the middle of the range for packed codes."""
    zero_offset: int = 0
    """What stored zero points lack: GPTQ's first format holds them minus one."""
    has_group_index: bool = False
    """Which group a column belongs to must be stored, because columns were quantised in another order."""

    @property
    def codes_a_word(self) -> int:
        return 32 // self.bits

    def num_groups(self, columns: int) -> int:
        """Scales of a row; the last may span fewer columns where blocks overlap the matrix's edge."""
        return 1 if self.scale_columns is None else -(-columns // self.scale_columns)

    def group_size(self, columns: int) -> int:
        """Columns that share a scale."""
        return columns if self.scale_columns is None else self.scale_columns

    def num_scale_rows(self, rows: int) -> int:
        """Scales of a column."""
        return 1 if self.scale_rows is None else -(-rows // self.scale_rows)

    def misfit(self, rows: int, columns: int) -> str | None:
        """Why a matrix of this size cannot be stored so, as the rest of a sentence; None where it can."""
        is_block = self.scale_rows not in (None, 1)
        if self.scale_columns is not None and columns % self.scale_columns and not is_block:
            return f"has {columns} columns, which groups of {self.scale_columns} do not divide"
        multiples = PACKINGS[self.packing].word_rows, PACKINGS[self.packing].word_columns
        for count, what, is_packed in zip((rows, columns), ("rows", "columns"), multiples, strict=True):
            if is_packed and count % self.codes_a_word:
                return f"has {count} {what}, which are no whole number of words of {self.codes_a_word} codes"
        return None


@dataclass(frozen=True)
class StoredPart:
    """One of the tensors that a matrix consists of."""

    suffixes: tuple[str, ...]
    """Last part of its name; tools differ. The first is what an error names."""
    shapes: tuple[tuple[int, ...], ...]
    """Those it may have; the first is what an error names."""
    types: tuple[str, ...]
    is_optional: bool = False


@dataclass(frozen=True)
class PackingRow:
    """A way to lay a matrix out."""

    label: str
    """What people call it."""
    parts: Callable[[WeightScheme, int, int], tuple[StoredPart, ...]]
    """(scheme, rows, columns) -> the tensors, the one with the codes first."""
    word_rows: bool = False
    """Rows must fill words, because codes or zero points are packed along them."""
    word_columns: bool = False


def stored_parts(scheme: WeightScheme, rows: int, columns: int) -> tuple[StoredPart, ...]:
    """The tensors of a matrix of a size that fits (`WeightScheme.misfit`), the one with the codes first."""
    return PACKINGS[scheme.packing].parts(scheme, rows, columns)


def _awq(scheme: WeightScheme, rows: int, columns: int) -> tuple[StoredPart, ...]:
    groups, words = scheme.num_groups(columns), rows // scheme.codes_a_word
    return (
        StoredPart(("qweight",), ((columns, words),), ("I32",)),
        StoredPart(("qzeros",), ((groups, words),), ("I32",)),
        StoredPart(("scales",), ((groups, rows),), FLOATS),
    )


def _gptq(scheme: WeightScheme, rows: int, columns: int) -> tuple[StoredPart, ...]:
    groups = scheme.num_groups(columns)
    return (
        StoredPart(("qweight",), ((columns // scheme.codes_a_word, rows),), ("I32",)),
        StoredPart(("qzeros",), ((groups, rows // scheme.codes_a_word),), ("I32",)),
        StoredPart(("scales",), ((groups, rows),), FLOATS),
        StoredPart(("g_idx",), ((columns,),), ("I32",), is_optional=not scheme.has_group_index),
    )


def _packed(scheme: WeightScheme, rows: int, columns: int) -> tuple[StoredPart, ...]:
    words = -(-columns // scheme.codes_a_word)
    parts = [
        StoredPart(("weight_packed",), ((rows, words),), ("I32",)),
        StoredPart(("weight_scale",), _grids(scheme, rows, columns), FLOATS),
        StoredPart(("weight_shape",), ((2,),), ("I64", "I32")),
    ]
    if scheme.has_zeros:
        # Packed along the rows, unlike the codes.
        grid = (-(-scheme.num_scale_rows(rows) // scheme.codes_a_word), scheme.num_groups(columns))
        parts.append(StoredPart(("weight_zero_point",), (grid,), ("I32",)))
    if scheme.has_group_index:
        parts.append(StoredPart(("weight_g_idx",), ((columns,),), ("I32",)))
    return tuple(parts)


def _int8(scheme: WeightScheme, rows: int, columns: int) -> tuple[StoredPart, ...]:
    grids = _grids(scheme, rows, columns)
    parts = [StoredPart(("weight",), ((rows, columns),), ("I8",)), StoredPart(("weight_scale",), grids, FLOATS)]
    if scheme.has_zeros:
        parts.append(StoredPart(("weight_zero_point",), grids, ("I8",)))
    return tuple(parts)


def _fp8(scheme: WeightScheme, rows: int, columns: int) -> tuple[StoredPart, ...]:
    grids = _grids(scheme, rows, columns)
    if scheme.scale_columns is None and scheme.scale_rows is None:
        grids += ((rows, 1), (rows,))  # not every tool says which of both it took
    # DeepSeek's name comes from how scales are made; they are multiplied with all the same.
    suffixes = ("weight_scale", "weight_scale_inv")
    return (
        StoredPart(("weight",), ((rows, columns),), ("F8_E4M3",)),
        StoredPart(suffixes if scheme.scale_columns is None else suffixes[::-1], grids, (*FLOATS, "F8_E8M0")),
    )


def _grids(scheme: WeightScheme, rows: int, columns: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of a tensor of scales."""
    grid = (scheme.num_scale_rows(rows), scheme.num_groups(columns))
    if scheme.scale_rows is None:
        return (), (1,), (1, 1)
    return (grid, grid[:1]) if scheme.scale_columns is None else (grid,)


PACKINGS: Mapping[Packing, PackingRow] = MappingProxyType(
    {
        "awq": PackingRow("AWQ", _awq, word_rows=True),
        "gptq": PackingRow("GPTQ", _gptq, word_rows=True, word_columns=True),
        "packed": PackingRow("pack-quantized", _packed),
        "int8": PackingRow("int-quantized", _int8),
        "fp8": PackingRow("FP8", _fp8),
    }
)
