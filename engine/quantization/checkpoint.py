"""CheckpointTensor: one tensor as it lies in a model's file, read a piece at a time.

Between the file readers, which know bytes, and QuantMethod, which decides how a matrix is kept. For a CPU a piece is
copied out of the memory map and expanded (`expand_into`). For a GPU the bytes go there as they are and are expanded
there (`stage_into`), by the same functions of `gguf_blocks`. Either way a model is never held twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from engine.quantization.gguf_blocks import dequantize
from modelfiles.gguf import BLOCK_LAYOUT, GGMLType

Tensor = torch.Tensor

PIECE_ELEMENTS = 1 << 20
"""Elements expanded at once: 4 MB of float32 stay in a CPU's cache while their blocks are taken apart."""
STAGED_ELEMENTS = 1 << 22
"""As much on a GPU: its kernels are busy with that, and the intermediate values of a block format stay under 256 MB."""
PLAIN_DTYPES = {GGMLType.F32: torch.float32, GGMLType.F16: torch.float16, GGMLType.BF16: torch.bfloat16}


class Stager(Protocol):
    """What brings bytes to a device; execution.staging.Staging."""

    device: torch.device

    def copy(self, source: npt.NDArray[np.uint8], target: Tensor) -> None:
        """Queues a plain copy of bytes."""

    def expand(self, source: npt.NDArray[np.uint8], take: Callable[[Tensor], None]) -> None:
        """Queues a piece; `take` gets its bytes on the device."""

    def host_empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory of the host that the device can read by itself."""


@dataclass(frozen=True)
class Destination:
    """Where tensors shall lie."""

    device: torch.device
    dtype: torch.dtype
    """What products are computed in."""
    stager: Stager | None = None
    """What brings them there; None: the device is the CPU, and they are expanded in place."""
    is_offloaded: bool = False
    """Matrices stay in the host's memory, from where they are copied whenever they are used."""
    weight_dtype: torch.dtype | None = None
    """What unquantised matrices are quantised to on their way, a key of row_types.ROW_TYPES; None: they stay as they
    are."""

    def empty(self, *shape: int) -> Tensor:
        """A matrix without values."""
        if self.is_offloaded and self.stager is not None:
            return self.stager.host_empty(shape, self.dtype)
        return torch.empty(shape, dtype=self.dtype, device=self.device)


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

    def raw_rows(self, start: int, stop: int) -> Tensor:
        """uint8 [stop - start, bytes_per_row], a copy."""
        rows = self._file_rows()
        if self.row_order is not None:
            return torch.from_numpy(rows[list(self.row_order[start:stop])])
        return torch.from_numpy(rows[start:stop].copy())

    def raw_pieces(self, num_elements: int, multiple: int) -> Iterator[tuple[int, int, npt.NDArray[np.uint8]]]:
        """(start, stop, uint8 [bytes of these rows]) for consecutive rows.

        Args:
            num_elements: of a piece, about.
            multiple: pieces but the last have a multiple of so many rows.
        """
        rows = self._file_rows()
        step = max(1, num_elements // self.num_columns // multiple) * multiple
        for start in range(0, self.num_rows, step):
            stop = min(start + step, self.num_rows)
            piece = rows[start:stop] if self.row_order is None else rows[list(self.row_order[start:stop])]
            yield start, stop, piece.reshape(-1)

    def pieces(self) -> Iterator[tuple[int, int, Tensor]]:
        """(start, stop, float32 [stop - start, num_columns]) for consecutive rows, a bounded number at a time."""
        for start, stop in self._row_ranges(PIECE_ELEMENTS):
            yield start, stop, self._expanded(self.raw_rows(start, stop))

    def expand_into(self, out: Tensor) -> None:
        """Writes the values into `out` [num_rows, num_columns], converting to its type and device."""
        for start, stop, values in self.pieces():
            out[start:stop].copy_(values)

    def stage_into(self, out: Tensor, stager: Stager) -> None:
        """Queues what writes the values into `out`; they are there when the stager has finished.

        Args:
            out: [num_rows, num_columns] without gaps, on the stager's device or in memory of the host that it made.
        """
        if self.row_order is None and PLAIN_DTYPES.get(self.type) == out.dtype:
            stager.copy(self._file_rows().reshape(-1), out.view(-1).view(torch.uint8))
            return
        rows = self._file_rows()
        destination = None  # of each row of the file
        target = out
        if self.row_order is not None:
            order = torch.tensor(self.row_order, device=stager.device)
            destination = torch.empty_like(order)
            destination[order] = torch.arange(len(order), device=stager.device)
            if out.device.type != stager.device.type:  # rows are put in order on the device, and then come back
                target = torch.empty_like(out, device=stager.device)
        for start, stop in self._row_ranges(STAGED_ELEMENTS):

            def take(raw: Tensor, start: int = start, stop: int = stop) -> None:
                values = self._expanded(raw)
                if destination is None:
                    target[start:stop].copy_(values, non_blocking=True)
                    return
                target.index_copy_(0, destination[start:stop], values.to(target.dtype))
                if target is not out and stop == self.num_rows:
                    out.copy_(target, non_blocking=True)

            stager.expand(rows[start:stop].reshape(-1), take)

    def _file_rows(self) -> npt.NDArray[np.uint8]:
        """[num_rows, bytes_per_row] in the file's order, a view."""
        elements, num_bytes = BLOCK_LAYOUT[self.type]
        return np.frombuffer(self.data, dtype=np.uint8).reshape(-1, self.num_columns // elements * num_bytes)

    def _row_ranges(self, num_elements: int) -> Iterator[tuple[int, int]]:
        rows_a_piece = max(1, num_elements // self.num_columns)
        for start in range(0, self.num_rows, rows_a_piece):
            yield start, min(start + rows_a_piece, self.num_rows)

    def _expanded(self, raw: Tensor) -> Tensor:
        """Bytes of whole rows -> float32 [n, num_columns]."""
        return dequantize(self.type, raw.view(-1, BLOCK_LAYOUT[self.type][1])).view(-1, self.num_columns)
