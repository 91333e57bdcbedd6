"""The begin of a step against its twin, and against the layers of the plain decoder."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from engine.kernels import reference, reference_step
from engine.kernels.launch import INTERPRETED
from engine.kernels.step_begin import step_begin
from engine.models.layers import Rotary
from engine.rope import Rope

# (atol, rtol): a unit in the last place may differ after each rounding.
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 2e-3), torch.bfloat16: (2e-2, 2e-2)}
VOCAB_SIZE, MAX_TOKENS, EPS = 50, 12, 1e-6


def rotary(dim: int, device: torch.device, theta: float = 10_000.0, attention_factor: float = 1.0) -> Rotary:
    rope = Rope(rotary_dim=dim, theta=theta)
    result = Rotary(rope, 1 << 20, device)
    result.cos_factor, result.sin_factor = result.cos_factor * attention_factor, result.sin_factor * attention_factor
    return result


def assert_rounded_alike(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Equal; but Triton's interpreter cuts what it makes a bfloat16 instead of rounding it."""
    rtol = 2**-7 if INTERPRETED and dtype == torch.bfloat16 else 0
    torch.testing.assert_close(actual, expected, atol=0, rtol=rtol)


class Begin:
    """Arguments of a step's begin."""

    def __init__(
        self,
        positions: list[int],
        device: torch.device,
        *,
        hidden_size: int = 24,
        dtype: torch.dtype = torch.float32,
        gamma_dtype: torch.dtype | None = None,
        residual_dtype: torch.dtype = torch.float32,
        rotary_dims: tuple[int, ...] = (8,),
        padding: tuple[int, ...] = (),
    ) -> None:
        torch.manual_seed(0)
        num_tokens = len(positions)
        rows = torch.randperm(num_tokens + 2)[:num_tokens].int()
        rows[list(padding)] = -1
        self.rows = rows.to(device)
        self.positions = torch.tensor(positions, dtype=torch.int32, device=device)
        self.tokens = torch.randint(0, VOCAB_SIZE, (num_tokens + 2, MAX_TOKENS), dtype=torch.int32, device=device)
        self.embedding = torch.randn(VOCAB_SIZE, hidden_size, device=device).to(dtype)
        self.gamma = torch.randn(hidden_size, device=device).to(gamma_dtype or dtype)
        self.eps = EPS
        self.rotaries = [rotary(dim, device, theta=10.0**4 * 10**n) for n, dim in enumerate(rotary_dims)]
        self.residual = torch.full((num_tokens, hidden_size), torch.nan, dtype=residual_dtype, device=device)

    def assert_like_twin(self, embedding_scale: float = 1.0) -> torch.Tensor:
        residual = self.residual.clone()
        expected = reference_step.step_begin(**vars(self) | {"residual": residual}, embedding_scale=embedding_scale)
        hidden, angles = step_begin(**vars(self), embedding_scale=embedding_scale)
        assert_rounded_alike(self.residual, residual, self.embedding.dtype)
        assert hidden.dtype == self.embedding.dtype
        atol, rtol = TOLERANCE[hidden.dtype]
        torch.testing.assert_close(hidden, expected[0], atol=atol, rtol=rtol)
        for pair, wanted in zip(angles, expected[1], strict=True):
            torch.testing.assert_close(pair, wanted, atol=1e-6, rtol=1e-6)
        return hidden


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("hidden_size", [1, 24, 33])
@pytest.mark.parametrize("residual", ["float32", "same"])
def test_it_is_its_twin(residual: str, hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
    residual_dtype = torch.float32 if residual == "float32" else dtype
    Begin([0, 5, 11], device, hidden_size=hidden_size, dtype=dtype, residual_dtype=residual_dtype).assert_like_twin()


@pytest.mark.parametrize("rotary_dims", [(2,), (6,), (128,), (8, 8), (80, 64)], ids=str)
def test_rotaries(rotary_dims: tuple[int, ...], device: torch.device) -> None:
    Begin([0, 1, 11], device, rotary_dims=rotary_dims).assert_like_twin()


@pytest.mark.parametrize("position", [1_000, 100_000, 131_071, 1_000_000])
@pytest.mark.parametrize("theta", [10_000.0, 1_000_000.0])
def test_angles_are_those_of_the_plain_decoder(position: int, theta: float, device: torch.device) -> None:
    """Far positions turn the first pairs many thousand times: the reduction must be exact."""
    begin = Begin([position], device)
    begin.tokens = torch.zeros(3, position + 1, dtype=torch.int32, device=device)
    begin.rotaries = [rotary(128, device, theta=theta, attention_factor=1.25)]
    _, ((cos, sin),) = step_begin(**vars(begin))
    assert cos.shape == (1, 1, 128)
    wanted_cos, wanted_sin = begin.rotaries[0].angles(begin.positions.long())
    torch.testing.assert_close((cos, sin), (wanted_cos, wanted_sin), atol=2e-7, rtol=2e-7)
    assert cos[0, 0, 0].item() == pytest.approx(1.25 * math.cos(position), abs=3e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gemma_scales_and_rounds(dtype: torch.dtype, device: torch.device) -> None:
    """As the plain decoder: factor and product are of the embedding's type; the norm's weight is float32."""
    begin = Begin([3, 4], device, dtype=dtype, gamma_dtype=torch.float32)
    scale = 3584**0.5
    hidden = begin.assert_like_twin(embedding_scale=scale)
    ids = begin.tokens[begin.rows.long(), begin.positions.long()].long()
    embedded = begin.embedding[ids] * torch.tensor(scale, dtype=dtype)
    assert_rounded_alike(begin.residual, embedded.float(), dtype)
    expected = reference.rms_norm(embedded, begin.gamma, EPS)
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5)


def test_it_rounds_before_the_weight_as_llama_does(device: torch.device) -> None:
    begin = Begin([n % MAX_TOKENS for n in range(20)], device, hidden_size=64, dtype=torch.float16)
    hidden, _ = step_begin(**vars(begin))
    differ = hidden != reference.rms_norm(begin.residual.half(), begin.gamma, EPS)
    assert differ.float().mean() < 0.02


def test_padding_is_zeros(device: torch.device) -> None:
    begin = Begin([3, 6, 1], device, padding=(0, 2))
    begin.embedding[0] = torch.nan
    begin.tokens[:] = torch.randint_like(begin.tokens, 1, VOCAB_SIZE)
    hidden, ((cos, sin),) = step_begin(**vars(begin))
    for tensor in (hidden, begin.residual):
        assert (tensor != 0).any(dim=1).tolist() == [False, True, False]
    assert torch.stack([cos, sin]).isfinite().all()


def test_rows_that_lie_apart_and_wide_integers(device: torch.device) -> None:
    begin = Begin([3, 4], device)
    begin.embedding = torch.cat([begin.embedding, begin.embedding * torch.nan], dim=1)[:, :24]
    begin.tokens = torch.cat([begin.tokens, begin.tokens - 10**6], dim=1)[:, :MAX_TOKENS]
    begin.rows, begin.positions = begin.rows.long(), begin.positions.long()
    begin.assert_like_twin()


def test_refusals(device: torch.device) -> None:
    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            step_begin(**vars(Begin([3, 4], device)) | changes)

    refused(r"rows is \(3,\); it must be \(2,\)", rows=torch.ones(3))
    refused("gamma", gamma=torch.ones(25))
    refused("residual is", residual=torch.ones(24, 2).t())
    refused("it must be int32", tokens=torch.ones(4, 12))
    refused("of 24 elements", embedding=torch.ones(50, 25))
    refused("its rows must be", embedding=torch.ones(24, 50).t())
    refused("one or two", rotaries=[])
    refused("contiguous float32 and alike", rotaries=[rotary(8, device), _mixed(device)])


def _mixed(device: torch.device) -> Rotary:
    result = rotary(8, device)
    result.sin_factor = result.sin_factor[:4]
    return result
