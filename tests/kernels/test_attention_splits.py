"""How many splits a row uses, and that together they take each of its keys once."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import triton
import triton.language as tl

from engine.kernels.attention_splits import share_of_split
from engine.kernels.tiles import fair_splits, num_splits

TILE = 64
BALANCE = 0.25
NUM_PROCESSORS, NUM_KV_HEADS = 132, 4


@triton.jit
def _shares_kernel(out_ptr, first, stop, fair, balance, TILE: tl.constexpr):
    start, end, active = share_of_split(first, stop, fair, balance, TILE)
    out_ptr += 3 * tl.program_id(1)
    tl.store(out_ptr, start)
    tl.store(out_ptr + 1, end)
    tl.store(out_ptr + 2, active)


def shares(num_keys: int, num_rows: int, device: torch.device, first: int = 0) -> list[list[int]]:
    """[start, end) of each split that is used, in a step of so many rows on an H200."""
    offered = num_splits(NUM_PROCESSORS, num_rows, NUM_KV_HEADS, 64)
    fair = fair_splits(NUM_PROCESSORS, num_rows, NUM_KV_HEADS)
    out = torch.zeros(offered, 3, dtype=torch.int32, device=device)
    _shares_kernel[(1, offered, 1)](out, first, num_keys, fair, BALANCE, TILE=TILE)
    active = int(out[0, 2])
    assert (out[:, 2] == active).all()
    assert 1 <= active <= offered
    return out[:active, :2].tolist()


@pytest.mark.parametrize(
    ("num_keys", "num_rows", "expected"),
    [
        (0, 1, 1),
        (64, 1, 1),
        (65, 1, 2),
        (511, 1, 8),
        (559, 1, 9),
        (1023, 1, 16),
        (36 * TILE, 1, 18),
        (4095, 1, 32),
        (16383, 1, 32),
        (100_000, 1, 32),
        (383, 8, 3),
        (4095, 8, 4),
        (383, 64, 1),
        (16 * TILE, 64, 1),
        (16 * TILE + 1, 64, 1),
        (4095, 256, 1),
    ],
)
def test_splits_follow_the_length_and_the_number_of_rows(
    num_keys: int, num_rows: int, expected: int, device: torch.device
) -> None:
    assert len(shares(num_keys, num_rows, device)) == expected


@pytest.mark.parametrize("first", [0, 1, 63, 64, 200, 999])
@pytest.mark.parametrize("num_keys", [1, 64, 65, 1000, 4096, 9999])
def test_splits_take_each_key_once(num_keys: int, first: int, device: torch.device) -> None:
    if first >= num_keys:
        assert len(shares(num_keys, 1, device, first)) == 1
        return
    found = shares(num_keys, 1, device, first)
    assert found[0][0] == first // TILE * TILE
    assert found[-1][1] == num_keys
    for (start, end), (following, _) in pairwise(found):
        assert start < end == following
        assert end % TILE == 0
