"""Products with few tokens, and what is fused into them, against their twins."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from engine.kernels import gemv as kernels
from engine.kernels import reference, reference_decode
from engine.kernels.gemv import DeferredNorm
from engine.kernels.product_tiles import DotTile, FmaTile, Tile

# (atol, rtol). Sums are in float32 on both sides, in another order; the result is rounded once.
TOLERANCE = {torch.float32: (1e-4, 1e-4), torch.float16: (4e-3, 2e-3), torch.bfloat16: (4e-2, 2e-2)}
EPS = 1e-6

FMA, DOT = FmaTile(4, 1, 3, 4), DotTile(16, 32, 4, 2)
MAX_FMA_TOKENS = 4


def small(num_tokens: int) -> Tile:
    """A tile so small that small matrices take several, in every direction."""
    return FMA if num_tokens <= MAX_FMA_TOKENS else DOT


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    atol, rtol = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


def matrices(
    num_tokens: int, num_rows: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight and bias, scaled so that products are of the order of 1."""
    torch.manual_seed(0)
    x = torch.randn(num_tokens, width, device=device).to(dtype)
    weight = (torch.randn(num_rows, width, device=device) * width**-0.5).to(dtype)
    return x, weight, torch.randn(num_rows, device=device).to(dtype)


def deferred_norm(num_tokens: int, num_partials: int, device: torch.device) -> DeferredNorm:
    return DeferredNorm(torch.rand(num_tokens, num_partials, device=device) * 50, EPS)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 5, 16, 17, 33, 100])
