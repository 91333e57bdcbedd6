"""Tile shapes of prefill attention by architecture.

Rows are keyed by compute capability as one number (89 for 8.9); one that is not listed takes the nearest below it. Each
row lists shapes by the widest head that they are for. What fits is known from compiling for each architecture
(`engine.kernels.compile_check`): 8.6, 8.9 and 12.0 give a block 99 KiB of shared memory, 8.0 163 KiB, 9.0 227 KiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType


@dataclass(frozen=True)
class PrefillTile:
    """Tile of prefill attention."""

    block_m: int
    """(Token, query head) pairs of one KV head that a program computes."""
    block_n: int
    """Keys that one step of the loop takes."""
    num_warps: int
    num_stages: int


_SMALL: Mapping[int, PrefillTile] = MappingProxyType(
    {
        64: PrefillTile(128, 64, 8, 2),
        96: PrefillTile(128, 32, 8, 2),
        128: PrefillTile(128, 64, 8, 2),
        256: PrefillTile(64, 32, 8, 2),
    }
)
PREFILL_TILES: Mapping[int, Mapping[int, PrefillTile]] = MappingProxyType(
    {
        80: {64: PrefillTile(128, 64, 8, 3), 128: PrefillTile(128, 32, 8, 3), 256: PrefillTile(64, 32, 8, 2)},
        86: _SMALL,
        89: _SMALL,
        90: {64: PrefillTile(128, 128, 8, 3), 128: PrefillTile(128, 64, 8, 3), 256: PrefillTile(128, 64, 8, 2)},
        120: _SMALL,
    }
)


def prefill_tile(architecture: int, head_dim: int, itemsize: int) -> PrefillTile:
    """The tile for heads of `head_dim` elements of `itemsize` bytes; heads wider than those listed get fewer keys."""
    known = [key for key in PREFILL_TILES if key <= architecture]
    tiles = PREFILL_TILES[max(known, default=min(PREFILL_TILES))]
    widest = max(tiles)
    tile = tiles[min((width for width in tiles if width >= head_dim), default=widest)]
    excess = itemsize * max(head_dim, widest) / (2 * widest)
    while excess > 1 and tile.block_n > 16:
        tile, excess = replace(tile, block_n=tile.block_n // 2), excess / 2
    return tile
