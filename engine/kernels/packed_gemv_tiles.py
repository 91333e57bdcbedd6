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


Bits = tuple[PackedGemvTile, PackedGemvTile, PackedGemvTile]
"""For codes of four bits, of five and six, of eight."""

T = PackedGemvTile
_ALL: Mapping[MatrixKind, Bits] = MappingProxyType(
    {
        "plain": (T(8, 4, 2), T(8, 4, 2), T(8, 4, 1)),
        "normed": (T(8, 4, 2), T(8, 4, 2), T(8, 4, 1)),
        "plain_square": (T(4, 4, 1), T(4, 4, 1), T(4, 4, 1)),
        "plain_long": (T(4, 4, 2), T(4, 4, 2), T(4, 4, 1)),
        "plain_tall": (T(16, 4, 2), T(16, 4, 2), T(16, 4, 1)),
        "residual": (T(4, 4, 1), T(4, 4, 1), T(4, 4, 1)),
        "residual_long": (T(4, 4, 2), T(4, 4, 2), T(4, 4, 1)),
        "gated": (T(8, 4, 2), T(8, 4, 2), T(8, 4, 1)),
        "argmax": (T(16, 4, 2), T(16, 4, 2), T(16, 4, 1)),
    }
)
PACKED_GEMV_TILES: Mapping[int, Mapping[MatrixKind, Bits]] = MappingProxyType({80: _ALL})


@cache
def packed_gemv_tile(
    architecture: int, kind: MatrixKind, code: Code, num_outputs: int, num_chunks: int, num_tokens: int
) -> PackedGemvTile:
    """The tile for a product.

    Args:
        architecture: compute capability as one number; 0 for the interpreter.
        num_outputs: a multiple of 4.
        num_chunks: of a row, one a thread.
    """
    known = [key for key in PACKED_GEMV_TILES if key <= architecture]
    bits = PACKED_GEMV_TILES[max(known, default=min(PACKED_GEMV_TILES))][kind]
    tile = bits[{Code.NIBBLE: 0, Code.FIVE_BITS: 1, Code.SIX_BITS: 1}.get(code, 2)]
    # A short row leaves threads of a wide program without work.
    while tile.num_warps > 1 and tile.num_warps * 32 >= 2 * num_chunks:
        tile = replace(tile, num_warps=tile.num_warps // 2)
    return tile