@pytest.mark.parametrize(("num_rows", "width"), [(8, 256), (17, 300), (1, 8)], ids=str)
def test_product(num_rows: int, width: int, num_tokens: int, dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias = matrices(num_tokens, num_rows, width, dtype, device)
    assert_close(kernels.gemv(x, weight, bias, tile=small(num_tokens)), reference_decode.gemv(x, weight, bias))


@pytest.mark.parametrize("depth", [1, 2, 9])
@pytest.mark.parametrize("width", [255, 256, 257, 1024])
def test_tiles_in_flight(width: int, depth: int, device: torch.device) -> None:
    """As many tiles as chunks, fewer, more; a last chunk that is full, begun, or one short."""
    x, weight, _ = matrices(2, 5, width, torch.float16, device)
    assert_close(kernels.gemv(x, weight, tile=FmaTile(4, 1, depth, 4)), reference_decode.gemv(x, weight))


@pytest.mark.parametrize("num_rows", [8, 13], ids=["even", "odd"])
@pytest.mark.parametrize(("rows", "tile_rows", "num_warps"), [(4, 1, 1), (8, 4, 1), (8, 2, 1), (2, 2, 2), (1, 1, 8)])
def test_rows_a_program_and_a_tile(
    rows: int, tile_rows: int, num_warps: int, num_rows: int, device: torch.device
) -> None:
    x, weight, bias = matrices(2, num_rows, 700, torch.float32, device)
    tile = FmaTile(rows, num_warps, 3, tile_rows)
    assert_close(kernels.gemv(x, weight, bias, tile=tile), reference_decode.gemv(x, weight, bias))
    values, candidates = kernels.gemv_argmax(x, weight, bias, tile=tile)
    products = reference_decode.gemv(x, weight, bias)
    assert candidates.gather(1, values.argmax(1, keepdim=True)).tolist() == products.argmax(1, keepdim=True).tolist()


@pytest.mark.parametrize("layout", ["split", "interleaved"])
@pytest.mark.parametrize("num_rows", [4, 5], ids=["even", "odd"])
def test_tiles_of_gate_rows_and_of_up_rows(
    num_rows: int, layout: Literal["split", "interleaved"], device: torch.device
) -> None:
    x, weight, bias = matrices(2, 2 * num_rows, 300, torch.float32, device)
    actual = kernels.gemv_gated(x, weight, "silu", bias, layout=layout, tile=FmaTile(4, 1, 3, 2))
    assert_close(actual, reference_decode.gemv_gated(x, weight, "silu", bias, layout=layout))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("splits", [2, 3, 4, 9])
def test_rows_that_several_programs_share(splits: int, dtype: torch.dtype, device: torch.device) -> None:
    """Pieces of equal length, a shorter last one, and none left for the last."""
    x, weight, bias = matrices(33, 20, 250, dtype, device)
    tile = DotTile(16, 32, 4, 2, splits=splits)
    assert_close(kernels.gemv(x, weight, bias, tile=tile), reference_decode.gemv(x, weight, bias))
    assert_close(kernels.gemv(x, weight, tile=tile), reference_decode.gemv(x, weight))


def test_what_is_fused_needs_whole_rows(device: torch.device) -> None:
    """A tile for shared rows is taken without the sharing."""
    x, weight, _ = matrices(6, 20, 250, torch.float32, device)
    tile, norm = DotTile(16, 32, 4, 2, splits=3), deferred_norm(6, 3, device)
    assert_close(kernels.gemv(x, weight, norm=norm, tile=tile), reference_decode.gemv(x, weight, norm=norm))
    assert_close(kernels.gemv_gated(x, weight, "silu", tile=tile), reference_decode.gemv_gated(x, weight, "silu"))


@pytest.mark.parametrize("num_tokens", [2, 6], ids=["multiply-add", "dot"])
def test_rows_that_lie_apart(num_tokens: int, device: torch.device) -> None:
    x, weight, _ = matrices(num_tokens, 20, 96, torch.float32, device)
    x[:, 64:], weight[:, 64:] = torch.nan, torch.nan
    x, weight = x[:, :64], weight[:, :64]
    assert_close(kernels.gemv(x, weight, tile=small(num_tokens)), reference_decode.gemv(x, weight))


@pytest.mark.parametrize("num_tokens", [2, 6], ids=["multiply-add", "dot"])
@pytest.mark.parametrize("num_partials", [1, 5, 8, 300])
def test_deferred_norm(num_partials: int, num_tokens: int, device: torch.device) -> None:
    x, weight, bias = matrices(num_tokens, 9, 64, torch.bfloat16, device)
    norm = deferred_norm(num_tokens, num_partials, device)
    actual = kernels.gemv(x, weight, bias, norm=norm, out_dtype=torch.float32, tile=small(num_tokens))
    assert actual.dtype == torch.float32
    assert_close(actual, reference_decode.gemv(x, weight, bias, norm=norm, out_dtype=torch.float32))


def test_eps_of_the_deferred_norm(device: torch.device) -> None:
    x, weight, _ = matrices(1, 4, 16, torch.float32, device)
    norm = DeferredNorm(torch.full((1, 2), 1e-4, device=device), 0.1)
    assert_close(kernels.gemv(x, weight, norm=norm), reference_decode.gemv(x, weight, norm=norm))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 2, 5, 16])
@pytest.mark.parametrize("with_norm", [False, True], ids=["plain", "normed"])
def test_residual(with_norm: bool, num_tokens: int, dtype: torch.dtype, device: torch.device) -> None:
    num_rows, width = 18, 72
    x, weight, bias = matrices(num_tokens, num_rows, width, dtype, device)
    norm = deferred_norm(num_tokens, 3, device) if with_norm else None
    stream = torch.randn(num_tokens, num_rows + 3, device=device)
    residual, beyond = stream[:, :num_rows], stream[:, num_rows:].clone()
    gamma = torch.randn(num_rows, device=device)
    expected_residual = residual.clone()
    expected, expected_sum = reference_decode.gemv_residual(x, weight, expected_residual, gamma, bias, norm=norm)
    hidden, partials = kernels.gemv_residual(x, weight, residual, gamma, bias, norm=norm, tile=small(num_tokens))
    assert_close(residual, expected_residual)
    assert_close(hidden, expected)
    torch.testing.assert_close(partials.sum(1, keepdim=True), expected_sum)
    torch.testing.assert_close(stream[:, num_rows:], beyond, atol=0, rtol=0)


