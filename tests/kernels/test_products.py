"""Products of any number of tokens: the same result, whichever kernel the table names."""

from __future__ import annotations

import pytest
import torch

from engine.kernels import products, reference_decode

# (atol, rtol). Sums are in float32, in another order; beside the library's gated unit, which rounds gate and up first.
TOLERANCE = {torch.float32: (1e-4, 1e-4), torch.float16: (4e-3, 2e-3), torch.bfloat16: (4e-2, 2e-2)}


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype
    atol, rtol = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


def random(*shape: int, dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, device=device) * scale).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 5, 16, 17, 33, 100, 128, 129, 300])
def test_linear(num_tokens: int, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    x = random(num_tokens, 96, dtype=dtype, device=device)
    weight = random(40, 96, dtype=dtype, device=device, scale=0.1)
    bias = random(40, dtype=dtype, device=device)
    assert_close(products.linear(x, weight, bias, pdl=True), reference_decode.gemv(x, weight, bias))


@pytest.mark.parametrize("num_tokens", [1, 20, 50])
@pytest.mark.parametrize(("num_rows", "width"), [(20, 300), (300, 16)], ids=["long", "tall"])
def test_linear_of_other_shapes(num_rows: int, width: int, num_tokens: int, device: torch.device) -> None:
    torch.manual_seed(0)
    x = random(num_tokens, width, dtype=torch.bfloat16, device=device)
    weight = random(num_rows, width, dtype=torch.bfloat16, device=device, scale=width**-0.5)
    assert_close(products.linear(x, weight), reference_decode.gemv(x, weight))


@pytest.mark.parametrize(
    ("num_tokens", "dtype", "activation"),
    [(num_tokens, dtype, "silu") for num_tokens in (1, 2, 5, 16, 17, 33, 100, 129) for dtype in TOLERANCE]
    + [(num_tokens, torch.float16, name) for num_tokens in (33, 129) for name in ("gelu", "gelu_tanh")],
    ids=str,
)
def test_linear_gated(num_tokens: int, dtype: torch.dtype, activation: str, device: torch.device) -> None:
    torch.manual_seed(0)
    x = random(num_tokens, 64, dtype=dtype, device=device)
    gate_up = random(2 * 20, 64, dtype=dtype, device=device, scale=0.1)
    bias = random(2 * 20, dtype=dtype, device=device)
    actual = products.linear_gated(x, gate_up, activation, bias, pdl=True)
    assert_close(actual, reference_decode.gemv_gated(x, gate_up, activation, bias))
