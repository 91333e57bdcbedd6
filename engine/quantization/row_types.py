"""Weights in 8 bits with one scale a row: the largest magnitude of a row becomes the largest number of the type.

Called by `conversion.safetensors_job`, a piece of a matrix at a time.
Source: Micikevicius et al., "FP8 Formats for Deep Learning" (2022), for e4m3 and its range.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor

ROW_TYPES = {torch.float8_e4m3fn: ("FP8", 448.0), torch.int8: ("INT8", 127.0)}
"""What people call a type, and its largest number that is used; int8's -128 is not."""


class NotFiniteError(ValueError):
    """A row of weights has a NaN or an infinity."""

    def __init__(self, label: str, row: int) -> None:
        super().__init__(f"weights that are NaN or infinite cannot be quantised to {label}")
        self.row = row


def quantize_rows(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """
    Args:
        weight: [rows, columns] of a floating-point type.
        dtype: a key of ROW_TYPES.

    Returns:
        `dtype` [rows, columns] and float32 [rows, 1], whose product is the weight but for rounding. A row of zeros has
        the scale 1.

    Raises:
        NotFiniteError: a weight is NaN or infinite.
    """
    label, max_value = ROW_TYPES[dtype]
    largest = weight.abs().amax(dim=1, keepdim=True).float()
    if not bool(torch.isfinite(largest).all()):
        raise NotFiniteError(label, int((~largest.isfinite()).nonzero()[0, 0]))
    # Rows of numbers so small that the scale would be subnormal lose nothing that a bf16 product would keep.
    scales = torch.where(largest == 0, 1.0, (largest / max_value).clamp(min=torch.finfo(torch.float32).tiny))
    # Rounding of the scale can put the largest just past the range, where e4m3fn knows only NaN.
    scaled = (weight.float() / scales).clamp_(-max_value, max_value)
    return (scaled if dtype.is_floating_point else scaled.round_()).to(dtype), scales
