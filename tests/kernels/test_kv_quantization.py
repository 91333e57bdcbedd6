"""Caches of 8 bits: every kernel against its twin, the conversions against torch, the twin against what it stores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from engine.kernels import reference, reference_decode
from engine.kernels.decode_attention import decode_attention
from engine.kernels.kv_quantization import decoded, encoded, stored_bytes
from engine.kernels.kv_types import LARGEST
from engine.kernels.prefill_attention import prefill_attention
from engine.kernels.reference_kv import dequantize, quantize
from engine.kernels.rope_decode_attention import rope_decode_attention
from engine.kernels.rope_store import rope_store
from engine.kernels.tiles import AttentionTile, PrefillTile
from tests.kernels.quantized import TYPES, assert_stored_close, clones, quantized
from tests.kernels.test_decode_attention import Rows
from tests.kernels.test_prefill_attention import Setup
from tests.kernels.test_rope_decode_attention import Step
from tests.kernels.test_rope_store import Step as StoreStep

TILE = AttentionTile(tokens=16, num_warps=4, max_splits=8)
EPS = 1e-6
ERROR = {torch.int8: 0.5 / 127, torch.float8_e4m3fn: 2.0**-4}
"""Of an element, at most: int8's by the largest of its vector, float8's by the element itself."""

pytestmark = pytest.mark.parametrize("kv_dtype", TYPES, ids=str)


# ---- numbers


def test_a_vector_comes_back_within_half_a_step(kv_dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 64) * torch.logspace(-12, 12, 200)[:, None]
    stored, scales = quantize(x, kv_dtype)
    assert (stored.float().abs().amax(-1) == LARGEST[kv_dtype]).all()
    largest = x.abs().amax(-1, keepdim=True)
    by = largest if kv_dtype == torch.int8 else x.abs().clamp(min=largest * 2.0**-6 / 448)
    assert ((dequantize(stored, scales) - x).abs() <= by * ERROR[kv_dtype] * 1.0001).all()


def test_vectors_of_nothing_and_damaged_ones(kv_dtype: torch.dtype) -> None:
    x = torch.ones(5, 16)
    x[0], x[1] = 0.0, 1e-38
    x[2, 3], x[3, 4], x[4, 5] = torch.nan, torch.inf, -torch.inf
    stored, scales = quantize(x, kv_dtype)
    assert scales[:2].tolist() == [0.0, 0.0]
    assert not dequantize(stored, scales)[:2].any()
    assert not scales[2:].isfinite().any()
    assert not dequantize(stored, scales)[2:].isfinite().all(-1).any()


@triton.jit
def _convert(x_ptr, stored_ptr, back_ptr, SIZE: tl.constexpr):
    here = tl.arange(0, SIZE)
    stored = encoded(tl.load(x_ptr + here), stored_ptr.dtype.element_ty)
    tl.store(stored_ptr + here, stored)
    tl.store(back_ptr + here, decoded(stored, tl.float16).to(tl.float32))


def test_kernels_convert_as_torch_does(kv_dtype: torch.dtype, device: torch.device) -> None:
    """Every number of the type, the middles between neighbours, and what lies around them."""
    codes = torch.arange(-127, 128) if kv_dtype == torch.int8 else torch.arange(256, dtype=torch.uint8)
    numbers = codes.float() if kv_dtype == torch.int8 else codes.view(torch.float8_e4m3fn).float()
    numbers = numbers[numbers.isfinite()].unique()
    middles = (numbers[1:] + numbers[:-1]) / 2
    x = torch.cat([numbers, middles, middles * (1 + 2.0**-12), middles * (1 - 2.0**-12)])
    x = torch.cat([x, x.new_zeros(1024 - len(x))]).to(device)
    stored, back = torch.empty(1024, dtype=kv_dtype, device=device), torch.empty(1024, device=device)
    _convert[(1,)](x, stored_bytes(stored), back, 1024)
    expected = (x + 0.5).floor() if kv_dtype == torch.int8 else x.to(kv_dtype).float()
    assert torch.equal(stored.float(), expected)
    assert torch.equal(back, expected)


# ---- kernels against their twins


@pytest.mark.parametrize(
    ("head_dim", "rotary_dim", "is_interleaved", "dtype"),
    [
        (16, 16, False, torch.bfloat16),
        (24, 10, False, torch.float32),
        (24, 10, True, torch.float16),
        (96, 72, False, torch.float32),
        (2, 2, False, torch.float32),
    ],
    ids=str,
)
def test_rope_store(
    head_dim: int, rotary_dim: int, is_interleaved: bool, dtype: torch.dtype, kv_dtype: torch.dtype,
    device: torch.device,
) -> None:  # fmt: skip
    step = StoreStep(
        [3, 9, 1, 4], device=device, head_dim=head_dim, rotary_dim=rotary_dim, dtype=dtype, kv_dtype=kv_dtype,
        padding=(2,),
    )  # fmt: skip
    q_norm, k_norm = torch.randn(2, head_dim, device=device).to(dtype)
    step.assert_like_twin(q_norm=q_norm, k_norm=k_norm, eps=EPS, is_interleaved=is_interleaved)
    assert step.scales["k_scales"].isfinite().sum() == 3 * 2, "one slot in each of two heads"


@pytest.mark.parametrize(("heads", "block_size"), [((2, 2), 1), ((6, 2), 16), ((7, 1), 4)], ids=str)
def test_rope_store_at_the_edges_of_blocks(
    heads: tuple[int, int], block_size: int, kv_dtype: torch.dtype, device: torch.device
) -> None:
    positions = [0, block_size - 1, block_size, 2 * block_size - 1, 3 * block_size + block_size // 2]
    step = StoreStep(positions, device=device, heads=heads, block_size=block_size, kv_dtype=kv_dtype)
    step.qkv[0] = 0.0
    step.assert_like_twin()


@pytest.mark.parametrize(
    ("heads", "dtype"),
    [((2, 2), torch.float32), ((4, 2), torch.bfloat16), ((7, 1), torch.float16), ((20, 1), torch.float32)],
    ids=str,
)
def test_groups(heads: tuple[int, int], dtype: torch.dtype, kv_dtype: torch.dtype, device: torch.device) -> None:
    options: dict[str, Any] = {"device": device, "heads": heads, "dtype": dtype, "kv_dtype": kv_dtype}
    Rows([0, 20, 33], **options).assert_like_twin(2)
    step = Step([0, 20, 33], **options)
    q_norm, k_norm = torch.randn(2, 32, device=device).to(dtype)
    step.assert_like_twin(2, q_norm=q_norm, k_norm=k_norm, eps=EPS)


@pytest.mark.parametrize(("position", "splits"), [(0, 1), (0, 3), (15, 1), (16, 3), (17, 1), (64, 3)])
def test_edges_of_blocks_and_splits(position: int, splits: int, kv_dtype: torch.dtype, device: torch.device) -> None:
    options: dict[str, Any] = {"device": device, "heads": (3, 1), "kv_dtype": kv_dtype}
    Rows([position], **options).assert_like_twin(splits)
    Step([position], **options).assert_like_twin(splits)


@pytest.mark.parametrize(("block_size", "tokens"), [(16, 32), (64, 32), (64, 64), (1, 16)], ids=str)
def test_blocks_and_tiles_of_different_size(
    block_size: int, tokens: int, kv_dtype: torch.dtype, device: torch.device
) -> None:
    options: dict[str, Any] = {"device": device, "heads": (2, 1), "block_size": block_size, "kv_dtype": kv_dtype}
    tile = AttentionTile(tokens, 4, 8)
    Rows([0, 63, 129], **options).assert_like_twin(2, tile=tile)
    Step([0, 63, 129], **options).assert_like_twin(2, tile=tile)


@pytest.mark.parametrize(("window", "softcap"), [(1, None), (16, 0.5), (17, None), (40, 0.5)])
def test_window_and_softcap(
    window: int, softcap: float | None, kv_dtype: torch.dtype, device: torch.device
) -> None:  # fmt: skip
    options: dict[str, Any] = {"device": device, "heads": (2, 1), "window": window, "kv_dtype": kv_dtype}
    Rows([0, 15, 16, 90], **options).assert_like_twin(4, softcap=softcap, scale=1.5)
    Step([0, 15, 16, 90], **options).assert_like_twin(4, softcap=softcap, scale=1.5)


def test_padding_is_zeros_and_writes_nothing(kv_dtype: torch.dtype, device: torch.device) -> None:
    step = Step([20, 40, 3], device=device, kv_dtype=kv_dtype, padding=(0, 2))
    step.positions[0] = 1 << 30
    out = step.assert_like_twin(3)
    assert not out[[0, 2]].any()
    assert out[1].any()


def test_rows_that_lie_apart_and_the_tables_own_tile(kv_dtype: torch.dtype, device: torch.device) -> None:
    step = Step([20, 150], device=device, head_dim=128, kv_dtype=kv_dtype)
    step.qkv = torch.cat([step.qkv, torch.full_like(step.qkv, torch.nan)], dim=1)[:, : step.qkv.shape[1]]
    step.rows, step.positions = step.rows.long(), step.positions.long()
    step.assert_like_twin(None, tile=None)


@pytest.mark.parametrize("factor", [2e-5, 1e4])
def test_small_and_large_values_in_float16(factor: float, kv_dtype: torch.dtype, device: torch.device) -> None:
    """Weights times scales, which float16 could not hold."""
    step = Step([70], device=device, dtype=torch.float16, kv_dtype=kv_dtype)
    step.scales["v_scales"] *= factor
    step.qkv[:, -64:] *= factor
    caches, scales = (step.k_cache.clone(), step.v_cache.clone()), clones(step.scales)
    expected = reference_decode.rope_decode_attention(
        *step.tensors(*caches), step.num_heads, 0.3, **scales, out_dtype=torch.float32
    )
    actual = rope_decode_attention(
        *step.tensors(step.k_cache, step.v_cache), step.num_heads, 0.3, **step.scales, tile=TILE
    )
    torch.testing.assert_close(actual.float(), expected, atol=2e-2 * expected.abs().max().item(), rtol=0)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_damaged_key_is_not_hidden(kv_dtype: torch.dtype, device: torch.device) -> None:
    step = Step([20, 20], device=device, kv_dtype=kv_dtype)
    block = step.block_table[step.rows[1].long(), 0]
    step.scales["k_scales"][block, :, 3] = torch.inf
    step.k_cache[block, :, 3] = 0
    out = rope_decode_attention(
        *step.tensors(step.k_cache, step.v_cache), step.num_heads, 0.3, **step.scales, splits=1, tile=TILE
    )
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def test_it_is_the_two_kernels_in_one(kv_dtype: torch.dtype, device: torch.device) -> None:
    window = 20
    step = Step([40, 0, 17], device=device, kv_dtype=kv_dtype, window=window)
    norms = *torch.randn(2, 32, device=device), EPS
    caches, scales = (step.k_cache.clone(), step.v_cache.clone()), clones(step.scales)
    q = rope_store(*step.tensors(*caches), step.num_heads, *norms, **scales)
    tables = step.block_table, step.rows, step.positions
    expected = decode_attention(q, *caches, *tables, 0.3, window=window, splits=2, tile=TILE, **scales)
    actual = rope_decode_attention(
        *step.tensors(step.k_cache, step.v_cache), step.num_heads, 0.3, q_norm=norms[0], k_norm=norms[1], eps=EPS,
        window=window, splits=2, tile=TILE, **step.scales,
    )  # fmt: skip
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    for one, other in zip((step.k_cache, step.v_cache), caches, strict=True):
        assert_stored_close(one, other)
    torch.testing.assert_close(step.scales, scales, equal_nan=True)


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (7, 2.0), (33, None)])
def test_prefill(window: int | None, softcap: float | None, kv_dtype: torch.dtype, device: torch.device) -> None:
    setup = Setup([(0, 5), (40, 1), (3, 33), (31, 2), (16, 16)], device, window=window, cache_dtype=kv_dtype)
    setup.check(softcap=softcap)
    torch.testing.assert_close(setup.twin(softcap).cpu(), setup.expected(softcap), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("heads", "head_dim", "block_size", "block_n", "dtype"),
    [
        ((7, 1), 64, 16, 32, torch.bfloat16),
        ((4, 2), 80, 32, 16, torch.float16),
        ((3, 1), 32, 16, 64, torch.float32),
        ((2, 2), 128, 64, 32, torch.float16),
    ],
    ids=str,
)
def test_prefill_of_other_shapes(
    heads: tuple[int, int], head_dim: int, block_size: int, block_n: int, dtype: torch.dtype, kv_dtype: torch.dtype,
    device: torch.device,
) -> None:  # fmt: skip
    rows = [(40, 20), (0, 37), (63, 1)]
    setup = Setup(rows, device, heads, head_dim, block_size, dtype=dtype, cache_dtype=kv_dtype)
    setup.check(tile=PrefillTile(32, block_n, 4, 2))


def test_prefill_with_the_tables_own_tile(kv_dtype: torch.dtype, device: torch.device) -> None:
    setup = Setup([(70, 12), (3, 1)], device, (7, 1), 128, cache_dtype=kv_dtype)
    setup.check(tile=None)


# ---- the twins that run on the CPU


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_damaged_vector_is_stored_as_one(broken: float, kv_dtype: torch.dtype, device: torch.device) -> None:
    step = StoreStep([3, 4], device=device, kv_dtype=kv_dtype, block_size=4)
    step.qkv[1, -1] = broken  # in V's last head
    rope_store(
        step.qkv, step.cos, step.sin, step.k_cache, step.v_cache, step.block_table, step.rows, step.positions,
        step.num_heads, **step.scales,
    )  # fmt: skip
    blocks = step.block_table[step.rows.long(), step.positions.long() // 4]
    stored = step.scales["v_scales"][blocks, :, step.positions.long() % 4]  # [token, KV head]
    assert stored.isfinite().tolist() == [[True, True], [True, False]]
    back = dequantize(step.v_cache[blocks[1], 1, 0], stored[1, 1])
    assert not back.isfinite().any()


@pytest.mark.parametrize("window", [None, 20], ids=["all", "window"])
@pytest.mark.parametrize("softcap", [None, 2.0], ids=["plain", "softcap"])
@pytest.mark.parametrize("positions", [[3, 16, 63], [16, 16]], ids=str)
def test_the_twins_agree_with_those_that_run_on_the_cpu(
    positions: list[int], softcap: float | None, window: int | None, kv_dtype: torch.dtype
) -> None:
    step = Step(positions, device=torch.device("cpu"), window=window, kv_dtype=kv_dtype)
    plan = reference.plan_attention(
        step.block_table[step.rows.long()], positions, [1] * len(positions), step.positions.long(), None,
        block_size=16, num_kv_heads=2, window=window,
    )  # fmt: skip
    caches, scales = (step.k_cache.clone(), step.v_cache.clone()), clones(step.scales)
    q = reference.rope_store(step.qkv.clone(), step.cos, step.sin, *caches, plan, step.num_heads, **scales)
    expected = reference.paged_attention(q, *caches, plan, 0.3, softcap, **scales)
    actual = reference_decode.rope_decode_attention(
        *step.tensors(step.k_cache, step.v_cache), step.num_heads, 0.3, window=window, softcap=softcap, **step.scales
    )
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(step.k_cache.view(torch.uint8), caches[0].view(torch.uint8))
    assert torch.equal(step.v_cache.view(torch.uint8), caches[1].view(torch.uint8))
    torch.testing.assert_close(step.scales, scales, equal_nan=True, atol=0, rtol=0)


def test_attention_is_as_near_to_float32_as_its_keys_and_values(kv_dtype: torch.dtype) -> None:
    """By first-order error: a score is off by |q| |dk| at most, the result by that much of the values and by dv."""
    rows = Rows([63, 200], device=torch.device("cpu"), heads=(4, 2), head_dim=64)
    exact = reference_decode.decode_attention(*rows.tensors, 64**-0.5)
    rows.k_cache, rows.v_cache, rows.scales = quantized(rows.k_cache, rows.v_cache, kv_dtype)
    rough = reference_decode.decode_attention(*rows.tensors, 64**-0.5, **rows.scales)
    error = (rough - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt()
    # The rounding of a step is uniform, of relative size step / sqrt(12); float8's steps are 1/8 to 1/16 of a number.
    # A weight's error is that of a score, which is of size 1 here, so both parts are alike.
    step = 3.0 / 127 if kv_dtype == torch.int8 else 0.09
    assert 0.1 * step / 12**0.5 < error < 2.0 * step / 12**0.5


def test_refusals(kv_dtype: torch.dtype, device: torch.device) -> None:
    step = Step([20, 3], device=device, kv_dtype=kv_dtype)
    q = torch.ones(2, 4, 32, device=device)
    tables = step.block_table, step.rows, step.positions
    ints = torch.tensor([0, 2], dtype=torch.int32, device=device)
    calls = (
        lambda **more: rope_decode_attention(*step.tensors(step.k_cache, step.v_cache), 4, 0.3, **more),
        lambda **more: rope_store(*step.tensors(step.k_cache, step.v_cache), 4, **more),
        lambda **more: decode_attention(q, step.k_cache, step.v_cache, *tables, 0.3, **more),
        lambda **more: prefill_attention(
            q, step.k_cache, step.v_cache, step.block_table, ints[:1], ints, ints[:1], 0.3, **more
        ),
    )
    for call in calls:
        for wrong, message in (
            ({}, "scales of K and V belong"),
            (step.scales | {"v_scales": None}, "scales of K and V belong"),
            (step.scales | {"k_scales": step.scales["k_scales"].half()}, "scales are torch.float16"),
            (step.scales | {"v_scales": step.scales["v_scales"][1:]}, "scales are torch.float32"),
        ):
            with pytest.raises(ValueError, match=message):
                call(**wrong)
    step.k_cache, step.v_cache = step.k_cache.float(), step.v_cache.float()
    for call in calls:
        with pytest.raises(ValueError, match="only it"):
            call(**step.scales)
