"""PackedWeight: a matrix whose weights stay quantised, as the kernels take it. Knows no triton."""

from __future__ import annotations

from dataclasses import dataclass

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class PackedWeight:
    """Planes and what they mean; the layout is described in `quantization.packed_format`."""

    words: Tensor
    extra: Tensor
    scales: Tensor
    supers: Tensor
    num_rows: int
    """A multiple of 16."""
    num_columns: int
    unit: int
    """Words of a unit: a unit has four times as many columns."""
    code: int
    """packed_format.Code, as the next two are Scale and the columns of a group."""
    zero: int
    scale: int
    group: int

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.words, self.extra, self.scales, self.supers

    @property
    def constants(self) -> dict[str, int]:
        """What kernels are compiled for."""
        return {
            "WIDTH": self.num_columns,
            "UNIT": self.unit,
            "CODE": self.code,
            "ZERO": self.zero,
            "SCALE": self.scale,
            "GROUP": self.group,
        }
