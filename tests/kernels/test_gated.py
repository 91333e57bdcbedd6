"""The gated unit against its twin."""

from __future__ import annotations

import pytest
import torch

from engine.kernels import reference
from engine.kernels.gated import BLOCK, gated
from engine.kernels.gemv import ACTIVATIONS

# (atol, rtol): the twin rounds the activation before the product, in half precision.
TOLERANCE = {torch.float32: (5e-6, 1e-5), torch.float16: (2e-3, 4e-3), torch.bfloat16: (2e-2, 2e-2)}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("num_tokens", "width"), [(1, 1), (3, 33), (2, BLOCK - 1), (1, BLOCK), (2, BLOCK + 1), (1, 2 * BLOCK + 40), (7, 8)]
)
def test_it_is_its_twin(num_tokens: int, width: int, activation: str, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    gate_up = (torch.randn(num_tokens, 2 * width, device=device) * 2).to(dtype)
    actual = gated(gate_up, activation)
    assert actual.is_contiguous()
    atol, rtol = TOLERANCE[dtype]
    torch.testing.assert_close(actual, reference.gated(gate_up, activation), atol=atol, rtol=rtol)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_values_stay_finite(activation: str, device: torch.device) -> None:
    gate = torch.tensor([[-3e4, -200.0, 200.0, 3e4]], device=device)
    gate_up = torch.cat([gate, torch.ones_like(gate)], dim=1)
    torch.testing.assert_close(gated(gate_up, activation), reference.gated(gate_up, activation), atol=1e-6, rtol=1e-6)


def test_rows_that_lie_apart(device: torch.device) -> None:
    torch.manual_seed(0)
    wide = torch.randn(4, 90, device=device)
    wide[:, 80:] = torch.nan
    torch.testing.assert_close(gated(wide[:, :80], "silu"), reference.gated(wide[:, :80], "silu"))


def test_nothing_to_do(device: torch.device) -> None:
    assert gated(torch.empty(0, 8, device=device), "silu").shape == (0, 4)


@pytest.mark.parametrize(
    ("gate_up", "activation"),
    [(torch.ones(2, 7), "silu"), (torch.ones(8, 2).t(), "silu"), (torch.ones(2, 8), "relu")],
    ids=["odd", "apart", "unknown"],
)
def test_refusals(gate_up: torch.Tensor, activation: str) -> None:
    with pytest.raises(ValueError, match="the activation one of silu, gelu, gelu_tanh"):
        gated(gate_up, activation)
