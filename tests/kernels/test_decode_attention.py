"""Decode attention against its twin, over a cache in which everything that is not the row's own is poison."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from engine.kernels import reference, reference_decode
from engine.kernels.attention_splits import MERGED_ELEMENTS
from engine.kernels.decode_attention import Workspace, decode_attention
from engine.kernels.tiles import AttentionTile
from tests.kernels.quantized import float_type, quantized, result_type

# (atol, rtol). The kernel rounds the weights of the softmax to the cache's type before the product with V.
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.float16: (4e-3, 4e-3), torch.bfloat16: (3e-2, 3e-2)}
TILE = AttentionTile(tokens=16, num_warps=4, max_splits=8)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Memory that nobody has written is NaN, so that an output which a kernel forgets is seen."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class Rows:
    """Rows at the given positions, their keys and values scattered over blocks.

    All else is poison: slots of no use are NaN, and entries of the table without use lead to a block of nothing else.
    """

    def __init__(
        self,
        positions: list[int],
        *,
        device: torch.device,
        heads: tuple[int, int] = (4, 2),
        head_dim: int = 16,
        block_size: int = 16,
        window: int | None = None,
        dtype: torch.dtype = torch.float32,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        torch.manual_seed(0)
        num_rows, (num_heads, num_kv_heads) = len(positions), heads
        self.window = window
        num_blocks = [position // block_size + 1 for position in positions]
        free = (torch.randperm(sum(num_blocks)) + 1).tolist()
        poison = len(free) + 1
        shape = poison + 1, num_kv_heads, block_size, head_dim
        kv_dtype = kv_dtype or dtype
        self.k_cache = torch.full(shape, torch.nan, dtype=float_type(kv_dtype))
        self.v_cache = self.k_cache.clone()
        table = torch.full((num_rows + 2, max(num_blocks) + 1), poison)
        rows = torch.randperm(num_rows + 2)[:num_rows]
        for row, position in zip(rows.tolist(), positions, strict=True):
            first = 0 if window is None else max(0, position + 1 - window)
            for number in range(first // block_size, position // block_size + 1):
                block = table[row, number] = free.pop()
                lower, upper = max(first - number * block_size, 0), min(position + 1 - number * block_size, block_size)
                for cache in (self.k_cache, self.v_cache):
                    cache[block, :, lower:upper] = torch.randn(num_kv_heads, upper - lower, head_dim).to(cache.dtype)
        caches = self.k_cache.to(device), self.v_cache.to(device)
        self.k_cache, self.v_cache, self.scales = quantized(*caches, kv_dtype)
        self.block_table, self.rows = table.to(device), rows.int().to(device)
        self.positions = torch.tensor(positions, dtype=torch.int32, device=device)
        self.q = torch.randn(num_rows, num_heads, head_dim, device=device).to(dtype)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.q, self.k_cache, self.v_cache, self.block_table, self.rows, self.positions

    def assert_like_twin(
        self,
        splits: int = 1,
        *,
        tile: AttentionTile = TILE,
        scale: float = 0.3,
        softcap: float | None = None,
        **more: Any,
    ) -> torch.Tensor:
        options = {**self.scales, "window": self.window, "softcap": softcap}
        expected = reference_decode.decode_attention(*self.tensors, scale, **options)
        with poisoned_memory():
            actual = decode_attention(*self.tensors, scale, splits=splits, tile=tile, **options, **more)
        atol, rtol = TOLERANCE[result_type(actual.dtype, self.scales)]
        torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)
        return actual


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (3, 1), (7, 1), (8, 1)], ids=["mha", "gqa2", "gqa3", "gqa7", "gqa8"])
def test_groups(heads: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    Rows([0, 20], device=device, heads=heads, dtype=dtype).assert_like_twin(2)


@pytest.mark.parametrize("splits", [1, 3, 8])
@pytest.mark.parametrize("position", [0, 14, 15, 16, 17, 31, 32, 63, 64, 100])
def test_edges_of_blocks_and_splits(position: int, splits: int, device: torch.device) -> None:
    Rows([position], device=device, heads=(3, 1)).assert_like_twin(splits)


@pytest.mark.parametrize(("block_size", "tokens"), [(16, 32), (16, 64), (32, 16), (64, 32), (64, 64), (1, 16)], ids=str)
def test_blocks_and_tiles_of_different_size(block_size: int, tokens: int, device: torch.device) -> None:
    tile = AttentionTile(tokens, 4, 8)
    Rows([0, 63, 64, 129], device=device, heads=(2, 1), block_size=block_size).assert_like_twin(2, tile=tile)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_head_sizes(head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
    Rows([5, 40], device=device, head_dim=head_dim, dtype=dtype).assert_like_twin(2, scale=head_dim**-0.5)


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 40, 1000])
def test_window(window: int, splits: int, device: torch.device) -> None:
    Rows([0, 15, 16, 47, 90], device=device, heads=(2, 1), window=window).assert_like_twin(splits)


@pytest.mark.parametrize("window", [None, 20], ids=["all", "window"])
@pytest.mark.parametrize("softcap", [0.5, 30.0])
def test_softcap(softcap: float, window: int | None, device: torch.device) -> None:
    Rows([3, 60], device=device, window=window).assert_like_twin(2, softcap=softcap, scale=1.5)


def test_scores_far_from_each_other(device: torch.device) -> None:
    """A split whose keys count for nothing beside another's; and scores beyond what exp takes."""
    rows = Rows([79], device=device, heads=(2, 1))
    rows.k_cache[rows.block_table[rows.rows.long(), 2]] *= 100
    rows.assert_like_twin(5, scale=1.0)
    rows.assert_like_twin(1, scale=1.0)


