"""Tile shapes of the kernels: one table for each kernel, by architecture and by the shape of the matrix.

An architecture is a compute capability as one number (89 for 8.9); one that is not in the table takes the row of the
nearest below it. The decode kernels' rows of 90 were chosen on an H200 on 2026-11-22, by coordinate descent over a
whole decode step of Qwen2.5-7B in bfloat16; for the rest only registers and shared memory were checked, by compiling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, TypeVar

MatrixKind = Literal["plain", "residual", "residual_long", "gated", "argmax"]
"""What follows the product, which in a decoder tells the matrix: QKV, attention's output, down (its rows are more than
twice as long as there are of them), gate and up, the head."""

Tile = TypeVar("Tile")

DOT_ROWS_OF_X = 16
"""Tokens that one `tl.dot` takes; the most that `gemv` takes."""


@dataclass(frozen=True)
class FmaTile:
    """Tile of the kernel without tensor cores. Every thread loads 16 bytes of each row of the tile."""

    rows: int
    """Rows of the matrix a program computes, a power of two; of each half where gate and up are computed together."""
    num_warps: int
    depth: int
    """Tiles in flight ahead of the one that is used."""


@dataclass(frozen=True)
class DotTile:
    """Tile of the kernel that uses tensor cores."""

    rows: int
    """As FmaTile.rows, at least 16."""
    columns: int
    """Elements of a row that one step of the loop takes."""
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class GemvTiles:
    """How to multiply one kind of matrix with few tokens."""

    fma: FmaTile
    dot: DotTile
    max_fma_tokens: int
    """Beyond this many tokens the tensor cores are faster, though they compute 16."""


@dataclass(frozen=True)
class AttentionTile:
    """Tile of decode attention."""

    tokens: int
    """Keys that one step of the loop takes."""
    num_warps: int
    max_splits: int
    """Programs at most that share one KV head of a sequence."""
    balance: float = 0.25
    """A program takes about this, times the square root of all the sequence's tiles, at least."""


@dataclass(frozen=True)
class PrefillTile:
    """Tile of prefill attention."""

    block_m: int
    """(Token, query head) pairs of one KV head that a program computes."""
    block_n: int
    """Keys that one step of the loop takes."""
    num_warps: int
    num_stages: int


_GEMV_90: Mapping[MatrixKind, GemvTiles] = MappingProxyType(
    {
        "plain": GemvTiles(FmaTile(4, 4, 2), DotTile(16, 256, 4, 4), 4),
        "residual": GemvTiles(FmaTile(8, 4, 2), DotTile(16, 256, 4, 4), 4),
        "residual_long": GemvTiles(FmaTile(4, 4, 4), DotTile(16, 256, 4, 4), 4),
        "gated": GemvTiles(FmaTile(2, 4, 2), DotTile(32, 128, 4, 4), 3),
        "argmax": GemvTiles(FmaTile(8, 8, 2), DotTile(64, 128, 4, 4), 4),
    }
)
# Of the 99 KiB of shared memory that 8.6, 8.9 and 12.0 give a block, the deepest of these takes 72.
_GEMV_SMALL: Mapping[MatrixKind, GemvTiles] = MappingProxyType(
    {
        "plain": GemvTiles(FmaTile(4, 4, 2), DotTile(16, 256, 4, 3), 4),
        "residual": GemvTiles(FmaTile(4, 4, 2), DotTile(16, 256, 4, 3), 4),
        "residual_long": GemvTiles(FmaTile(4, 4, 2), DotTile(16, 256, 4, 3), 4),
        "gated": GemvTiles(FmaTile(2, 4, 2), DotTile(32, 128, 4, 3), 4),
        "argmax": GemvTiles(FmaTile(8, 4, 2), DotTile(64, 128, 4, 3), 4),
    }
)
GEMV_TILES: Mapping[int, Mapping[MatrixKind, GemvTiles]] = MappingProxyType(
    {80: _GEMV_90, 86: _GEMV_SMALL, 89: _GEMV_SMALL, 90: _GEMV_90, 120: _GEMV_SMALL}
)

