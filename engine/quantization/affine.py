"""Affine: rows of a quantised matrix as codes, scales and zero points, whatever file they came from.

The common form between checkpoints and what is made of them: `values` expands, and packed products take the codes.
    value[r, c] = (code[r, c] - zero[r, g]) * scale[r, g],  g = group of column c
in float32, in this order, as the tools' own implementations have it. Where scales came with at most 16 bits, every
product of a code and a scale is exact in float32, so scale * code - minimum gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class Affine:
    """Some rows of a matrix, on one device."""

    codes: Tensor
    """uint8, int8 or float8_e4m3fn [num_rows, num_columns], columns in the checkpoint's order."""
    scales: Tensor
    """float32 [num_rows, num_groups]"""
    zeros: Tensor | None
    """float32 [num_rows, num_groups]; None: all are 0."""
    group_size: int
    """Columns of a group. The last group may have fewer."""
    group_of_column: Tensor | None = None
    """int64 [num_columns], for columns that were quantised in another order; None: column // group_size."""

    @property
    def minimums(self) -> Tensor:
        """float32 [num_rows, num_groups]: what to take from scale * code."""
        return torch.zeros_like(self.scales) if self.zeros is None else self.zeros * self.scales

    @cached_property
    def column_order(self) -> Tensor | None:
        """int64 [num_columns]: columns by group, each group's in their own order; None where they are so already.

        A product takes x[..., column_order] beside codes[:, column_order].
        """
        return None if self.group_of_column is None else order_of(self.group_of_column)

    def by_group(self) -> Affine:
        """The same with columns in `column_order`, so that groups lie side by side."""
        return self if self.column_order is None else self.rows(0, len(self.codes), self.column_order)

    def rows(self, start: int, stop: int, order: Tensor | None) -> Affine:
        """Rows [start, stop) with columns in an order in which groups lie side by side; None: they do so already."""
        codes = self.codes[start:stop]
        return Affine(
            codes=codes if order is None else codes.index_select(1, order),
            scales=self.scales[start:stop],
            zeros=None if self.zeros is None else self.zeros[start:stop],
            group_size=self.group_size,
        )

    def values(self) -> Tensor:
        """float32 [num_rows, num_columns], columns in the order of the codes."""
        num_rows, num_columns = self.codes.shape
        if self.group_of_column is None and num_columns == self.scales.shape[1] * self.group_size:
            codes = self.codes.float().reshape(num_rows, -1, self.group_size)
            if self.zeros is not None:
                codes.sub_(self.zeros[:, :, None])
            return codes.mul_(self.scales[:, :, None]).view(num_rows, num_columns)
        groups = self.group_of_column
        if groups is None:
            groups = torch.arange(num_columns, device=self.codes.device) // self.group_size
        codes = self.codes.float()
        if self.zeros is not None:
            codes.sub_(self.zeros[:, groups])
        return codes.mul_(self.scales[:, groups])


def order_of(group_of_column: Tensor) -> Tensor:
    """int64 [num_columns]: columns by group, each group's in their own order."""
    return torch.argsort(group_of_column, stable=True)