def test_two_products_are_one_norm(device: torch.device) -> None:
    """What `gemv_residual` begins and `gemv` finishes is the product with RMSNorm(residual)."""
    num_tokens = 3
    x, weight, _ = matrices(num_tokens, 24, 40, torch.float32, device)
    residual, gamma = torch.randn(num_tokens, 24, device=device), torch.randn(24, device=device)
    following = torch.randn(6, 24, device=device)
    expected = reference.rms_norm(residual + x @ weight.T, gamma, EPS) @ following.T
    hidden, partials = kernels.gemv_residual(x, weight, residual, gamma, tile=small(num_tokens))
    assert_close(kernels.gemv(hidden, following, norm=DeferredNorm(partials, EPS), tile=small(num_tokens)), expected)


@pytest.mark.parametrize(
    ("num_tokens", "activation"),
    [(num_tokens, "silu") for num_tokens in (1, 2, 5, 16, 17, 33, 100)]
    + [(num_tokens, name) for num_tokens in (2, 5) for name in ("gelu", "gelu_tanh")],
)
@pytest.mark.parametrize("layout", ["split", "interleaved"])
def test_gated(layout: Literal["split", "interleaved"], num_tokens: int, activation: str, device: torch.device) -> None:
    x, weight, bias = matrices(num_tokens, 2 * 9, 300, torch.float32, device)
    norm = deferred_norm(num_tokens, 3, device) if num_tokens <= 16 else None
    actual = kernels.gemv_gated(x, weight, activation, bias, layout=layout, norm=norm, tile=small(num_tokens))
    assert_close(actual, reference_decode.gemv_gated(x, weight, activation, bias, layout=layout, norm=norm))


@pytest.mark.parametrize("activation", kernels.ACTIVATIONS)
def test_activations_far_from_zero(activation: str, device: torch.device) -> None:
    gates = torch.tensor([-200.0, -30.0, -3.0, -0.5, 0.0, 0.5, 3.0, 30.0, 200.0], device=device)
    weight = torch.cat([gates, torch.full_like(gates, 1.0)])[:, None].contiguous()
    x = torch.ones(1, 1, device=device)
    assert_close(kernels.gemv_gated(x, weight, activation), reference_decode.gemv_gated(x, weight, activation))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_tokens", [2, 6], ids=["multiply-add", "dot"])
def test_gated_in_half_precision(num_tokens: int, dtype: torch.dtype, device: torch.device) -> None:
    x, weight, _ = matrices(num_tokens, 2 * 18, 40, dtype, device)
    actual = kernels.gemv_gated(x, weight, "silu", tile=small(num_tokens))
    assert_close(actual, reference_decode.gemv_gated(x, weight, "silu"))


@pytest.mark.parametrize("num_tokens", [1, 2, 5, 16])
def test_argmax(num_tokens: int, device: torch.device) -> None:
    x, weight, bias = matrices(num_tokens, 39, 40, torch.float32, device)
    bias -= 10  # what a program computes beyond the last row has no bias, and would be the largest
    norm = deferred_norm(num_tokens, 3, device)
    values, rows = kernels.gemv_argmax(x, weight, bias, norm=norm, tile=small(num_tokens))
    products = reference_decode.gemv(x, weight, bias, norm=norm)
    num_rows = small(num_tokens).rows
    parts = products.split(num_rows, dim=1)
    assert values.shape == rows.shape == (num_tokens, len(parts))
    assert_close(values, torch.stack([part.amax(1) for part in parts], dim=1))
    assert rows.tolist() == torch.stack([i * num_rows + p.argmax(1) for i, p in enumerate(parts)], dim=1).tolist()


