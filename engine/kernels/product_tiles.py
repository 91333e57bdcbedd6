"""Which kernel multiplies which matrix by how many tokens, and with which tile: by architecture, as measurements chose.

An architecture is a compute capability as one number (89 for 8.9); one that is not in the table takes the row of the
nearest below it. Rows of 90 are what was fastest on an H200 on 2026-11-22 for Qwen2.5-7B in bfloat16; for the rest only
registers and shared memory were checked, by compiling. `benchmarks/tune_products.py` finds the best tiles of a device.

Asked by `gemv` and `products`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Literal

WhatFollows = Literal["plain", "normed", "residual", "gated", "argmax"]
"""What a product goes into: nothing, nothing after a deferred norm, the residual stream, the gated unit, the search for
the largest."""
MatrixKind = Literal[
    "plain", "normed", "plain_square", "plain_long", "plain_tall", "residual", "residual_long", "gated", "argmax"
]
"""What follows the product, and the shape: "long" rows are more than twice as long as there are of them (down), a
"tall" matrix has sixteen times as many rows as columns or more (the head), a "square" one no more (attention's
output)."""

MAX_FMA_TOKENS = 8
"""Above this the multiply-adds alone take longer than the bytes on any device."""
MAX_TOKENS = 128
"""The most that one `tl.dot` takes here, and with it the product kernels."""
MAX_FUSED_TOKENS = 16
"""The most for a product that a norm, the residual stream or the search for the largest is fused into."""


@dataclass(frozen=True)
class FmaTile:
    """Tile of the kernel without tensor cores. Every thread loads 16 bytes of each row of the tile."""

    rows: int
    """Rows of the matrix a program computes, a power of two; of each half where gate and up are computed together."""
    num_warps: int
    depth: int
    """Tiles in flight ahead of the one that is used."""
    tile_rows: int
    """Of the program's rows, those in one tile; a power of two. A program has at most four tiles side by side."""


@dataclass(frozen=True)
class DotTile:
    """Tile of the kernel that uses tensor cores."""

    rows: int
    """As FmaTile.rows, at least 16."""
    columns: int
    """Elements of a row that one step of the loop takes."""
    num_warps: int
    num_stages: int
    splits: int = 1
    """Programs that share a row, for plain products without a norm."""
    prefetched: int = 256
    """Elements of each row that are brought into the second-level cache while the kernel before still runs."""


Tile = FmaTile | DotTile
Steps = tuple[tuple[int, Tile], ...]
"""(most tokens, tile), rising. Beyond the last the library's product is faster."""

