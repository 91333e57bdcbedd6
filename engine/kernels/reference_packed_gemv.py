"""Products of packed matrices with few tokens in plain torch: the twins of `packed_gemv`'s launchers.

x is rounded as the kernel rounds it; arithmetic is in float32.
"""

from __future__ import annotations

import torch

from engine.kernels import reference
from engine.kernels.gemv import DeferredNorm
from engine.kernels.reference_packed import packed_rows
from engine.quantization.packed_format import Code, PackedWeight

Tensor = torch.Tensor


def packed_gemv(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    *,
    norm: DeferredNorm | None = None,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    pdl: bool = False,
) -> Tensor:
    """As `packed_gemv.packed_gemv`."""
    y = _few_products(x, weight, bias, norm)
    return y.to(out_dtype or x.dtype) if out is None else out.copy_(y)


def packed_gemv_residual(
    x: Tensor,
    weight: PackedWeight,
    residual: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    norm: DeferredNorm | None = None,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `packed_gemv.packed_gemv_residual`, with one partial sum."""
    residual += _few_products(x, weight, bias, norm)
    return (residual * gamma.float()).to(x.dtype), residual.square().sum(1, keepdim=True)


def packed_gemv_gated(
    x: Tensor,
    gate_up: PackedWeight,
    activation: str,
    bias: Tensor | None = None,
    *,
    norm: DeferredNorm | None = None,
    pdl: bool = False,
) -> Tensor:
    """As `packed_gemv.packed_gemv_gated`."""
    return reference.gated(_few_products(x, gate_up, bias, norm), activation).to(x.dtype)


def packed_gemv_argmax(
    x: Tensor,
    weight: PackedWeight,
    num_rows: int,
    bias: Tensor | None = None,
    *,
    norm: DeferredNorm | None = None,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `packed_gemv.packed_gemv_argmax`, by one program."""
    values, rows = _few_products(x, weight, bias, norm)[:, :num_rows].max(1, keepdim=True)
    return values, rows.int()


def _few_products(x: Tensor, weight: PackedWeight, bias: Tensor | None, norm: DeferredNorm | None) -> Tensor:
    """float32 [num_tokens, num_rows]"""
    x = weight.ordered(x)
    rounded = x.float() if weight.format.code == Code.FP8 else rounded_activations(x, weight)
    y = rounded @ packed_rows(weight, torch.float32).T
    if norm is not None:
        y = y * (norm.sum_squares.sum(1, keepdim=True) / weight.num_columns + norm.eps).rsqrt()
    return y if bias is None else y + bias.float()


def rounded_activations(x: Tensor, weight: PackedWeight) -> Tensor:
    """x as `packed_gemv` multiplies codes that are integers with it: float32, like `x`.

    Of 32 columns at a time, eight consecutive ones of each quarter of a unit, the largest becomes 127.
    """
    parts = x.float().view(len(x), -1, 4, weight.unit // 8, 8)
    largest = parts.abs().amax((2, 4), keepdim=True).clamp_min(1e-30)
    return ((parts * (127.0 * (1.0 / largest))).round() * (largest * (1.0 / 127.0))).view(x.shape)
