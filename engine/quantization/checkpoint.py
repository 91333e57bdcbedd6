"""CheckpointTensor: one tensor as it lies in a model's file, read a piece at a time.

Between the file readers, which know bytes, and QuantMethod, which decides how a matrix is kept. A piece is copied out
of the memory map into a small staging buffer (on its way to a GPU that is where pinned memory comes in), so expanding
a model never holds a second copy of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from engine.quantization.gguf_blocks import dequantize
from modelfiles.gguf import BLOCK_LAYOUT, GGMLType

PIECE_ELEMENTS = 1 << 20
"""Elements expanded at once: 4 MB of float32 stay in a CPU's cache while their blocks are taken apart."""


@dataclass(frozen=True)
class CheckpointTensor:
    """A tensor of a checkpoint; safetensors' F32, F16 and BF16 bear the names of GGUF's."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    data: memoryview
    row_order: tuple[int, ...] | None = None
    """Row i of the tensor is row row_order[i] of the file; None is the file's own order."""

    @property
    def num_rows(self) -> int:
        """A vector is a matrix of one row."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def num_columns(self) -> int:
        return math.prod(self.shape) // self.num_rows

    def raw_rows(self, start: int, stop: int) -> torch.Tensor:
        """uint8 [stop - start, bytes_per_row], a copy."""
        elements, num_bytes = BLOCK_LAYOUT[self.type]
        rows = np.frombuffer(self.data, dtype=np.uint8).reshape(-1, self.num_columns // elements * num_bytes)
        if self.row_order is not None:
            return torch.from_numpy(rows[list(self.row_order[start:stop])])
        return torch.from_numpy(rows[start:stop].copy())

    def pieces(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        """(start, stop, float32 [stop - start, num_columns]) for consecutive rows, a bounded number at a time."""
        rows_a_piece = max(1, PIECE_ELEMENTS // self.num_columns)
        num_bytes = BLOCK_LAYOUT[self.type][1]
        for start in range(0, self.num_rows, rows_a_piece):
            stop = min(start + rows_a_piece, self.num_rows)
            blocks = self.raw_rows(start, stop).view(-1, num_bytes)
            yield start, stop, dequantize(self.type, blocks).view(stop - start, self.num_columns)

    def expand_into(self, out: torch.Tensor) -> None:
        """Writes the values into `out` [num_rows, num_columns], converting to its type and device."""
        for start, stop, values in self.pieces():
            out[start:stop].copy_(values)
