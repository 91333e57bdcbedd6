"""FP8 weights made of others while they load: one scale a row, the largest magnitude becomes the largest FP8 number.

Source: Micikevicius et al., "FP8 Formats for Deep Learning" (2022), for e4m3 and its range.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor

FP8_MAX = 448.0
"""Largest number of float8_e4m3fn."""


def quantize_rows_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """
    Args:
        weight: [rows, columns] of a floating-point type.

    Returns:
        float8_e4m3fn [rows, columns] and float32 [rows, 1], whose product is the weight but for rounding. A row of
        zeros has the scale 1.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    largest = weight.abs().amax(dim=1, keepdim=True).float()
    if not bool(torch.isfinite(largest).all()):
        raise ValueError("weights that are NaN or infinite cannot be quantised to FP8")
    # Rows of numbers so small that the scale would be subnormal lose nothing that a bf16 product would keep.
    scales = torch.where(largest == 0, 1.0, (largest / FP8_MAX).clamp(min=torch.finfo(torch.float32).tiny))
    # Rounding of the scale can put the largest just past the range, where e4m3fn knows only NaN.
    codes = (weight.float() / scales).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return codes, scales
