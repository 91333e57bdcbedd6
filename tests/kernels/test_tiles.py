"""The table of tiles: every row is complete, and fits the shared memory of its architecture."""

from __future__ import annotations

from typing import get_args

import pytest

from engine.kernels.tiles import ATTENTION_TILES, GEMV_TILES, MatrixKind, attention_tile, gemv_tiles, num_splits

SHARED_BYTES = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}
"""That a block may use at most. Source: CUDA C++ programming guide, table of compute capabilities."""
ARCHITECTURES = sorted(SHARED_BYTES)


def is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("kind", get_args(MatrixKind))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_products_fit(architecture: int, kind: MatrixKind, itemsize: int) -> None:
    tiles = gemv_tiles(architecture, kind, 3584, 3584, itemsize)
    halves = 2 if kind == "gated" else 1
    columns_of_x = 16
    per_stage = tiles.dot.columns * (tiles.dot.rows * halves + columns_of_x) * itemsize
    assert per_stage * tiles.dot.num_stages <= SHARED_BYTES[architecture]
    assert tiles.dot.rows >= 16
    assert tiles.dot.columns >= 16
    sizes = tiles.fma.rows, tiles.fma.num_warps, tiles.dot.rows, tiles.dot.columns, tiles.dot.num_warps
    assert all(is_power_of_two(size) for size in sizes)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_fits(architecture: int, head_dim: int, itemsize: int) -> None:
    tile = attention_tile(architecture, head_dim, itemsize)
    assert is_power_of_two(tile.tokens)
    assert tile.tokens >= 16
    assert 2 * tile.tokens * head_dim * itemsize <= SHARED_BYTES[architecture]


def test_both_tables_know_the_same_architectures() -> None:
    assert sorted(GEMV_TILES) == sorted(ATTENTION_TILES) == ARCHITECTURES


@pytest.mark.parametrize(("asked", "taken"), [(0, 80), (75, 80), (87, 86), (100, 90), (121, 120)])
def test_an_unknown_architecture_takes_the_nearest_below(asked: int, taken: int) -> None:
    assert gemv_tiles(asked, "plain", 4608, 3584, 2) == gemv_tiles(taken, "plain", 4608, 3584, 2)


def test_long_rows_have_tiles_of_their_own() -> None:
    down = gemv_tiles(90, "residual", 3584, 18944, 2)
    assert down == gemv_tiles(90, "residual_long", 3584, 18944, 2)
    assert down != gemv_tiles(90, "residual", 3584, 3584, 2)


@pytest.mark.parametrize(("num_columns", "itemsize", "num_warps"), [(64, 2, 1), (512, 2, 2), (513, 2, 4), (512, 4, 4)])
def test_no_warp_is_without_work(num_columns: int, itemsize: int, num_warps: int) -> None:
    assert gemv_tiles(90, "plain", 64, num_columns, itemsize).fma.num_warps == num_warps


@pytest.mark.parametrize(
    ("num_processors", "num_rows", "num_kv_heads", "expected"),
    [(132, 1, 4, 64), (132, 8, 4, 16), (132, 64, 4, 2), (132, 128, 8, 1), (1, 1, 8, 1), (132, 1, 1, 64)],
)
def test_splits_fill_the_device_about_twice(
    num_processors: int, num_rows: int, num_kv_heads: int, expected: int
) -> None:
    assert num_splits(num_processors, num_rows, num_kv_heads, max_splits=64) == expected
