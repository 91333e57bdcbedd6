"""The table of tiles: every row is complete, and fits the shared memory of its architecture."""

from __future__ import annotations

import pytest

from engine.kernels.tiles import (
    ATTENTION_TILES,
    ATTENTION_TILES_8BIT,
    PREFILL_TILES,
    PREFILL_TILES_8BIT,
    attention_tile,
    has_long_row,
    num_splits,
    prefill_tile,
)

SHARED_BYTES = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}
"""That a block may use at most. Source: CUDA C++ programming guide, table of compute capabilities."""
ARCHITECTURES = sorted(SHARED_BYTES)


def is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


@pytest.mark.parametrize("itemsize", [1, 2, 4])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_fits(architecture: int, head_dim: int, itemsize: int) -> None:
    tile = attention_tile(architecture, head_dim, itemsize)
    assert is_power_of_two(tile.tokens)
    assert tile.tokens >= 16
    assert 2 * tile.tokens * head_dim * max(2, itemsize) <= SHARED_BYTES[architecture]


def test_all_tables_know_the_same_architectures() -> None:
    for table in (PREFILL_TILES, ATTENTION_TILES, PREFILL_TILES_8BIT, ATTENTION_TILES_8BIT):
        assert sorted(table) == ARCHITECTURES


def test_a_cache_of_8_bits_has_no_larger_tile_than_one_of_16() -> None:
    for architecture in ARCHITECTURES:
        for head_dim in (64, 96, 128, 256):
            assert attention_tile(architecture, head_dim, 1).tokens <= attention_tile(architecture, head_dim, 2).tokens
            narrow = prefill_tile(architecture, head_dim, 2, is_quantized=True)
            assert 16 <= narrow.block_n <= prefill_tile(architecture, head_dim, 2).block_n


@pytest.mark.parametrize(("asked", "taken"), [(0, 80), (75, 80), (87, 86), (100, 90), (121, 120)])
def test_an_unknown_architecture_takes_the_nearest_below(asked: int, taken: int) -> None:
    assert attention_tile(asked, 128, 2) == attention_tile(taken, 128, 2)
    assert prefill_tile(asked, 128, 2) == prefill_tile(taken, 128, 2)


@pytest.mark.parametrize(
    ("num_processors", "num_rows", "num_kv_heads", "expected"),
    [(132, 1, 4, 32), (132, 8, 4, 4), (132, 64, 4, 1), (132, 128, 8, 1), (1, 1, 8, 1), (132, 1, 1, 64)],
)
def test_splits_fill_the_device_once(num_processors: int, num_rows: int, num_kv_heads: int, expected: int) -> None:
    assert num_splits(num_processors, num_rows, num_kv_heads, max_splits=64) == expected
    more = num_splits(num_processors, num_rows, num_kv_heads, max_splits=64, has_long_row=True)
    assert more == min(64, 8 * expected)


def test_a_sequence_is_long_where_its_programs_would_walk_many_tiles() -> None:
    assert not has_long_row(132, 1, 4, 32 * 1024)
    assert has_long_row(132, 1, 4, 32 * 1024 + 1)
    assert not has_long_row(132, 64, 4, 1024)
    assert has_long_row(132, 64, 4, 1025)
