"""Plain-torch twin of `kv_quantization`: vectors to 8 bits with a scale each, and back.

Called by the twins that touch the KV cache, which run on the CPU.
"""

from __future__ import annotations

import torch

from engine.kernels.kv_types import LARGEST, LEAST

Tensor = torch.Tensor


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[..., head_dim] -> the same in a type of 8 bits, and scales, float32 [...].

    The scale of a vector that holds NaN or an infinity is not finite.
    """
    x = x.float()
    largest = x.abs().nan_to_num_(nan=torch.inf, posinf=torch.inf).amax(-1)
    is_there = largest > LEAST
    scales = torch.where(is_there, largest * (1.0 / LARGEST[dtype]), 0.0)
    inverse = torch.where(is_there, LARGEST[dtype] / largest, 0.0)
    x = x * inverse[..., None]
    if dtype == torch.int8:
        x = x.add_(0.5).floor_()
    return x.to(dtype), scales


def dequantize(stored: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """What `quantize` stored: [..., head_dim] and [...] -> [..., head_dim]."""
    return stored.float().mul_(scales[..., None]).to(dtype)
