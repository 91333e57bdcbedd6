"""What a decoder is made of: Linear, and the rotary angles of a step. No layer knows how its weights are stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.quantization.base import QuantMethod
from engine.rope import Rope

Tensor = torch.Tensor


@dataclass(frozen=True)
class Linear:
    """x -> x @ W.T + bias, where W is its segments' rows below each other."""

    segments: tuple[QuantMethod, ...]
    bias: Tensor | None = None
    """[num_rows]"""

    def __call__(self, x: Tensor) -> Tensor:
        """[num_tokens, num_columns] -> [num_tokens, num_rows]"""
        if len(self.segments) == 1:
            return self.segments[0].linear(x, self.bias)
        y = torch.cat([segment.linear(x, None) for segment in self.segments], dim=-1)
        return y if self.bias is None else y.add_(self.bias)

    @property
    def num_bytes(self) -> int:
        return sum(segment.num_bytes for segment in self.segments) + (0 if self.bias is None else self.bias.nbytes)


class Rotary:
    """cos and sin of the positions of a step, for one kind of layer.

    There is no table over all positions: the angles of a step are four small operations for the whole forward pass,
    and a table for a context of 128 thousand tokens takes 64 MB.
    """

    def __init__(self, rope: Rope, max_context: int, device: torch.device) -> None:
        inv_freq = torch.tensor(rope.inv_freq(max_context), dtype=torch.float32, device=device)
        self.inv_freq = torch.cat([inv_freq, inv_freq])  # [rotary_dim]
        # The sign of the rotation's first half lies in sin, so the kernel needs one multiply-add; see kernels.rotate.
        half = torch.full_like(inv_freq, rope.attention_factor)
        self.cos_factor = torch.cat([half, half])
        self.sin_factor = torch.cat([-half, half])

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [num_tokens] -> cos, signed sin: float32 [num_tokens, 1, rotary_dim] each."""
        angles = positions[:, None, None].float() * self.inv_freq
        return angles.cos() * self.cos_factor, angles.sin() * self.sin_factor
