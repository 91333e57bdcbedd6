"""The type numbers and block sizes of GGUF, and the values that describe a tensor in a file.

Source: ggml's docs/gguf.md and ggml.h / ggml-common.h (enum ggml_type, the block_* structs).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

GGUFScalar = bool | int | float | str
GGUFValue = GGUFScalar | list[bool] | list[int] | list[float] | list[str]

DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"


class GGUFError(ValueError):
    """A file that is not a GGUF file Hob can trust. The message names the file, what is wrong, and the limit."""


class GGUFType(IntEnum):
    """Types of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALAR_FORMAT: dict[GGUFType, str] = {
    GGUFType.UINT8: "B",
    GGUFType.INT8: "b",
    GGUFType.UINT16: "H",
    GGUFType.INT16: "h",
    GGUFType.UINT32: "I",
    GGUFType.INT32: "i",
    GGUFType.FLOAT32: "f",
    GGUFType.BOOL: "B",
    GGUFType.UINT64: "Q",
    GGUFType.INT64: "q",
    GGUFType.FLOAT64: "d",
}
"""struct's letter for each type of fixed size; a bool is a byte that is 0 or 1."""


class GGMLType(IntEnum):
    """Types of tensor elements. The gaps are formats that ggml has removed."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39


BLOCK_LAYOUT: dict[GGMLType, tuple[int, int]] = {
    GGMLType.F32: (1, 4),
    GGMLType.F16: (1, 2),
    GGMLType.Q4_0: (32, 18),
    GGMLType.Q4_1: (32, 20),
    GGMLType.Q5_0: (32, 22),
    GGMLType.Q5_1: (32, 24),
    GGMLType.Q8_0: (32, 34),
    GGMLType.Q8_1: (32, 36),  # two f16 and 32 bytes; older tools count two f32
    GGMLType.Q2_K: (256, 84),
    GGMLType.Q3_K: (256, 110),
    GGMLType.Q4_K: (256, 144),
    GGMLType.Q5_K: (256, 176),
    GGMLType.Q6_K: (256, 210),
    GGMLType.Q8_K: (256, 292),
    GGMLType.IQ2_XXS: (256, 66),
    GGMLType.IQ2_XS: (256, 74),
    GGMLType.IQ3_XXS: (256, 98),
    GGMLType.IQ1_S: (256, 50),
    GGMLType.IQ4_NL: (32, 18),
    GGMLType.IQ3_S: (256, 110),
    GGMLType.IQ2_S: (256, 82),
    GGMLType.IQ4_XS: (256, 136),
    GGMLType.I8: (1, 1),
    GGMLType.I16: (1, 2),
    GGMLType.I32: (1, 4),
    GGMLType.I64: (1, 8),
    GGMLType.F64: (1, 8),
    GGMLType.IQ1_M: (256, 56),
    GGMLType.BF16: (1, 2),
    GGMLType.TQ1_0: (256, 54),
    GGMLType.TQ2_0: (256, 66),
    GGMLType.MXFP4: (32, 17),
}
"""Elements and bytes of one block. A row holds whole blocks, so its length is a multiple of the first number."""


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor as its file describes it."""

    name: str
    shape: tuple[int, ...]
    """Outermost first, as in torch; the file has it the other way round."""
    type: GGMLType
    offset: int
    """Bytes from the start of the file."""
    num_bytes: int


def tensor_num_bytes(shape: tuple[int, ...], type: GGMLType) -> int:
    """Bytes of a tensor, in integers that cannot overflow.

    Raises:
        ValueError: a row is no whole number of blocks; the message is a sentence's end.
    """
    elements, num_bytes = BLOCK_LAYOUT[type]
    row = shape[-1] if shape else 1
    if row % elements:
        raise ValueError(f"has rows of {row} elements, but {type.name} packs {elements} into a block")
    return math.prod(shape) // elements * num_bytes


def align(offset: int, alignment: int) -> int:
    """The first multiple of `alignment` that is not below `offset`."""
    return -(-offset // alignment) * alignment