def test_rows_of_very_different_length_leave_splits_empty(device: torch.device) -> None:
    Rows([0, 200, 15, 70], device=device).assert_like_twin(8)


def test_more_splits_than_are_merged_at_a_time(device: torch.device) -> None:
    splits, heads, head_dim = 8, 8, 256
    assert heads * head_dim * splits > MERGED_ELEMENTS
    Rows([16 * splits - 1], device=device, heads=(heads, 1), head_dim=head_dim).assert_like_twin(splits)


def test_types_of_query_and_cache_differ(device: torch.device) -> None:
    Rows([20], device=device, dtype=torch.bfloat16, kv_dtype=torch.float16).assert_like_twin(2)
    Rows([20], device=device, dtype=torch.bfloat16, kv_dtype=torch.float32).assert_like_twin(2)


def test_padding_is_zeros_and_reads_nothing(device: torch.device) -> None:
    rows = Rows([20, 40, 3], device=device)
    rows.rows[[0, 2]] = -1
    rows.positions[0] = 1 << 30
    for splits in (1, 3):
        out = rows.assert_like_twin(splits)
        assert not out[[0, 2]].any()
        assert out[1].any()


def test_a_workspace_serves_one_call_after_the_other(device: torch.device) -> None:
    workspace = Workspace.allocate(3, 4, 2, 16, 8, device)
    workspace.outputs.fill_(torch.nan)
    for positions in ([100, 3, 50], [70], [0, 120]):
        Rows(positions, device=device).assert_like_twin(8, workspace=workspace)
        assert not workspace.counters.any()


def test_rows_that_lie_apart(device: torch.device) -> None:
    rows = Rows([20, 33], device=device)
    rows.q = torch.cat([rows.q, rows.q * torch.nan], dim=1)[:, :4]
    rows.block_table = torch.cat([rows.block_table, torch.zeros_like(rows.block_table)], dim=1)[
        :, : rows.block_table.shape[1]
    ]
    rows.rows, rows.positions = rows.rows.long(), rows.positions.long()
    rows.assert_like_twin(2)


def test_the_tables_own_tile_and_splits(device: torch.device) -> None:
    rows = Rows([20, 150], device=device, head_dim=128)
    torch.testing.assert_close(
        decode_attention(*rows.tensors, 0.1),
        reference_decode.decode_attention(*rows.tensors, 0.1),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("window", [None, 20], ids=["all", "window"])
@pytest.mark.parametrize("softcap", [None, 2.0], ids=["plain", "softcap"])
def test_the_twin_agrees_with_the_one_that_runs_on_the_cpu(softcap: float | None, window: int | None) -> None:
    positions = [3, 16, 63]
    rows = Rows(positions, device=torch.device("cpu"), window=window)
    plan = reference.plan_attention(
        rows.block_table[rows.rows.long()],
        positions,
        [1, 1, 1],
        rows.positions.long(),
        None,
        block_size=16,
        num_kv_heads=2,
        window=window,
    )
    expected = reference.paged_attention(rows.q, rows.k_cache, rows.v_cache, plan, 0.3, softcap)
    actual = reference_decode.decode_attention(*rows.tensors, 0.3, window=window, softcap=softcap)
    torch.testing.assert_close(actual, expected)


def test_refusals(device: torch.device) -> None:
    def refused(message: str, **changes: Any) -> None:
        rows = Rows([20, 3], device=device)
        more = {name: changes.pop(name) for name in ("workspace", "window") if name in changes}
        vars(rows).update(changes)
        with pytest.raises(ValueError, match=message):
            decode_attention(*rows.tensors, 0.3, splits=4, tile=TILE, **more)

    refused("2 heads of 16", q=torch.ones(2, 3, 16))
    refused("2 heads of 16", q=torch.ones(2, 4, 8))
    refused("side by side", q=torch.ones(2, 4, 32)[..., :16])
    refused("caches", v_cache=torch.ones(3, 2, 4, 16))
    refused("power of two", k_cache=torch.ones(3, 2, 12, 16), v_cache=torch.ones(3, 2, 12, 16))
    refused("one a token: 2", rows=torch.ones(3))
    refused("at least 1", window=0)
    refused("2 counters", workspace=Workspace.allocate(1, 4, 2, 16, 4, device))