_HEAD_1, _HEAD_2 = FmaTile(8, 4, 2, 4), FmaTile(4, 4, 2, 4)
_90: Mapping[MatrixKind, Steps] = MappingProxyType(
    {
        "plain": ((1, FmaTile(4, 4, 4, 2)), (2, FmaTile(4, 4, 2, 4))),
        "normed": ((1, FmaTile(4, 4, 4, 2)), (2, FmaTile(4, 4, 2, 4)), (16, DotTile(64, 128, 4, 4))),
        "plain_square": (
            (1, FmaTile(4, 4, 2, 4)),
            (2, FmaTile(8, 4, 2, 8)),
            (3, FmaTile(4, 4, 2, 4)),
            (16, DotTile(32, 512, 4, 3)),
            (32, DotTile(64, 128, 4, 4, splits=4)),
            (48, DotTile(64, 64, 4, 5, splits=4)),
        ),
        "plain_long": (
            (2, FmaTile(4, 4, 4, 4)),
            (3, FmaTile(4, 4, 3, 4)),
            (16, DotTile(32, 512, 4, 3)),
            (32, DotTile(64, 128, 4, 4, splits=4)),
            (64, DotTile(64, 64, 4, 5, splits=4)),
        ),
        "plain_tall": ((1, _HEAD_1), (2, _HEAD_2), (32, DotTile(64, 128, 4, 4)), (64, DotTile(128, 64, 8, 3))),
        "residual": (
            (1, FmaTile(4, 4, 2, 4)),
            (2, FmaTile(8, 4, 2, 8)),
            (3, FmaTile(4, 4, 2, 4)),
            (16, DotTile(32, 512, 4, 3)),
        ),
        "residual_long": ((2, FmaTile(4, 4, 4, 4)), (3, FmaTile(4, 4, 3, 4)), (16, DotTile(32, 512, 4, 3))),
        "gated": (
            (1, FmaTile(2, 4, 3, 2)),
            (16, DotTile(32, 128, 2, 4)),
            (32, DotTile(64, 128, 4, 4)),
            (64, DotTile(64, 64, 4, 3)),
        ),
        "argmax": ((1, _HEAD_1), (2, _HEAD_2), (16, DotTile(64, 128, 4, 4))),
    }
)
# 8.0 has 163 KiB of shared memory for a block, and no asynchronous matrix instructions.
_80: Mapping[MatrixKind, Steps] = MappingProxyType(
    {
        "plain": ((4, FmaTile(4, 4, 2, 4)), (16, DotTile(16, 256, 4, 4)), (32, DotTile(32, 128, 4, 4))),
        "normed": ((4, FmaTile(4, 4, 2, 4)), (16, DotTile(16, 256, 4, 4))),
        "plain_square": ((4, FmaTile(4, 4, 2, 4)), (16, DotTile(16, 256, 4, 4)), (32, DotTile(32, 128, 4, 4))),
        "plain_long": ((4, FmaTile(4, 4, 4, 4)), (16, DotTile(16, 256, 4, 4)), (64, DotTile(64, 128, 4, 3, splits=4))),
        "plain_tall": ((4, FmaTile(8, 8, 2, 4)), (16, DotTile(64, 128, 4, 4)), (64, DotTile(128, 64, 4, 4))),
        "residual": ((4, FmaTile(8, 4, 2, 8)), (16, DotTile(16, 256, 4, 4))),
        "residual_long": ((4, FmaTile(4, 4, 4, 4)), (16, DotTile(16, 256, 4, 4))),
        "gated": ((3, FmaTile(2, 4, 2, 2)), (16, DotTile(32, 128, 4, 4)), (64, DotTile(64, 64, 4, 3))),
        "argmax": ((4, FmaTile(8, 8, 2, 4)), (16, DotTile(64, 128, 4, 4))),
    }
)
# Of the 99 KiB of shared memory that 8.6, 8.9 and 12.0 give a block, the deepest of these takes 72.
_SMALL: Mapping[MatrixKind, Steps] = MappingProxyType(
    {
        "plain": ((4, FmaTile(4, 4, 2, 4)), (16, DotTile(16, 256, 4, 3)), (32, DotTile(32, 128, 4, 3))),
        "normed": ((4, FmaTile(4, 4, 2, 4)), (16, DotTile(16, 256, 4, 3))),
        "plain_square": ((4, FmaTile(4, 4, 2, 4)), (16, DotTile(16, 256, 4, 3)), (32, DotTile(32, 128, 4, 3))),
        "plain_long": ((4, FmaTile(4, 4, 2, 4)), (16, DotTile(16, 256, 4, 3)), (32, DotTile(32, 128, 4, 3, splits=2))),
        "plain_tall": ((4, FmaTile(8, 4, 2, 8)), (16, DotTile(64, 128, 4, 3)), (64, DotTile(64, 64, 4, 3))),
        "residual": ((4, FmaTile(4, 4, 2, 4)), (16, DotTile(16, 256, 4, 3))),
        "residual_long": ((4, FmaTile(4, 4, 2, 4)), (16, DotTile(16, 256, 4, 3))),
        "gated": ((4, FmaTile(2, 4, 2, 2)), (16, DotTile(32, 128, 4, 3)), (64, DotTile(64, 64, 4, 3))),
        "argmax": ((4, FmaTile(8, 4, 2, 8)), (16, DotTile(64, 128, 4, 3))),
    }
)
PRODUCT_TILES: Mapping[int, Mapping[MatrixKind, Steps]] = MappingProxyType(
    {80: _80, 86: _SMALL, 89: _SMALL, 90: _90, 120: _SMALL}
)


def matrix_kind(what_follows: WhatFollows, num_rows: int, width: int) -> MatrixKind:
    """The kind of a matrix with `num_rows` rows of `width` elements."""
    if what_follows in ("plain", "residual") and width > 2 * num_rows:
        return "plain_long" if what_follows == "plain" else "residual_long"
    if what_follows == "plain" and num_rows >= 16 * width:
        return "plain_tall"
    if what_follows == "plain" and num_rows <= width:
        return "plain_square"
    return what_follows


@cache
def product_tile(architecture: int, kind: MatrixKind, width: int, itemsize: int, num_tokens: int) -> Tile | None:
    """The tile for a product, or None where the library's is faster.

    Args:
        architecture: compute capability as one number; 0 for the interpreter.
        width: elements of a row.
        itemsize: bytes of an element.
    """
    if itemsize == 4 and num_tokens > MAX_FUSED_TOKENS:
        return None  # products of float32 are computed without tensor cores
    known = [key for key in PRODUCT_TILES if key <= architecture]
    steps = PRODUCT_TILES[max(known, default=min(PRODUCT_TILES))][kind]
    tile = next((tile for most, tile in steps if num_tokens <= most), None)
    if isinstance(tile, FmaTile):
        # A short row leaves threads of a wide program without work; one warp covers 512 bytes of it.
        while tile.num_warps > 1 and tile.num_warps * 512 >= 2 * width * itemsize:
            tile = replace(tile, num_warps=tile.num_warps // 2)
    elif tile is not None and itemsize == 4:
        tile = replace(tile, columns=tile.columns // 4)
    return tile