# For heads of up to 128 elements of 2 bytes; `attention_tile` shortens it for others. By the fewest sequences of a step
# that a tile is for: when there are many, small programs, of which more run at once, read faster.
_ATTENTION: Mapping[int, AttentionTile] = MappingProxyType({1: AttentionTile(64, 4, 64)})
ATTENTION_TILES: Mapping[int, Mapping[int, AttentionTile]] = MappingProxyType(
    {80: _ATTENTION, 86: _ATTENTION, 89: _ATTENTION, 90: _ATTENTION, 120: _ATTENTION}
)

# By the widest head that a tile is for.
_PREFILL_SMALL: Mapping[int, PrefillTile] = MappingProxyType(
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
        86: _PREFILL_SMALL,
        89: _PREFILL_SMALL,
        90: {64: PrefillTile(128, 128, 8, 3), 128: PrefillTile(128, 64, 8, 3), 256: PrefillTile(128, 64, 8, 2)},
        120: _PREFILL_SMALL,
    }
)


def gemv_tiles(architecture: int, kind: MatrixKind, num_rows: int, num_columns: int, itemsize: int) -> GemvTiles:
    """The tiles for a matrix.

    Args:
        architecture: compute capability as one number; 0 for the interpreter.
        kind: "residual" stands for "residual_long" too.
        num_rows: rows of the matrix, or of each half where gate and up are computed together.
        num_columns: elements of a row.
        itemsize: bytes of an element.
    """
    if kind == "residual" and num_columns > 2 * num_rows:
        kind = "residual_long"
    tiles = _nearest(GEMV_TILES, architecture)[kind]
    fma, dot = tiles.fma, tiles.dot
    # A short row leaves threads of a wide program without work; one warp covers 512 bytes of it.
    while fma.num_warps > 1 and fma.num_warps * 512 >= 2 * num_columns * itemsize:
        fma = replace(fma, num_warps=fma.num_warps // 2)
    if itemsize == 4:
        dot = replace(dot, columns=dot.columns // 4)  # products of float32 are computed without tensor cores
    return replace(tiles, fma=fma, dot=dot)


def attention_tile(architecture: int, head_dim: int, itemsize: int, num_rows: int = 1) -> AttentionTile:
    """The tile for heads of `head_dim` elements of `itemsize` bytes: as many bytes as those the table was made for.

    Args:
        num_rows: sequences of the step.
    """
    tile = _nearest(_nearest(ATTENTION_TILES, architecture), num_rows)
    tokens = tile.tokens
    while tokens > 16 and tokens * head_dim * itemsize > tile.tokens * 128 * 2:
        tokens //= 2
    return replace(tile, tokens=tokens)


def prefill_tile(architecture: int, head_dim: int, itemsize: int) -> PrefillTile:
    """The tile for heads of `head_dim` elements of `itemsize` bytes; heads wider than those listed get fewer keys."""
    tiles = _nearest(PREFILL_TILES, architecture)
    widest = max(tiles)
    tile = tiles[min((width for width in tiles if width >= head_dim), default=widest)]
    excess = itemsize * max(head_dim, widest) / (2 * widest)
    while excess > 1 and tile.block_n > 16:
        tile, excess = replace(tile, block_n=tile.block_n // 2), excess / 2
    return tile


def num_splits(num_processors: int, num_rows: int, num_kv_heads: int, max_splits: int) -> int:
    """Programs that share a KV head of a sequence so that the device is filled about twice: a power of two.

    Args:
        num_processors: streaming multiprocessors of the device.
        num_rows: sequences of the step.
        max_splits: AttentionTile.max_splits.
    """
    splits = 1
    while splits < max_splits and splits * num_rows * num_kv_heads < 2 * num_processors:
        splits *= 2
    return splits


def fair_splits(num_processors: int, num_rows: int, num_kv_heads: int) -> int:
    """Of the programs that run at once, two a processor: how many each KV head of a sequence may have, at least 1."""
    return max(1, 2 * num_processors // (num_rows * num_kv_heads))


def _nearest(table: Mapping[int, Tile], key: int) -> Tile:
    """The row with the largest key not above `key`, else the first: for architectures, the newest that is not newer."""
    known = [known for known in table if known <= key]
    return table[max(known, default=min(table))]
