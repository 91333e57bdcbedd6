"""Prefill attention against softmax over each row's own keys, with everything it must not read poisoned."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from engine.kernels import reference_step
from engine.kernels.launch import INTERPRETED
from engine.kernels.prefill_attention import prefill_attention
from engine.kernels.reference_kv import dequantize
from engine.kernels.tiles import PREFILL_TILES, PrefillTile, prefill_tile
from tests.kernels.quantized import float_type, quantized, result_type

Tensor = torch.Tensor

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
SMALL = PrefillTile(block_m=32, block_n=32, num_warps=4, num_stages=2)
"""So that few tokens make many tiles."""


@dataclass
class Setup:
    """Rows (start, count) with pasts in a shuffled cache; what no query may see is NaN, in blocks and in tables."""

    rows: list[tuple[int, int]]
    device: torch.device
    heads: tuple[int, int] = (4, 2)
    head_dim: int = 64
    block_size: int = 16
    window: int | None = None
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype | None = None
    table_dtype: torch.dtype = torch.int32
    keys: list[Tensor] = field(init=False)
    values: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        (num_heads, num_kv_heads), size = self.heads, self.block_size
        cache_dtype = self.cache_dtype or self.dtype
        num_blocks = sum(-(-(start + count) // size) for start, count in self.rows) + 3
        shape = num_blocks, num_kv_heads, size, self.head_dim
        k_cache, v_cache = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
        self.keys = [
            torch.randn(start + count, num_kv_heads, self.head_dim).to(float_type(cache_dtype))
            for start, count in self.rows
        ]
        self.values = [torch.randn_like(keys) for keys in self.keys]
        free = (torch.randperm(num_blocks - 1) + 1).tolist()
        widest = max(-(-(start + count) // size) for start, count in self.rows) + 2
        table = torch.zeros(len(self.rows), widest, dtype=self.table_dtype)  # block 0 is nobody's, and NaN
        for row, (start, count) in enumerate(self.rows):
            oldest = 0 if self.window is None else max(0, start + 1 - self.window)
            for index in range(oldest // size, -(-(start + count) // size)):
                table[row, index] = free.pop()
            for position in range(oldest, start + count):
                block, slot = table[row, position // size], position % size
                k_cache[block, :, slot] = self.keys[row][position].float()
                v_cache[block, :, slot] = self.values[row][position].float()
        caches = (cache.to(float_type(cache_dtype)).to(self.device) for cache in (k_cache, v_cache))
        self.k_cache, self.v_cache, self.scales = quantized(*caches, cache_dtype)
        if self.scales:  # what is expected is what is stored
            for row, (start, count) in enumerate(self.rows):
                oldest = 0 if self.window is None else max(0, start + 1 - self.window)
                positions = torch.arange(oldest, start + count)
                slots = table[row, positions // size].long(), slice(None), positions % size
                for own, cache, name in (
                    (self.keys, self.k_cache, "k_scales"),
                    (self.values, self.v_cache, "v_scales"),
                ):
                    own[row][oldest:] = dequantize(cache[slots], self.scales[name][slots])
        # Rows lie anywhere in a table of more rows, whose entries are no block's numbers.
        places = torch.randperm(len(self.rows) + 3)[: len(self.rows)]
        self.table = torch.full((len(places) + 3, widest), -(10**6), dtype=self.table_dtype, device=self.device)
        self.table[places] = table.to(self.device)
        self.row_numbers = places.to(torch.int32).to(self.device)
        counts = torch.tensor([count for _, count in self.rows])
        ends = counts.cumsum(0)
        self.cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), ends]).to(torch.int32).to(self.device)
        self.starts = torch.tensor([start for start, _ in self.rows], dtype=torch.int32, device=self.device)
        fused = torch.randn(int(ends[-1]), num_heads + 2, self.head_dim).to(self.dtype).to(self.device)
        self.q = fused[:, 1:-1]  # tokens lie further apart than their heads take

    def check(
        self, *, softcap: float | None = None, tile: PrefillTile | None = SMALL, tolerance: float | None = None
    ) -> None:
        out = self.run(softcap=softcap, tile=tile)
        tolerance = tolerance or TOLERANCE[result_type(self.dtype, self.scales)]
        torch.testing.assert_close(out.cpu(), self.expected(softcap), atol=tolerance, rtol=tolerance)

    def run(self, *, softcap: float | None = None, tile: PrefillTile | None = SMALL) -> Tensor:
        return prefill_attention(
            self.q, self.k_cache, self.v_cache, self.table, self.row_numbers, self.cu_seqlens, self.starts,
            self.head_dim**-0.5, window=self.window, softcap=softcap, tile=tile, **self.scales,
        )  # fmt: skip

    def twin(self, softcap: float | None) -> Tensor:
        return reference_step.prefill_attention(
            self.q, self.k_cache, self.v_cache, self.table, self.row_numbers, self.cu_seqlens, self.starts,
            self.head_dim**-0.5, window=self.window, softcap=softcap, **self.scales,
        )  # fmt: skip

    def expected(self, softcap: float | None) -> Tensor:
        results, token = [], 0
        for row, (start, count) in enumerate(self.rows):
            q = self.q[token : token + count].cpu().double()
            group = q.shape[1] // self.heads[1]
            keys = self.keys[row].double().repeat_interleave(group, dim=1)
            values = self.values[row].double().repeat_interleave(group, dim=1)
            scores = torch.einsum("qhd,khd->hqk", q, keys) * self.head_dim**-0.5
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            query, key = torch.arange(start, start + count)[:, None], torch.arange(start + count)
            sees = (key <= query) & (key > query - (self.window or 1 << 30))
            weights = scores.masked_fill(~sees, -torch.inf).softmax(-1)
            results.append(torch.einsum("hqk,khd->qhd", weights, values).flatten(1))
            token += count
        return torch.cat(results).to(self.dtype)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 31, 32, 33, 70])
def test_a_prompt_alone(count: int, device: torch.device) -> None:
    Setup([(0, count)], device).check()


@pytest.mark.parametrize("start", [1, 15, 16, 31, 32, 33, 63, 64, 100])
@pytest.mark.parametrize("count", [1, 17, 32])
def test_a_chunk_sees_the_chunks_before(start: int, count: int, device: torch.device) -> None:
    Setup([(start, count)], device).check()


MIXED = [(0, 5), (40, 1), (3, 33), (0, 1), (64, 1), (31, 2), (100, 20), (16, 16)]


@pytest.mark.parametrize("window", [None, 1, 7, 16, 33, 1000])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_mixed_rows(window: int | None, softcap: float | None, device: torch.device) -> None:
    Setup(MIXED, device, window=window).check(softcap=softcap)


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_its_twin(window: int | None, softcap: float | None, device: torch.device) -> None:
    """The twin itself reads no more than the kernel does."""
    setup = Setup(MIXED, device, window=window)
    torch.testing.assert_close(setup.twin(softcap).cpu(), setup.expected(softcap), atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(setup.twin(softcap), setup.run(softcap=softcap), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("heads", [(2, 2), (7, 1), (14, 2), (3, 1), (8, 1)], ids=str)
def test_heads(heads: tuple[int, int], device: torch.device) -> None:
    Setup([(0, 19), (37, 1), (20, 13)], device, heads=heads).check()


@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128, 256])
def test_head_dims(head_dim: int, device: torch.device) -> None:
    Setup([(17, 23), (5, 1)], device, head_dim=head_dim).check()


@pytest.mark.parametrize("block_size", [16, 32, 64])
@pytest.mark.parametrize("block_n", [16, 32, 64])
def test_block_sizes(block_size: int, block_n: int, device: torch.device) -> None:
    tile = PrefillTile(32, block_n, 4, 2)
    Setup([(70, 40), (0, 66), (127, 1)], device, block_size=block_size).check(tile=tile)
    Setup([(70, 40), (0, 66), (127, 1)], device, block_size=block_size, window=50).check(tile=tile)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("cache_dtype", [None, torch.float16, torch.bfloat16], ids=str)
def test_types(dtype: torch.dtype, cache_dtype: torch.dtype | None, device: torch.device) -> None:
    Setup([(33, 18), (5, 1)], device, dtype=dtype, cache_dtype=cache_dtype, table_dtype=torch.int64).check()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_query_in_registers(dtype: torch.dtype, device: torch.device) -> None:
    """The product that brings it there is exact."""
    setup = Setup(MIXED, device, head_dim=80, dtype=dtype)
    results = []
    for in_registers in (False, True):
        tile = replace(SMALL, query_in_registers=in_registers)
        setup.check(tile=tile)
        results.append(setup.run(tile=tile))
    if INTERPRETED:
        torch.testing.assert_close(*results, atol=0, rtol=0)


def test_caches_beyond_the_reach_of_int32(device: torch.device) -> None:
    setup = Setup([(20, 9), (0, 3)], device, dtype=torch.float16)
    num_blocks, _, size, dim = setup.k_cache.shape
    stride = -(-(1 << 31) // (num_blocks - 1))
    memory = torch.empty(stride * num_blocks, dtype=torch.float16, device=device)  # mapped, hardly touched
    caches = [
        memory.as_strided(cache.shape, (stride, size * dim, dim, 1), storage_offset)
        for cache, storage_offset in ((setup.k_cache, 0), (setup.v_cache, stride // 2))
    ]
    for far, near in zip(caches, (setup.k_cache, setup.v_cache), strict=True):
        far.copy_(near)
    setup.k_cache, setup.v_cache = caches
    setup.check()


def test_the_tables_own_tile(device: torch.device) -> None:
    Setup([(200, 150), (3, 1)], device, heads=(7, 1), head_dim=128, dtype=torch.bfloat16).check(tile=None)


def test_more_rows_than_are_searched_at_once(device: torch.device) -> None:
    Setup([(row % 5, 1 + row % 3) for row in range(131)], device, heads=(1, 1), head_dim=16).check()


def test_large_scores_do_not_overflow(device: torch.device) -> None:
    setup = Setup([(10, 30)], device)
    setup.q *= 300
    setup.check(tolerance=2e-4)  # scores near 3000 have 2e-4 between neighbours in float32


def test_tokens_beyond_those_of_the_rows_stay_untouched(device: torch.device) -> None:
    """A replayed graph may have been captured with more tokens and rows than a step has."""
    setup = Setup([(4, 9), (0, 3)], device)
    expected = setup.expected(None)
    q = torch.cat([setup.q, setup.q.new_full((7, 4, 64), torch.nan)])
    rows = torch.cat([setup.row_numbers, setup.row_numbers.new_full((2,), -1)])
    cu_seqlens = torch.cat([setup.cu_seqlens, setup.cu_seqlens[-1:], setup.cu_seqlens[-1:]])
    starts = torch.cat([setup.starts, setup.starts.new_zeros(2)])
    step = torch.full((25, 256), -7.0, device=device)  # the rows that decode come before
    out = step[6:]
    result = prefill_attention(
        q, setup.k_cache, setup.v_cache, setup.table, rows, cu_seqlens, starts, 64**-0.5, tile=SMALL, out=out
    )
    assert result is out
    torch.testing.assert_close(out[:12].cpu(), expected, atol=2e-5, rtol=2e-5)
    assert (step[:6] == -7).all()
    assert (out[12:] == -7).all()


def test_every_architecture_has_a_tile_for_every_head() -> None:
    for architecture in (*PREFILL_TILES, 0, 75, 100):
        for head_dim in (64, 96, 128, 192, 256):
            tile = prefill_tile(architecture, head_dim, 2)
            assert tile.block_n >= 16
            assert prefill_tile(architecture, head_dim, 4).block_n < tile.block_n
    assert prefill_tile(75, 128, 2) == prefill_tile(80, 128, 2)
    assert prefill_tile(100, 128, 2) == prefill_tile(90, 128, 2)


def test_refuses_what_does_not_fit_together(device: torch.device) -> None:
    setup = Setup([(0, 4)], device)
    q = setup.q
    arguments: list[Any] = [
        q, setup.k_cache, setup.v_cache, setup.table, setup.row_numbers, setup.cu_seqlens, setup.starts
    ]  # fmt: skip
    for index, wrong, message in (
        (0, q[:, :3], "multiple"),
        (0, q[:, :, :32], "head_dim"),
        (2, setup.v_cache[1:], "alike"),
        (4, setup.row_numbers[:0], r"rows is torch.int32 \(0,\)"),
        (5, setup.cu_seqlens.long(), "cu_seqlens is torch.int64"),
        (5, setup.cu_seqlens[:1], r"must be torch.int32 \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            prefill_attention(*arguments[:index], wrong, *arguments[index + 1 :], 1.0)
    with pytest.raises(ValueError, match="contiguous"):
        prefill_attention(q.transpose(1, 2).contiguous().transpose(1, 2), *arguments[1:], 1.0)
    for scale in (0.0, -1.0):
        with pytest.raises(ValueError, match="must be above 0"):
            prefill_attention(*arguments, scale)
    with pytest.raises(ValueError, match="power of two"):
        prefill_attention(q, *(cache[:, :, :12].contiguous() for cache in arguments[1:3]), *arguments[3:], 1.0)
    with pytest.raises(ValueError, match="out is"):
        prefill_attention(*arguments, 1.0, out=torch.empty(4, 255))
    with pytest.raises(ValueError, match="query heads a KV head"):
        prefill_attention(*arguments, 1.0, tile=PrefillTile(1, 16, 4, 2))
