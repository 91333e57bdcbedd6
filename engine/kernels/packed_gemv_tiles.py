"""Tiles of the packed GEMV: by architecture, by what follows the product, and by the bits of a code.

An architecture is a compute capability as one number (89 for 8.9); one that is not in the table takes the row of the
nearest below it. `benchmarks/tune_packed_gemv.py` finds the best tiles of a device. Asked by `packed_gemv`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType

from engine.kernels.product_tiles import MatrixKind
from engine.quantization.packed_format import Code

MAX_TOKENS = 2
"""With more, tensor cores are faster."""


@dataclass(frozen=True)
class PackedGemvTile:
    """Tile of the packed GEMV. Every thread loads 16 bytes of each of four rows, or twice as many of whole bytes."""

    rows: int
    """Rows of the matrix a program computes, a power of two, at least 4; of each half where gate and up are computed
    together."""
    num_warps: int
    depth: int
    """Tiles of four rows in flight ahead of the one that is used."""


T = PackedGemvTile
Choice = tuple[PackedGemvTile, PackedGemvTile]
"""For one token, for two."""
Choices = Mapping[Code, Choice]
"""By the codes; those of five bits take the tiles of six."""
BITS_4, BITS_6, BYTE, FP8 = Code.NIBBLE, Code.SIX_BITS, Code.BYTE, Code.FP8

# Those of 90 were the fastest on an H200, 2026-11-27, with the matrices of Qwen2.5-7B in Q4_K, Q6_K, Q8_0 and FP8.
_NORMED: Choices = MappingProxyType(
    {
        BITS_4: (T(8, 4, 1), T(8, 2, 1)),
        BITS_6: (T(8, 4, 1), T(8, 4, 2)),
        BYTE: (T(4, 4, 1), T(8, 4, 2)),
        FP8: (T(8, 4, 1), T(8, 4, 2)),
    }
)
_SQUARE: Choices = MappingProxyType(
    {
        BITS_4: (T(8, 4, 2), T(8, 4, 2)),
        BITS_6: (T(8, 4, 2), T(8, 4, 2)),
        BYTE: (T(8, 4, 1), T(8, 4, 1)),
        FP8: (T(8, 4, 2), T(4, 4, 1)),
    }
)
_LONG: Choices = MappingProxyType(
    {
        BITS_4: (T(8, 4, 2), T(8, 4, 1)),
        BITS_6: (T(8, 4, 2), T(4, 4, 1)),
        BYTE: (T(16, 8, 1), T(8, 4, 1)),
        FP8: (T(8, 4, 2), T(4, 4, 1)),
    }
)
_GATED: Choices = MappingProxyType(
    {
        BITS_4: (T(8, 4, 2), T(4, 2, 1)),
        BITS_6: (T(8, 4, 2), T(4, 4, 1)),
        BYTE: (T(8, 4, 2), T(4, 4, 2)),
        FP8: (T(8, 4, 2), T(4, 4, 2)),
    }
)
_TALL: Choices = MappingProxyType(
    {
        BITS_4: (T(16, 2, 1), T(16, 1, 2)),
        BITS_6: (T(16, 4, 1), T(16, 1, 2)),
        BYTE: (T(8, 4, 2), T(8, 4, 1)),
        FP8: (T(8, 4, 2), T(16, 4, 1)),
    }
)
_90: Mapping[MatrixKind, Choices] = MappingProxyType(
    {
        "plain": _NORMED,
        "normed": _NORMED,
        "plain_square": _SQUARE,
        "plain_long": _LONG,
        "plain_tall": _TALL,
        "residual": _SQUARE,
        "residual_long": _LONG,
        "gated": _GATED,
        "argmax": _TALL,
    }
)
PACKED_GEMV_TILES: Mapping[int, Mapping[MatrixKind, Choices]] = MappingProxyType({80: _90})


@cache
def packed_gemv_tile(
    architecture: int, kind: MatrixKind, code: Code, num_chunks: int, num_tokens: int
) -> PackedGemvTile:
    """The tile for a product.

    Args:
        architecture: compute capability as one number; 0 for the interpreter.
        num_chunks: of a row, one a thread.
    """
    known = [key for key in PACKED_GEMV_TILES if key <= architecture]
    choices = PACKED_GEMV_TILES[max(known, default=min(PACKED_GEMV_TILES))][kind]
    tile = choices[Code.SIX_BITS if code == Code.FIVE_BITS else code][num_tokens - 1]
    # A short row leaves threads of a wide program without work.
    while tile.num_warps > 1 and tile.num_warps * 32 >= 2 * num_chunks:
        tile = replace(tile, num_warps=tile.num_warps // 2)
    return tile
