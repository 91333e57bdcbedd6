"""Norms of heads, rotation and KV write against their twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.kernels import reference, reference_decode
from engine.kernels.rope_store import rope_store
from tests.kernels.quantized import assert_stored_close, clones, float_type, quantized

# (atol, rtol): one rounding, of float32 values that agree to the last places.
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 2e-3), torch.bfloat16: (2e-2, 2e-2)}
EPS = 1e-6


class Step:
    """Tokens of several rows, a cache of NaN, and a table whose entries of no use lead to a block that must stay so."""

    def __init__(
        self,
        positions: list[int],
        *,
        device: torch.device,
        heads: tuple[int, int] = (4, 2),
        head_dim: int = 16,
        rotary_dim: int | None = None,
        block_size: int = 4,
        dtype: torch.dtype = torch.float32,
        kv_dtype: torch.dtype | None = None,
        padding: tuple[int, ...] = (),
    ) -> None:
        torch.manual_seed(0)
        num_tokens, (self.num_heads, num_kv_heads) = len(positions), heads
        self.qkv = torch.randn(num_tokens, (self.num_heads + 2 * num_kv_heads) * head_dim, device=device).to(dtype)
        angles = torch.rand(num_tokens, 1, (rotary_dim or head_dim) // 2, device=device) * 6
        self.cos = torch.cat([angles.cos(), angles.cos()], dim=-1)
        self.sin = torch.cat([-angles.sin(), angles.sin()], dim=-1)
        poison = num_tokens + 1
        shape = poison + 1, num_kv_heads, block_size, head_dim
        kv_dtype = kv_dtype or dtype
        cache = torch.full(shape, torch.nan, dtype=float_type(kv_dtype), device=device)
        self.k_cache, self.v_cache, self.scales = quantized(cache, cache.clone(), kv_dtype)
        table = torch.full((num_tokens + 2, 8), poison, device=device)
        blocks, rows = (torch.randperm(num_tokens) + 1).tolist(), torch.randperm(num_tokens + 2)[:num_tokens]
        for row, block, position in zip(rows.tolist(), blocks, positions, strict=True):
            table[row, position // block_size] = block
        rows[list(padding)] = -1
        self.block_table, self.rows = table, rows.int().to(device)
        self.positions = torch.tensor(positions, dtype=torch.int32, device=device)

    def assert_like_twin(self, **more: Any) -> None:
        """Q, and the caches as a whole: what was poison stays poison."""
        caches = self.k_cache.clone(), self.v_cache.clone()
        rest = self.block_table, self.rows, self.positions, self.num_heads
        scales = clones(self.scales)
        expected = reference_decode.rope_store(self.qkv, self.cos, self.sin, *caches, *rest, **scales, **more)
        q = rope_store(self.qkv, self.cos, self.sin, self.k_cache, self.v_cache, *rest, **self.scales, **more)
        for actual, wanted in zip((q, self.k_cache, self.v_cache), (expected, *caches), strict=True):
            if actual.dtype in TOLERANCE:
                atol, rtol = TOLERANCE[actual.dtype]
                torch.testing.assert_close(actual, wanted, atol=atol, rtol=rtol, equal_nan=True)
            else:
                assert_stored_close(actual, wanted)
        torch.testing.assert_close(self.scales, scales, equal_nan=True)


@pytest.mark.parametrize("is_interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(16, 16), (16, 4), (80, 80), (96, 72), (2, 2)], ids=str)
def test_rotation(head_dim: int, rotary_dim: int, is_interleaved: bool, device: torch.device) -> None:
    step = Step([0, 5], device=device, head_dim=head_dim, rotary_dim=rotary_dim)
    step.assert_like_twin(is_interleaved=is_interleaved)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("is_interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(16, 16), (24, 10)], ids=str)
def test_norms(head_dim: int, rotary_dim: int, is_interleaved: bool, dtype: torch.dtype, device: torch.device) -> None:
    step = Step([3, 9, 1], device=device, head_dim=head_dim, rotary_dim=rotary_dim, dtype=dtype)
    q_norm, k_norm = torch.randn(2, head_dim, device=device).to(dtype)
    step.assert_like_twin(q_norm=q_norm, k_norm=k_norm, eps=EPS, is_interleaved=is_interleaved)


def test_eps_of_the_norms(device: torch.device) -> None:
    step = Step([3], device=device)
    step.qkv *= 1e-3
    norm = torch.ones(16, device=device)
    step.assert_like_twin(q_norm=norm, k_norm=norm, eps=0.1)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (7, 1)], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_slots_at_the_edges_of_blocks(
    block_size: int, heads: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    positions = [0, max(block_size - 1, 0), block_size, 2 * block_size - 1, 3 * block_size + block_size // 2]
    Step(positions, device=device, heads=heads, block_size=block_size, dtype=dtype).assert_like_twin()


def test_types_of_stream_cache_and_result_differ(device: torch.device) -> None:
    step = Step([2, 7], device=device, kv_dtype=torch.float16)
    step.assert_like_twin(out_dtype=torch.bfloat16)


def test_padding_writes_nothing(device: torch.device) -> None:
    step = Step([4, 6, 2], device=device, padding=(0, 2))
    step.assert_like_twin()
    assert step.k_cache.isfinite().any(dim=3).sum() == 2  # one slot in each of the two heads


def test_rows_that_lie_apart(device: torch.device) -> None:
    step = Step([1, 5], device=device)
    step.qkv = torch.cat([step.qkv, torch.full_like(step.qkv, torch.nan)], dim=1)[:, : step.qkv.shape[1]]
    step.cos, step.sin = (torch.cat([x, x * torch.nan], dim=-1)[..., :16] for x in (step.cos, step.sin))
    step.block_table = torch.cat([step.block_table, torch.zeros_like(step.block_table)], dim=1)[:, :8]
    step.assert_like_twin()


def test_tokens_of_one_row_and_wide_integers(device: torch.device) -> None:
    step = Step([4, 5, 6, 7], device=device, block_size=8)
    step.rows, step.positions = torch.full_like(step.rows, int(step.rows[0])).long(), step.positions.long()
    step.assert_like_twin()


def test_the_twin_agrees_with_the_one_that_runs_on_the_cpu() -> None:
    step = Step([3, 6], device=torch.device("cpu"))
    plan = reference.plan_attention(
        step.block_table[step.rows.long()], [3, 6], [1, 1], step.positions.long(), None,
        block_size=4, num_kv_heads=2, window=None,
    )  # fmt: skip
    q_norm, k_norm = torch.randn(2, 16)
    caches = step.k_cache.clone(), step.v_cache.clone()
    norms = q_norm, k_norm, EPS
    expected = reference.rope_store(step.qkv.clone(), step.cos, step.sin, *caches, plan, 4, *norms)
    q = reference_decode.rope_store(
        step.qkv, step.cos, step.sin, step.k_cache, step.v_cache, step.block_table, step.rows, step.positions, 4, *norms
    )
    torch.testing.assert_close(q, expected)
    torch.testing.assert_close(step.k_cache, caches[0], equal_nan=True)
    torch.testing.assert_close(step.v_cache, caches[1], equal_nan=True)


def test_refusals(device: torch.device) -> None:
    def refused(message: str, **changes: Any) -> None:
        step = Step([0, 1], device=device)
        more = {name: changes.pop(name) for name in ("q_norm", "k_norm") if name in changes}
        vars(step).update(changes)
        with pytest.raises(ValueError, match=message):
            rope_store(
                step.qkv, step.cos, step.sin, step.k_cache, step.v_cache, step.block_table, step.rows, step.positions,
                step.num_heads, **more,
            )  # fmt: skip

    refused(r"need \(2, 144\)", num_heads=5)
    refused("angles of 3 tokens", cos=torch.ones(3, 1, 16))
    refused("at most 16 wide", cos=torch.ones(2, 1, 18), sin=torch.ones(2, 1, 18))
    refused("alike", sin=torch.ones(2, 1, 14))
    refused("caches", v_cache=torch.ones(3, 2, 4, 8))
    refused("one a token: 2", rows=torch.ones(3))
    refused("come together", q_norm=torch.ones(16))
