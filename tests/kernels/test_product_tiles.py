"""The table of products' tiles: every row is complete, and fits the shared memory of its architecture."""

from __future__ import annotations

from typing import get_args

import pytest
import triton

from engine.kernels.product_tiles import (
    MAX_FMA_TOKENS,
    MAX_FUSED_TOKENS,
    MAX_TOKENS,
    PRODUCT_TILES,
    DotTile,
    FmaTile,
    MatrixKind,
    WhatFollows,
    matrix_kind,
    product_tile,
)

SHARED_BYTES = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}
"""That a block may use at most. Source: CUDA C++ programming guide, table of compute capabilities."""


def is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("kind", get_args(MatrixKind))
@pytest.mark.parametrize("architecture", sorted(SHARED_BYTES))
def test_every_tile_is_possible(architecture: int, kind: MatrixKind, itemsize: int) -> None:
    halves = 2 if kind == "gated" else 1
    for num_tokens in range(1, MAX_TOKENS + 2):
        tile = product_tile(architecture, kind, 3584, itemsize, num_tokens)
        assert tile is not None or num_tokens > MAX_FUSED_TOKENS or kind.startswith("plain")
        if isinstance(tile, FmaTile):
            assert num_tokens <= MAX_FMA_TOKENS
            assert all(is_power_of_two(size) for size in (tile.rows, tile.tile_rows, tile.num_warps))
            assert halves * tile.rows // tile.tile_rows in (1, 2, 4)
            assert tile.depth >= 1
        elif tile is not None:
            columns_of_x = max(16, triton.next_power_of_2(num_tokens))
            per_stage = tile.columns * (tile.rows * halves + columns_of_x) * itemsize
            assert per_stage * tile.num_stages <= SHARED_BYTES[architecture]
            assert all(is_power_of_two(size) for size in (tile.rows, tile.columns, tile.num_warps))
            assert min(tile.rows, tile.columns) >= 16
            assert tile.splits == 1 or kind in ("plain", "plain_square", "plain_long", "plain_tall")
            assert tile.prefetched == 0 or is_power_of_two(tile.prefetched)


@pytest.mark.parametrize("architecture", sorted(PRODUCT_TILES))
def test_steps_rise(architecture: int) -> None:
    for kind, steps in PRODUCT_TILES[architecture].items():
        limits = [most for most, _ in steps]
        assert limits == sorted(set(limits))
        # Up to there every product can have something fused into it.
        assert limits[-1] >= MAX_FUSED_TOKENS or kind.startswith("plain")
        assert limits[-1] <= MAX_TOKENS
        assert all(not isinstance(tile, DotTile) or tile.splits == 1 for most, tile in steps if most <= 16)


def test_every_architecture_and_kind_is_there() -> None:
    assert sorted(PRODUCT_TILES) == sorted(SHARED_BYTES)
    assert all(set(kinds) == set(get_args(MatrixKind)) for kinds in PRODUCT_TILES.values())


@pytest.mark.parametrize(("asked", "taken"), [(0, 80), (75, 80), (87, 86), (100, 90), (121, 120)])
def test_an_unknown_architecture_takes_the_nearest_below(asked: int, taken: int) -> None:
    assert product_tile(asked, "plain", 3584, 2, 1) == product_tile(taken, "plain", 3584, 2, 1)


@pytest.mark.parametrize(
    ("what_follows", "num_rows", "width", "kind"),
    [
        ("plain", 4608, 3584, "plain"),
        ("plain", 3584, 18944, "plain_long"),
        ("plain", 152064, 3584, "plain_tall"),
        ("plain", 16 * 3584 - 1, 3584, "plain"),
        ("residual", 3584, 3584, "residual"),
        ("residual", 3584, 2 * 3584, "residual"),
        ("residual", 3584, 18944, "residual_long"),
        ("gated", 18944, 3584, "gated"),
        ("argmax", 152064, 3584, "argmax"),
    ],
)
def test_the_shape_tells_the_matrix(what_follows: WhatFollows, num_rows: int, width: int, kind: str) -> None:
    assert matrix_kind(what_follows, num_rows, width) == kind


@pytest.mark.parametrize(("width", "itemsize", "num_warps"), [(64, 2, 1), (512, 2, 2), (513, 2, 4), (512, 4, 4)])
def test_no_warp_is_without_work(width: int, itemsize: int, num_warps: int) -> None:
    tile = product_tile(90, "plain", width, itemsize, 1)
    assert tile is not None
    assert tile.num_warps == num_warps


def test_float32_has_no_tensor_cores() -> None:
    assert product_tile(90, "gated", 3584, 2, 17) is not None
    assert product_tile(90, "gated", 3584, 4, 17) is None
