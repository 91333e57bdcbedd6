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
Widths = Mapping[int, Choice]
"""By the bits of a code: 4; 6, which is for five too; 8."""

# Those of 90 for one token were the fastest on an H200, 2026-11-27, for the matrices of Qwen2.5-7B.
_90: Mapping[MatrixKind, Widths] = MappingProxyType(
    {
        "plain": {4: (T(4, 4, 1), T(4, 4, 1)), 6: (T(8, 4, 1), T(4, 4, 1)), 8: (T(8, 4, 1), T(4, 4, 1))},
        "normed": {4: (T(4, 4, 1), T(4, 4, 1)), 6: (T(8, 4, 1), T(4, 4, 1)), 8: (T(8, 4, 1), T(4, 4, 1))},
        "plain_square": {4: (T(4, 4, 1), T(4, 4, 1)), 6: (T(4, 4, 1), T(4, 4, 1)), 8: (T(4, 4, 1), T(4, 4, 1))},
        "plain_long": {4: (T(4, 4, 1), T(4, 4, 1)), 6: (T(4, 4, 1), T(4, 4, 1)), 8: (T(4, 4, 1), T(4, 4, 1))},
        "plain_tall": {4: (T(16, 1, 2), T(8, 4, 1)), 6: (T(16, 1, 2), T(8, 4, 1)), 8: (T(8, 4, 1), T(8, 4, 1))},
        "residual": {4: (T(4, 4, 1), T(4, 4, 1)), 6: (T(4, 4, 1), T(4, 4, 1)), 8: (T(4, 4, 1), T(4, 4, 1))},
        "residual_long": {4: (T(4, 4, 1), T(4, 4, 1)), 6: (T(4, 4, 1), T(4, 4, 1)), 8: (T(4, 4, 1), T(4, 4, 1))},
        "gated": {4: (T(4, 4, 1), T(4, 4, 1)), 6: (T(4, 4, 1), T(4, 4, 1)), 8: (T(4, 4, 1), T(4, 4, 1))},
        "argmax": {4: (T(16, 1, 2), T(8, 4, 1)), 6: (T(16, 1, 2), T(8, 4, 1)), 8: (T(8, 4, 1), T(8, 4, 1))},
    }
)
PACKED_GEMV_TILES: Mapping[int, Mapping[MatrixKind, Widths]] = MappingProxyType({80: _90})


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
    widths = PACKED_GEMV_TILES[max(known, default=min(PACKED_GEMV_TILES))][kind]
    bits = {Code.NIBBLE: 4, Code.FIVE_BITS: 6, Code.SIX_BITS: 6, Code.BYTE: 8, Code.FP8: 8}[code]
    tile = widths[bits][num_tokens - 1]
    # A short row leaves threads of a wide program without work.
    while tile.num_warps > 1 and tile.num_warps * 32 >= 2 * num_chunks:
        tile = replace(tile, num_warps=tile.num_warps // 2)
    return tile