@pytest.mark.parametrize("num_tokens", [1, 6], ids=["multiply-add", "dot"])
def test_argmax_takes_the_lowest_of_equals_and_tells_of_nan(num_tokens: int, device: torch.device) -> None:
    weight = -torch.ones(18, 4, device=device)
    weight[[2, 3]] = 1.0
    x = torch.ones(num_tokens, 4, device=device)
    values, rows = kernels.gemv_argmax(x, weight, tile=small(num_tokens))
    assert (rows[:, 0].tolist(), values[:, 0].tolist()) == ([2] * num_tokens, [4.0] * num_tokens)
    assert values[:, -1].tolist() == [-4.0] * num_tokens  # rows beyond the last do not take part as zeros
    x[-1, 0] = torch.nan
    values, _ = kernels.gemv_argmax(x, weight, tile=small(num_tokens))
    assert values[-1].isinf().all()
    assert values[:-1].isfinite().all()


def test_the_tables_own_tiles(device: torch.device) -> None:
    x, weight, _ = matrices(5, 70, 520, torch.float32, device)
    for num_tokens in (1, 5):
        part = x[:num_tokens]
        assert_close(kernels.gemv(part, weight), reference_decode.gemv(part, weight))
        assert_close(kernels.gemv_gated(part, weight, "silu"), reference_decode.gemv_gated(part, weight, "silu"))
        values, _ = kernels.gemv_argmax(part, weight)
        assert_close(values.amax(1, keepdim=True), reference_decode.gemv_argmax(part, weight)[0])


def test_overlap_may_be_asked_for_anywhere(device: torch.device) -> None:
    x, weight, _ = matrices(2, 9, 64, torch.float32, device)
    assert_close(kernels.gemv(x, weight, pdl=True), reference_decode.gemv(x, weight))


ONES = torch.ones(2, 8)


@pytest.mark.parametrize(
    ("x", "weight", "more", "message"),
    [
        (ONES, torch.ones(4, 9), {}, "the same width"),
        (ONES.half(), torch.ones(4, 8), {}, "one type"),
        (torch.ones(129, 8), torch.ones(4, 8), {}, "129 tokens; takes 1 to 128"),
        (
            torch.ones(17, 8),
            torch.ones(4, 8),
            {"norm": DeferredNorm(torch.ones(17, 3), EPS)},
            "17 tokens; takes 1 to 16",
        ),
        (torch.ones(17, 8), torch.ones(4, 8), {}, "no tile for 17 tokens"),
        (torch.ones(0, 8), torch.ones(4, 8), {}, "0 tokens"),
        (ONES, torch.ones(8, 4).t(), {}, "rows must be contiguous"),
        (ONES, torch.ones(4, 8), {"bias": torch.ones(5)}, r"it must be \(4,\)"),
        (ONES, torch.ones(4, 8), {"norm": DeferredNorm(torch.ones(1, 3), EPS)}, "with 2 rows"),
    ],
)
def test_refusals(x: torch.Tensor, weight: torch.Tensor, more: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.gemv(x, weight, **more)


def test_refusals_of_the_fused_ones() -> None:
    weight, gamma = torch.ones(4, 8), torch.ones(4)
    with pytest.raises(ValueError, match="must be float32"):
        kernels.gemv_residual(ONES, weight, torch.ones(2, 4).half(), gamma)
    with pytest.raises(ValueError, match=r"must be float32 \(2, 4\)"):
        kernels.gemv_residual(ONES, weight, torch.ones(2, 5), gamma)
    with pytest.raises(ValueError, match=r"gamma is \(5,\)"):
        kernels.gemv_residual(ONES, weight, torch.ones(2, 4), torch.ones(5))
    with pytest.raises(ValueError, match="17 tokens; takes 1 to 16"):
        kernels.gemv_argmax(torch.ones(17, 8), weight)
    with pytest.raises(ValueError, match="even number"):
        kernels.gemv_gated(ONES, torch.ones(3, 8), "silu")
    with pytest.raises(ValueError, match="activation 'relu'"):
        kernels.gemv_gated(ONES, weight, "relu")
