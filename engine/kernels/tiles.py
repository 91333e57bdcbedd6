"""Tile shapes of the kernels: one table for each kernel, by architecture and by the shape of the matrix.

An architecture is a compute capability as one number (89 for 8.9); one that is not in the table takes the row of the
nearest below it. The decode kernels' rows of 90 were chosen on an H200 on 2026-11-22, by coordinate descent over a
whole decode step of Qwen2.5-7B in bfloat16; for the rest only registers and shared memory were checked, by compiling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import TypeVar

Tile = TypeVar("Tile")

LONG_FACTOR = 8
"""How many times as many programs share the keys of each sequence where one is long."""
LONG_TOKENS = 1024
"""Keys that a program may walk before a sequence is long."""


@dataclass(frozen=True)
class AttentionTile:
    """Tile of decode attention."""

    tokens: int
    """Keys that one step of the loop takes."""
    num_warps: int
    max_splits: int
    """Programs at most that share one KV head of a sequence."""
    balance: float = 0.5
    """A program takes about this, times the square root of all the sequence's tiles, at least."""
    max_registers: int | None = None
    """Of a thread, in the kernel that rotates as well: fewer let more programs run at once."""


@dataclass(frozen=True)
class PrefillTile:
    """Tile of prefill attention."""

    block_m: int
    """(Token, query head) pairs of one KV head that a program computes."""
    block_n: int
    """Keys that one step of the loop takes."""
    num_warps: int
    num_stages: int
    query_in_registers: bool = False
    """Hold Q there rather than in shared memory, which the products then read less of."""


# For heads of up to 128 elements of 2 bytes; `attention_tile` shortens it for others. By the fewest sequences of a step
# that a tile is for. Those of 90 were the fastest on an H200 (benchmarks/tune_attention.py, 2026-11-22). Elsewhere, 168
# registers a thread let three programs of four warps run on a processor at once.
_ATTENTION: Mapping[int, AttentionTile] = MappingProxyType({1: AttentionTile(64, 4, 64)})
_ATTENTION_168: Mapping[int, AttentionTile] = MappingProxyType({1: AttentionTile(64, 4, 64, max_registers=168)})
_ATTENTION_90: Mapping[int, AttentionTile] = MappingProxyType(
    {
        1: AttentionTile(64, 4, 64),
        32: AttentionTile(128, 8, 64),
        64: AttentionTile(64, 4, 64),
        128: AttentionTile(32, 4, 64, max_registers=128),
    }
)
ATTENTION_TILES: Mapping[int, Mapping[int, AttentionTile]] = MappingProxyType(
    {80: _ATTENTION, 86: _ATTENTION_168, 89: _ATTENTION_168, 90: _ATTENTION_90, 120: _ATTENTION}
)

# Of caches of 8 bits: their keys are in registers as they are stored and as they are multiplied.
_ATTENTION_168_8BIT: Mapping[int, AttentionTile] = MappingProxyType({1: AttentionTile(32, 4, 64, max_registers=168)})
ATTENTION_TILES_8BIT: Mapping[int, Mapping[int, AttentionTile]] = MappingProxyType(
    {**ATTENTION_TILES, 86: _ATTENTION_168_8BIT, 89: _ATTENTION_168_8BIT}
)

# By the widest head that a tile is for.
_PREFILL_SMALL: Mapping[int, PrefillTile] = MappingProxyType(
    {
        64: PrefillTile(128, 64, 8, 2),
        96: PrefillTile(128, 32, 8, 2),
        128: PrefillTile(128, 64, 8, 3),
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
# Of caches of 8 bits, likewise.
_PREFILL_SMALL_8BIT: Mapping[int, PrefillTile] = MappingProxyType({**_PREFILL_SMALL, 128: PrefillTile(128, 32, 8, 2)})
PREFILL_TILES_8BIT: Mapping[int, Mapping[int, PrefillTile]] = MappingProxyType(
    {
        80: PREFILL_TILES[80],
        86: _PREFILL_SMALL_8BIT,
        89: _PREFILL_SMALL_8BIT,
        90: {64: PrefillTile(128, 64, 8, 3), 128: PrefillTile(128, 64, 8, 3), 256: PrefillTile(128, 32, 8, 2)},
        120: _PREFILL_SMALL_8BIT,
    }
)


@cache
def attention_tile(architecture: int, head_dim: int, itemsize: int, num_rows: int = 1) -> AttentionTile:
    """The tile for heads of `head_dim` elements of `itemsize` bytes: as many bytes as those the table was made for.

    Args:
        itemsize: 1 takes the table of caches of 8 bits, whose elements count as those of 16 that they become.
        num_rows: sequences of the step.
    """
    table, itemsize = (ATTENTION_TILES_8BIT, 2) if itemsize == 1 else (ATTENTION_TILES, itemsize)
    tile = _nearest(_nearest(table, architecture), num_rows)
    tokens = tile.tokens
    while tokens > 16 and tokens * head_dim * itemsize > tile.tokens * 128 * 2:
        tokens //= 2
    # Wider heads need their registers.
    max_registers = tile.max_registers if head_dim * itemsize <= 128 * 2 else None
    return replace(tile, tokens=tokens, max_registers=max_registers)


@cache
def prefill_tile(architecture: int, head_dim: int, itemsize: int, *, is_quantized: bool = False) -> PrefillTile:
    """The tile for heads of `head_dim` elements; heads wider than those listed get fewer keys.

    Args:
        itemsize: bytes of an element of Q.
        is_quantized: the cache is of 8 bits.
    """
    tiles = _nearest(PREFILL_TILES_8BIT if is_quantized else PREFILL_TILES, architecture)
    widest = max(tiles)
    tile = tiles[min((width for width in tiles if width >= head_dim), default=widest)]
    excess = itemsize * max(head_dim, widest) / (2 * widest)
    while excess > 1 and tile.block_n > 16:
        tile, excess = replace(tile, block_n=tile.block_n // 2), excess / 2
    return tile


@cache
def num_splits(
    num_processors: int, num_rows: int, num_kv_heads: int, max_splits: int, *, has_long_row: bool = False
) -> int:
    """Programs that share a KV head of a sequence, as many as fill the device once: a power of two.

    More are no use to short sequences: programs without keys take places on processors, and others then share one.

    Args:
        num_processors: streaming multiprocessors of the device.
        num_rows: sequences of the step.
        max_splits: AttentionTile.max_splits.
        has_long_row: a sequence is much longer than the others, or all are long: LONG_FACTOR times as many.
    """
    splits = 1
    while 2 * splits * num_rows * num_kv_heads <= num_processors:
        splits *= 2
    return min(max_splits, splits * LONG_FACTOR if has_long_row else splits)


@cache
def fair_splits(num_processors: int, num_rows: int, num_kv_heads: int) -> int:
    """Of the programs that run at once, two a processor: how many each KV head of a sequence may have, at least 1."""
    return max(1, 2 * num_processors // (num_rows * num_kv_heads))


def _nearest(table: Mapping[int, Tile], key: int) -> Tile:
    """The row with the largest key not above `key`, else the first: for architectures, the newest that is not newer."""
    known = [known for known in table if known <= key]
    return table[max(known, default=min(table))]


def has_long_row(num_processors: int, num_rows: int, num_kv_heads: int, length: int) -> bool:
    """Whether the longest sequence of a step, of `length` tokens, would keep its programs busy for too long."""
    return length > LONG_TOKENS * num_splits(num_processors, num_rows, num_kv_heads, length)
