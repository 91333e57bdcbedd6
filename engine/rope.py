"""Rope: rotary position embedding of a layer, as plain numbers, with the scalings that models use.

`inv_freq` gives the frequencies; the execution column makes tensors of them. A rotation of pair j at position p has the
angle p * inv_freq[j], and cos and sin are multiplied by `attention_factor`.

Sources: RoFormer (arXiv 2104.09864); YaRN (arXiv 2309.00071) for "yarn" and the NTK-aware "dynamic"; LongRoPE
(arXiv 2402.13753); the Llama 3.1 release for "llama3".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

RopeScaling = Literal["default", "linear", "dynamic", "yarn", "llama3", "longrope", "factors"]
SCALINGS: tuple[RopeScaling, ...] = get_args(RopeScaling)


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of the first `rotary_dim` elements of a head.

    `scaling` selects which of the other fields count. "factors" divides each frequency by an entry of `short_factors`,
    whatever the length: GGUF files carry Llama 3's scaling in that form.
    """

    theta: float
    rotary_dim: int
    scaling: RopeScaling = "default"
    factor: float = 1.0
    original_max_positions: int = 0
    """Positions that the model was pre-trained on, before its context was stretched."""
    attention_factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """Whether yarn rounds the borders of its ramp to whole dimensions."""
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def inv_freq(self, max_context: int) -> tuple[float, ...]:
        """Radians a position, one a pair: `rotary_dim // 2` of them.

        Args:
            max_context: the longest sequence that will be served, in tokens. "dynamic" and "longrope" choose their
                frequencies by it, once: a cache shared between sequences cannot hold keys of two sets of frequencies.
        """
        match self.scaling:
            case "linear":
                return tuple(frequency / self.factor for frequency in self._plain(self.theta))
            case "dynamic":
                return self._plain(self._dynamic_theta(max_context))
            case "yarn":
                return self._yarn()
            case "llama3":
                return tuple(self._llama3(frequency) for frequency in self._plain(self.theta))
            case "longrope" if max_context > self.original_max_positions:
                return self._divided(self.long_factors)
            case "longrope" | "factors":
                return self._divided(self.short_factors)
            case _:
                return self._plain(self.theta)

    def _plain(self, theta: float) -> tuple[float, ...]:
        return tuple(theta ** (-2 * j / self.rotary_dim) for j in range(self.rotary_dim // 2))

    def _divided(self, factors: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(frequency / factor for frequency, factor in zip(self._plain(self.theta), factors, strict=True))

    def _dynamic_theta(self, max_context: int) -> float:
        if max_context <= self.original_max_positions or self.rotary_dim <= 2:
            return self.theta
        stretch = self.factor * max_context / self.original_max_positions - (self.factor - 1)
        return float(self.theta * stretch ** (self.rotary_dim / (self.rotary_dim - 2)))

    def _llama3(self, frequency: float) -> float:
        """Long wavelengths are divided by the factor, short ones kept, those between blended."""
        rotations = self.original_max_positions * frequency / (2 * math.pi)
        if rotations < self.low_freq_factor:
            return frequency / self.factor
        if rotations > self.high_freq_factor:
            return frequency
        smooth = (rotations - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return (1 - smooth) * frequency / self.factor + smooth * frequency

    def _yarn(self) -> tuple[float, ...]:
        """A ramp over the dimensions, from extrapolation (kept) to interpolation (divided by the factor)."""

        def dimension(rotations: float) -> float:
            """Pair index that turns `rotations` times over the original context."""
            span = self.original_max_positions / (rotations * 2 * math.pi)
            return self.rotary_dim * math.log(span) / (2 * math.log(self.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.rotary_dim - 1)
        if low == high:
            high += 0.001  # as the reference does, where both borders fall on one dimension
        frequencies = []
        for j, frequency in enumerate(self._plain(self.theta)):
            ramp = min(1.0, max(0.0, (j - low) / (high - low)))
            frequencies.append(frequency / self.factor * ramp + frequency * (1 - ramp))
        return tuple(frequencies)


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """YaRN's temperature on attention, applied to cos and sin."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def longrope_attention_factor(factor: float, original_max_positions: int) -> float:
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_max_positions))
