"""RMSNorm against its twin."""

from __future__ import annotations

import pytest
import torch

from engine.kernels import reference
from engine.kernels.rms_norm import MAX_WIDTH, add_rms_norm, rms_norm

# (atol, rtol): a unit in the last place may differ after each of two roundings.
TOLERANCE = {torch.float32: (1e-6, 1e-5), torch.float16: (2e-3, 2e-3), torch.bfloat16: (2e-2, 2e-2)}
EPS = 1e-6


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    atol, rtol = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 127), (2, 128), (5, 129), (2, 3, 40), (1, 3584)], ids=str)
def test_it_is_its_twin(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, device=device).to(dtype)
    weight = torch.randn(shape[-1], device=device).to(dtype)
    assert_close(rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("residual_dtype", [None, torch.float32], ids=["same-type", "float32-residual"])
def test_residual(residual_dtype: torch.dtype | None, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 72, device=device).to(dtype)
    residual = torch.randn(4, 72, device=device).to(residual_dtype or dtype)
    weight = torch.randn(72, device=device).to(dtype)
    expected, expected_residual = reference.add_rms_norm(x, residual.clone(), weight, EPS)
    normed, new_residual = add_rms_norm(x, residual, weight, EPS)
    assert new_residual is residual
    assert normed.dtype == dtype
    assert_close(new_residual, expected_residual)
    assert_close(normed, expected)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_offset_and_float32_weights(dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 40, device=device).to(dtype), torch.randn(40, device=device)
    assert_close(rms_norm(x, weight, EPS, 1.0), reference.rms_norm(x, weight, EPS, 1.0))
    assert_close(rms_norm(x, weight, EPS, 1.0), reference.rms_norm(x, weight + 1.0, EPS))


def test_it_rounds_before_the_weight_as_llama_does(device: torch.device) -> None:
    """One rounding instead of two would differ in the last place of about every fourth element."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 20, 64, device=device).to(torch.float16).unbind(0)
    weight = weight[0].contiguous()
    differ = rms_norm(x, weight, EPS) != reference.rms_norm(x, weight, EPS)
    assert differ.float().mean() < 0.02


def test_eps_counts(device: torch.device) -> None:
    x, weight = torch.full((1, 8), 1e-3, device=device), torch.ones(8, device=device)
    torch.testing.assert_close(rms_norm(x, weight, 0.1), reference.rms_norm(x, weight, 0.1))


def test_rows_that_lie_apart(device: torch.device) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 64, device=device)[:, :33]
    stream = torch.randn(4, 80, device=device)
    beyond = stream[:, 33:].clone()
    weight = torch.randn(33, device=device)
    expected, expected_residual = reference.add_rms_norm(x, stream[:, :33].clone(), weight, EPS)
    normed, residual = add_rms_norm(x, stream[:, :33], weight, EPS)
    assert_close(normed, expected)
    torch.testing.assert_close(residual, expected_residual)
    torch.testing.assert_close(stream[:, 33:], beyond, atol=0, rtol=0)


def test_a_row_beyond_the_reach_of_int32_is_addressed(device: torch.device) -> None:
    far = 1 << 30
    x = torch.empty(2 * far + 4, dtype=torch.float16, device=device).as_strided((3, 4), (far, 1))  # mapped, not touched
    x[:] = torch.tensor([[1.0], [2.0], [4.0]])
    normed, residual = add_rms_norm(torch.zeros_like(x), x, torch.ones(4, device=device), 3.0)
    torch.testing.assert_close(
        normed[:, 0].float(), torch.tensor([1 / 2, 2 / 7**0.5, 4 / 19**0.5], device=device), atol=1e-3, rtol=0
    )
    assert residual[:, 3].tolist() == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.ones(2, 8), torch.ones(9), r"weight must be \(8,\)"),
        (torch.ones(8, 2).t(), torch.ones(8), "must be contiguous"),
        (torch.ones(2, 4, 8)[:, :3], torch.ones(8), "not evenly spaced"),
        (torch.ones(1, MAX_WIDTH + 1), torch.ones(MAX_WIDTH + 1), "at most 65536"),
    ],
)
def test_refusals(x: torch.Tensor, weight: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rms_norm(x, weight, EPS)


def test_a_residual_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="must be alike"):
        add_rms_norm(torch.ones(2, 8), torch.ones(1, 8), torch.ones(8), EPS)
