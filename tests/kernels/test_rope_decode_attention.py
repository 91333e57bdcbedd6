"""The fused kernel of a decode step against its twin: the result, and the caches as a whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.kernels import reference_decode
from engine.kernels.attention_splits import MAX_SPLITS, MERGED_ELEMENTS
from engine.kernels.decode_attention import Workspace, decode_attention
from engine.kernels.rope_decode_attention import is_fusable, rope_decode_attention
from engine.kernels.rope_store import rope_store
from engine.kernels.tiles import AttentionTile
from tests.kernels.quantized import assert_stored_close, clones, float_type, quantized, result_type

# (atol, rtol). The kernel rounds the weights of the softmax to the cache's type before the product with V.
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.float16: (4e-3, 4e-3), torch.bfloat16: (3e-2, 3e-2)}
TILE = AttentionTile(tokens=16, num_warps=4, max_splits=8)
EPS = 1e-6


class Step:
    """Rows whose newest token is at the given positions, their earlier keys and values scattered over blocks.

    All else is poison: slots of no use, the new token's included, are NaN, and entries of the table without use lead to
    a block of nothing else.
    """

    def __init__(
        self,
        positions: list[int],
        *,
        device: torch.device,
        heads: tuple[int, int] = (4, 2),
        head_dim: int = 32,
        block_size: int = 16,
        window: int | None = None,
        dtype: torch.dtype = torch.float32,
        kv_dtype: torch.dtype | None = None,
        padding: tuple[int, ...] = (),
    ) -> None:
        torch.manual_seed(0)
        num_tokens, (self.num_heads, num_kv_heads) = len(positions), heads
        self.window = window
        self.qkv = torch.randn(num_tokens, (self.num_heads + 2 * num_kv_heads) * head_dim, device=device).to(dtype)
        angles = torch.rand(num_tokens, 1, head_dim // 2, device=device) * 6
        self.cos = torch.cat([angles.cos(), angles.cos()], dim=-1)
        self.sin = torch.cat([-angles.sin(), angles.sin()], dim=-1)
        num_blocks = [position // block_size + 1 for position in positions]
        free = (torch.randperm(sum(num_blocks)) + 1).tolist()
        poison = len(free) + 1
        shape = poison + 1, num_kv_heads, block_size, head_dim
        kv_dtype = kv_dtype or dtype
        self.k_cache = torch.full(shape, torch.nan, dtype=float_type(kv_dtype))
        self.v_cache = self.k_cache.clone()
        table = torch.full((num_tokens + 2, max(num_blocks) + 1), poison)
        rows = torch.randperm(num_tokens + 2)[:num_tokens]
        for row, position in zip(rows.tolist(), positions, strict=True):
            first = 0 if window is None else max(0, position + 1 - window)
            for number in range(first // block_size, position // block_size + 1):
                block = table[row, number] = free.pop()
                lower, upper = max(first - number * block_size, 0), min(position - number * block_size, block_size)
                for cache in (self.k_cache, self.v_cache) if lower < upper else ():
                    cache[block, :, lower:upper] = torch.randn(num_kv_heads, upper - lower, head_dim).to(cache.dtype)
        rows[list(padding)] = -1
        caches = self.k_cache.to(device), self.v_cache.to(device)
        self.k_cache, self.v_cache, self.scales = quantized(*caches, kv_dtype)
        self.block_table, self.rows = table.to(device), rows.int().to(device)
        self.positions = torch.tensor(positions, dtype=torch.int32, device=device)

    def tensors(self, *caches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.qkv, self.cos, self.sin, *caches, self.block_table, self.rows, self.positions

    def assert_like_twin(
        self,
        splits: int | None = 1,
        *,
        tile: AttentionTile | None = TILE,
        scale: float = 0.3,
        workspace: Workspace | None = None,
        **options: Any,
    ) -> torch.Tensor:
        options |= {"window": self.window}
        wanted_caches, wanted_scales = (self.k_cache.clone(), self.v_cache.clone()), clones(self.scales)
        expected = reference_decode.rope_decode_attention(
            *self.tensors(*wanted_caches), self.num_heads, scale, **wanted_scales, **options
        )
        torch.use_deterministic_algorithms(True)  # memory that nobody has written is NaN
        try:
            actual = rope_decode_attention(
                *self.tensors(self.k_cache, self.v_cache), self.num_heads, scale,
                splits=splits, tile=tile, workspace=workspace, **self.scales, **options,
            )  # fmt: skip
        finally:
            torch.use_deterministic_algorithms(False)
        caches = self.k_cache, self.v_cache
        for one, other in zip((actual, *caches), (expected, *wanted_caches), strict=True):
            if one.dtype in TOLERANCE:
                atol, rtol = TOLERANCE[result_type(one.dtype, self.scales)]
                torch.testing.assert_close(one, other, atol=atol, rtol=rtol, equal_nan=one is not actual)
            else:
                assert_stored_close(one, other)
        torch.testing.assert_close(self.scales, wanted_scales, equal_nan=True)
        return actual


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (3, 1), (7, 1), (20, 1)], ids=["mha", "gqa2", "gqa3", "gqa7", "mqa"])
def test_groups(heads: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    Step([0, 20], device=device, heads=heads, dtype=dtype).assert_like_twin(2)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads", [(4, 2), (3, 1)], ids=["gqa2", "gqa3"])
def test_norms_of_heads(heads: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    step = Step([0, 40], device=device, heads=heads, dtype=dtype)
    q_norm, k_norm = torch.randn(2, 32, device=device).to(dtype)
    step.assert_like_twin(2, q_norm=q_norm, k_norm=k_norm, eps=EPS)


def test_eps_of_the_norms(device: torch.device) -> None:
    step = Step([20], device=device)
    step.qkv *= 1e-3
    norm = torch.ones(32, device=device)
    step.assert_like_twin(q_norm=norm, k_norm=norm, eps=0.1)


@pytest.mark.parametrize("splits", [1, 3, 8])
@pytest.mark.parametrize("position", [0, 1, 15, 16, 17, 31, 32, 33, 64, 100])
def test_edges_of_blocks_and_splits(position: int, splits: int, device: torch.device) -> None:
    Step([position], device=device, heads=(3, 1)).assert_like_twin(splits)


@pytest.mark.parametrize(("block_size", "tokens"), [(16, 32), (16, 64), (32, 64), (64, 32), (64, 64), (1, 16)], ids=str)
def test_blocks_and_tiles_of_different_size(block_size: int, tokens: int, device: torch.device) -> None:
    step = Step([0, 63, 64, 129], device=device, heads=(2, 1), block_size=block_size)
    step.assert_like_twin(2, tile=AttentionTile(tokens, 4, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_head_sizes(head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
    step = Step([5, 40], device=device, head_dim=head_dim, dtype=dtype)
    step.assert_like_twin(2, scale=head_dim**-0.5)


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 40, 1000])
def test_window(window: int, splits: int, device: torch.device) -> None:
    Step([0, 15, 16, 47, 90], device=device, heads=(2, 1), window=window).assert_like_twin(splits)


@pytest.mark.parametrize("window", [None, 20], ids=["all", "window"])
@pytest.mark.parametrize("softcap", [0.5, 30.0])
def test_softcap(softcap: float, window: int | None, device: torch.device) -> None:
    Step([0, 3, 60], device=device, window=window).assert_like_twin(2, softcap=softcap, scale=1.5)


def test_a_new_key_that_outweighs_all_others_and_one_that_weighs_nothing(device: torch.device) -> None:
    for factor in (100.0, -100.0):
        step = Step([79], device=device, heads=(1, 1))
        q, k, _ = step.qkv.view(3, 32)
        k[:] = q * factor
        step.assert_like_twin(5, scale=1.0)


def test_types_of_stream_cache_and_result_differ(device: torch.device) -> None:
    Step([20], device=device, kv_dtype=torch.bfloat16).assert_like_twin(2)
    Step([20], device=device, kv_dtype=torch.float16).assert_like_twin(2, out_dtype=torch.bfloat16)
    Step([20], device=device, dtype=torch.bfloat16, kv_dtype=torch.float32).assert_like_twin(2)


def test_padding_is_zeros_and_writes_nothing(device: torch.device) -> None:
    for splits in (1, 3):
        step = Step([20, 40, 3], device=device, padding=(0, 2))
        step.positions[0] = 1 << 30
        out = step.assert_like_twin(splits)
        assert not out[[0, 2]].any()
        assert out[1].any()


def test_a_workspace_serves_one_call_after_the_other(device: torch.device) -> None:
    workspace = Workspace.allocate(3, 4, 2, 32, 8, device)
    workspace.outputs.fill_(torch.nan)
    for positions in ([100, 3, 50], [70], [0, 120]):
        Step(positions, device=device).assert_like_twin(8, workspace=workspace)
        assert not workspace.counters.any()


def test_more_splits_than_are_merged_at_a_time(device: torch.device) -> None:
    splits, heads, head_dim = 9, 8, 256
    assert heads * head_dim * splits > 2 * MERGED_ELEMENTS
    Step([16 * splits], device=device, heads=(heads, 1), head_dim=head_dim).assert_like_twin(splits)


def test_a_row_that_has_all_splits(device: torch.device) -> None:
    tile = AttentionTile(16, 4, MAX_SPLITS, balance=0.0)
    step = Step([16 * MAX_SPLITS + 3], device=device, heads=(2, 1))
    step.assert_like_twin(MAX_SPLITS, tile=tile)


def test_the_tables_own_tile_and_splits(device: torch.device) -> None:
    step = Step([20, 150], device=device, head_dim=128)
    step.assert_like_twin(None, tile=None, workspace=Workspace.for_steps(2, 4, 2, 128, device))


def test_rows_that_lie_apart_and_wide_integers(device: torch.device) -> None:
    step = Step([20, 33], device=device)
    step.qkv = torch.cat([step.qkv, torch.full_like(step.qkv, torch.nan)], dim=1)[:, : step.qkv.shape[1]]
    step.cos, step.sin = (torch.cat([x, x * torch.nan], dim=-1)[..., :32] for x in (step.cos, step.sin))
    width = step.block_table.shape[1]
    step.block_table = torch.cat([step.block_table, torch.zeros_like(step.block_table)], dim=1)[:, :width]
    step.rows, step.positions = step.rows.long(), step.positions.long()
    step.assert_like_twin(2)


@pytest.mark.parametrize("window", [None, 20], ids=["all", "window"])
def test_it_is_the_two_kernels_in_one(window: int | None, device: torch.device) -> None:
    step = Step([40, 0, 17], device=device, dtype=torch.bfloat16, window=window)
    q_norm, k_norm = torch.randn(2, 32, device=device).bfloat16()
    caches = step.k_cache.clone(), step.v_cache.clone()
    q = rope_store(*step.tensors(*caches), step.num_heads, q_norm, k_norm, EPS)
    tables = step.block_table, step.rows, step.positions
    expected = decode_attention(q, *caches, *tables, 0.3, window=window, splits=2, tile=TILE)
    actual = step.assert_like_twin(2, q_norm=q_norm, k_norm=k_norm, eps=EPS)
    atol, rtol = TOLERANCE[torch.bfloat16]
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


@pytest.mark.parametrize(
    ("head_dim", "rotary_dim", "is_interleaved", "expected"),
    [
        (128, 128, False, True),
        (32, 32, False, True),
        (16, 16, False, False),
        (96, 96, False, False),
        (128, 64, False, False),
        (128, 128, True, False),
    ],
)
def test_which_heads_are_fusable(head_dim: int, rotary_dim: int, is_interleaved: bool, expected: bool) -> None:
    assert is_fusable(head_dim, rotary_dim, is_interleaved) is expected


def test_refusals(device: torch.device) -> None:
    def refused(message: str, **changes: Any) -> None:
        step = Step([20, 3], device=device)
        more = {name: changes.pop(name) for name in ("workspace", "q_norm", "splits") if name in changes}
        vars(step).update(changes)
        with pytest.raises(ValueError, match=message):
            rope_decode_attention(
                *step.tensors(step.k_cache, step.v_cache), step.num_heads, 0.3,
                window=step.window, tile=TILE, **({"splits": 4} | more),
            )  # fmt: skip

    refused("use rope_store", cos=torch.ones(2, 1, 16), sin=torch.ones(2, 1, 16))
    refused("use rope_store", k_cache=torch.ones(3, 2, 4, 48), cos=torch.ones(2, 1, 48))
    refused(r"need \(2, 288\)", num_heads=5)
    refused(r"need \(2, 256\)", qkv=torch.ones(2, 512)[:, ::2])
    refused("both must be", sin=torch.ones(1, 1, 32))
    refused("caches", v_cache=torch.ones(3, 2, 4, 32))
    refused("power of two", k_cache=torch.ones(3, 2, 12, 32), v_cache=torch.ones(3, 2, 12, 32))
    refused("one a token: 2", rows=torch.ones(3))
    refused("at least 1", window=0)
    refused("come together", q_norm=torch.ones(32))
    refused("2 counters", workspace=Workspace.allocate(1, 4, 2, 32, 4, device))
    refused("64 can be merged", splits=128)
